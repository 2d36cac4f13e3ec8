"""Let the application's role queue and run jobs; the tables are procrastinate's own."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent.parent / "sql"


class Migration(migrations.Migration):
    """Come after the newest of procrastinate's migrations that made a table."""

    dependencies = (
        ("ledger", "0001_ledger"),
        ("procrastinate", "0041_post_retry_failed_job"),
    )
    operations = (migrations.RunSQL((SQL / "0002_jobs.sql").read_text(encoding="utf-8")),)
