"""Who asks: tills and partners, over HTTP."""
