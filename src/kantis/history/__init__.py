"""Receipts in bulk."""
