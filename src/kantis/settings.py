"""The environment, read once."""

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from kantis.db.cluster import OWNER, SUPERUSER, Cluster
from kantis.operations.limits import Limits


class Settings(Struct, frozen=True):
    """What the environment says. Without `database_url` the embedded PostgreSQL is used.

    `owner_url` is the role that owns the tables and migrates them; on an external server
    it is `database_url` itself unless `KANTIS_OWNER_URL` says otherwise.
    """

    data_dir: Path
    database_url: str
    owner_url: str
    host: str
    port: int
    limits: Limits = Limits()

    @property
    def is_embedded(self) -> bool:
        """Tell whether the database is the one that Kantis brings along."""
        return not self.database_url

    @property
    def cluster(self) -> Cluster:
        """Give the embedded PostgreSQL, started or not."""
        return Cluster(self.data_dir)

    def database(self) -> str:
        """Give the application's database URL; starts the embedded server if it is the one."""
        if not self.is_embedded:
            return self.database_url
        cluster = self.cluster
        cluster.start()
        return cluster.url()

    def owner(self) -> str:
        """Give the owner's database URL, for migrations."""
        if not self.is_embedded:
            return self.owner_url or self.database_url
        return self.cluster.url(OWNER)

    def keeper(self) -> str:
        """Give the database URL of the role that sees every row, for backups."""
        return self.cluster.url(SUPERUSER) if self.is_embedded else self.owner()

    @property
    def has_app_role(self) -> bool:
        """Tell whether the application connects as another role than the owner."""
        return self.is_embedded or (bool(self.owner_url) and self.owner_url != self.database_url)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; `docs/settings.md` lists them."""
    here = Path.cwd() / ".kantis"  # where the Makefile's demo keeps its data
    default = Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "kantis"
    return Settings(
        data_dir=Path(environment.get("KANTIS_DATA_DIR") or (here if here.is_dir() else default)),
        database_url=environment.get("KANTIS_DATABASE_URL", ""),
        owner_url=environment.get("KANTIS_OWNER_URL", ""),
        host=environment.get("KANTIS_HOST") or "127.0.0.1",
        port=int(environment.get("KANTIS_PORT") or 8000),
        limits=_read_limits(environment),
    )


def _read_limits(environment: Mapping[str, str]) -> Limits:
    usual = Limits()
    return Limits(
        unknown_cards_per_minute=int(
            environment.get("KANTIS_UNKNOWN_CARDS_PER_MINUTE") or usual.unknown_cards_per_minute
        ),
        unknown_cards_per_hour=int(
            environment.get("KANTIS_UNKNOWN_CARDS_PER_HOUR") or usual.unknown_cards_per_hour
        ),
        wrong_tokens_per_minute=int(
            environment.get("KANTIS_WRONG_TOKENS_PER_MINUTE") or usual.wrong_tokens_per_minute
        ),
    )
