"""Who asks: people, in a browser."""
