"""Bring a database's schema up to date."""

import django
import psycopg
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

APPS = ("django.contrib.contenttypes", "procrastinate.contrib.django", "kantis.db")


def migrate(url: str) -> None:
    """Run the migrations that a database lacks, as the role in `url`, which will own the tables.

    Several may be started at once: all but one wait.
    """
    with psycopg.connect(url, autocommit=True) as guard:
        guard.execute("SELECT pg_advisory_lock(hashtext('kantis-migrate'))")
        _run(url)


def _run(url: str) -> None:
    parts = conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.get("dbname", ""),
        "USER": parts.get("user", ""),
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": str(parts.get("port", "")),
        "OPTIONS": {"options": parts["options"]} if "options" in parts else {},
    }
    if not settings.configured:
        settings.configure(INSTALLED_APPS=APPS, DATABASES={"default": database}, USE_TZ=True)
        django.setup()
    connections["default"].close()
    connections.databases["default"] |= database
    connections["default"].settings_dict |= database
    try:
        call_command("migrate", verbosity=0)
    finally:
        connections["default"].close()
