"""Loyalty programmes as code."""
