"""The first of a month for many households: reviews, conversions, expiry.

Most households have nothing due then: they are no best customers and have too few points. So it
is with the real ones, which these are copies of.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import takewhile

import psycopg
from msgspec import Struct
from psycopg import sql

from bench import households
from bench.households import FOLDER
from bench.place import ROOT, Database, new_kantis
from bench.sizes import Sizes
from bench.year import load
from kantis.core.periods import day_start
from kantis.db.cluster import OWNER, SUPERUSER, Cluster
from kantis.db.connect import connect
from kantis.history.receipts import History, Purchase, Reading, demo_folder

REVIEWED_ON = date(2018, 1, 1)
"""The day after the year of receipts: best customers are renewed, a month's points converted."""


class Reviewed(Struct, frozen=True):
    """Seconds of `kantis tick` to the first of a month as a whole process.

    `due` are the households that had something due by then.
    """

    households: int
    due: int
    until: date
    seconds: float


class _Year(History):
    """The year's receipts up to the eve of its last review."""

    def last_at(self) -> datetime:
        """Give the last instant of the year."""
        return day_start(REVIEWED_ON, FOLDER.programme().zone) - timedelta(microseconds=1)

    def by_time(self, reading: Reading) -> Iterator[Purchase]:
        """Give the year's purchases and no later ones."""
        end_at = self.last_at()
        return takewhile(lambda one: one.at <= end_at, super().by_time(reading))


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Reviewed]:
    """Review copies of the year's households, as they stand at its end."""
    december = new_kantis(cluster, "december")
    load(december, _Year(demo_folder(), every=sizes.models_every))
    for size in sizes.reviewed:
        database = _copy(december, f"review_{size}")
        households.copy_households(database, first=0, until=size, bare=True)
        due = _due(database)
        seconds = _tick(database)
        assert not _due(database), "what was done is not due any more"
        yield Reviewed(_accounts(database), due, REVIEWED_ON, seconds)
        _drop(database)


def _tick(database: Database) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "kantis", "tick", "--until", REVIEWED_ON.isoformat()],
        cwd=ROOT,
        env={**os.environ, **database.environment},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def _copy(december: Database, name: str) -> Database:
    """Copy a database to which nobody is connected."""
    with psycopg.connect(_administration(december), autocommit=True) as connection:
        names = {"new": name, "old": december.name, "owner": OWNER}
        connection.execute(
            sql.SQL("CREATE DATABASE {new} TEMPLATE {old} OWNER {owner}").format(
                **{key: sql.Identifier(value) for key, value in names.items()}
            )
        )
    return Database(december.cluster, name)


def _drop(database: Database) -> None:
    with psycopg.connect(_administration(database), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(database.name)))


def _administration(database: Database) -> str:
    return database.cluster.url(SUPERUSER, "postgres")


def _due(database: Database) -> int:
    return _count(database, sql.SQL("next_due_on <= {}").format(sql.Literal(REVIEWED_ON)))


def _accounts(database: Database) -> int:
    return _count(database, sql.SQL("true"))


def _count(database: Database, condition: sql.Composable) -> int:
    with connect(database.url) as connection:
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM account WHERE {}").format(condition)
        ).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])
