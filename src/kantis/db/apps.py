"""Kantis's tables as a Django application: migrations are the only channel for DDL."""

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """The ledger; its tables are written by SQL functions, not by the ORM."""

    name = "kantis.db"
    label = "ledger"
