"""Bring a database's schema up to date."""

import os

import django
import psycopg
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.migrations.loader import MigrationLoader
from psycopg.conninfo import conninfo_to_dict

SETTINGS = "kantis.site.settings"
"""One process has one set of Django's settings: who migrates has to know the tables of people's
pages too. A name and no import, as in every `manage.py`."""

APPS = ("django.contrib.contenttypes", "procrastinate.contrib.django", "kantis.db")


def migrate(url: str) -> None:
    """Run the migrations that a database lacks, as the role in `url`, which will own the tables.

    Several may be started at once: all but one wait.
    """
    with psycopg.connect(url, autocommit=True) as guard:
        guard.execute("SELECT pg_advisory_lock(hashtext('kantis-migrate'))")
        _run(url)


def missing(connection: psycopg.Connection) -> list[str]:
    """Name the migrations that a database lacks."""
    return sorted(known() - applied(connection))


def known() -> set[str]:
    """Name all migrations that there are."""
    set_up_django()
    return {f"{app}.{name}" for app, name in MigrationLoader(None).disk_migrations}


def applied(connection: psycopg.Connection) -> set[str]:
    """Name the migrations that a database has had."""
    row = connection.execute("SELECT to_regclass('django_migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return set()
    rows = connection.execute("SELECT app, name FROM django_migrations").fetchall()
    return {f"{app}.{name}" for app, name in rows}


def set_up_django() -> None:
    """Read Django's settings, once in a process."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS)
    if not apps.ready:
        django.setup()


def database(url: str) -> dict[str, object]:
    """Give Django's words for a connection URL."""
    parts = conninfo_to_dict(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.get("dbname", ""),
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": str(parts.get("port", "")),
        "OPTIONS": {"options": parts["options"]} if "options" in parts else {},
    }


def _run(url: str) -> None:
    set_up_django()
    before = connections["default"].settings_dict
    connections["default"].close()
    connections["default"].settings_dict = before | database(url)
    try:
        call_command("migrate", verbosity=0)
    finally:
        connections["default"].close()
        connections["default"].settings_dict = before
