"""Count who asks for cards and tokens that there are not."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent.parent / "sql"


class Migration(migrations.Migration):
    """Add one table of counters."""

    dependencies = (("ledger", "0002_jobs"),)
    operations = (migrations.RunSQL((SQL / "0003_limits.sql").read_text(encoding="utf-8")),)
