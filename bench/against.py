"""The plain handler under the same load, with as many households."""

import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256

import psycopg
from sqlalchemy import create_engine

from bench import plain, shop
from bench.drive import Found, Tills, check_all_kept
from bench.levels import RECEIPTS, Level, level_of
from bench.load import Load
from bench.place import Database, new_database, plain_serving
from bench.sizes import Sizes
from kantis.db.cluster import Cluster

CONNECTIONS = (32, 64)
"""Kantis is compared with the better of the two."""

_HOUSEHOLDS = (
    "INSERT INTO account SELECT n + 1, '', 500 FROM generate_series(0, %s::int) AS n",
    """INSERT INTO month_sum
    SELECT n + 1, date_trunc('month', now())::date - m * interval '1 month', 10000
    FROM generate_series(0, %s::int) AS n, generate_series(1, 12) AS m""",
)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Level]:
    """Book as many receipts as the plain handler takes.

    :raises Lost:
    """
    database = new_database(cluster, "plain")
    tokens = _fill(database, size=sizes.households)
    with plain_serving(database) as server:
        tills = Tills(server, database, tokens, sizes.households)
        for connections in CONNECTIONS:
            database.checkpoint()
            driven = tills.send(
                RECEIPTS,
                connections=connections,
                seconds=sizes.plain_seconds,
                warm_seconds=sizes.warm_seconds,
            )
            check_all_kept(driven, partial(_find, database))
            yield level_of(driven)


def _fill(database: Database, *, size: int) -> list[str]:
    """Make tables and households; give each store's token."""
    engine = create_engine(plain.driver_url(database.owner_url))
    plain.Base.metadata.create_all(engine)
    engine.dispose()
    tokens = [secrets.token_urlsafe(16) for _ in shop.STORES]
    last = size - 1
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        for store, token in zip(shop.STORES, tokens, strict=True):
            digest = sha256(token.encode()).digest()
            connection.execute("INSERT INTO token VALUES (%s, %s)", [digest, store])
        for statement in _HOUSEHOLDS:
            connection.execute(statement, [last])
        connection.execute(
            "INSERT INTO card SELECT (%s::bigint + n)::text, n + 1, false"
            " FROM generate_series(0, %s::int) AS n",
            [shop.FIRST_CARD, last],
        )
        connection.execute("VACUUM (ANALYZE)")
    return tokens


def _find(database: Database, load: Load, numbers: Sequence[int]) -> Found:
    """Look for receipts by their keys, and for all that a load's till has booked."""
    keys = [
        f"{shop.store_of(number)}/{load.till}/{load.business_day}/{shop.number_text(number)}"
        for number in numbers
    ]
    with psycopg.connect(database.owner_url) as connection:
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE key = ANY(%s)), count(*), count(DISTINCT key)"
            " FROM receipt WHERE till = %s",
            [keys, load.till],
        ).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0]), int(row[1]), int(row[2])
