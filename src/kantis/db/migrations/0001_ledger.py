"""The whole schema of the first release. Later ones come as files of their own."""

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).parent.parent / "sql"


class Migration(migrations.Migration):
    """Run the ledger's SQL, then give the application's role what it needs."""

    operations = (
        migrations.RunSQL((SQL / "0001_ledger.sql").read_text(encoding="utf-8")),
        migrations.RunSQL((SQL / "0001_rows.sql").read_text(encoding="utf-8")),
        migrations.RunSQL((SQL / "0001_grants.sql").read_text(encoding="utf-8")),
    )
