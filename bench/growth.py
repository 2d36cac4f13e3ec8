"""What a receipt costs when there are more and more households."""

from collections.abc import Iterator

import psycopg
from msgspec import Struct

from bench import households
from bench.drive import Driven, Tills
from bench.levels import USUAL, Level, book, level_of
from bench.place import Database, kantis_serving, new_kantis
from bench.sizes import Sizes
from kantis.db.cluster import APP, SUPERUSER, Cluster

_BOUNDARIES = ("BEGIN", "COMMIT", "ROLLBACK")


class Statements(Struct, frozen=True):
    """What PostgreSQL did for a receipt, on average: `buffers` are shared ones, hit or read.

    `statements` are without the beginnings and ends of transactions.
    """

    statements: float
    transactions: float
    buffers: float
    buffers_read: float
    wal_bytes: float
    execution_us: float


class Grown(Struct, frozen=True):
    """A receipt's cost with so many households: alone on one connection, and with others."""

    households: int
    database_mib: float
    alone: Statements
    together: Statements
    level: Level


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Grown]:
    """Book the same load with more and more households.

    :raises Lost:
    """
    database = new_kantis(cluster, "growing")
    _track(database)
    tokens = households.open_stores(database)
    households.make_models(database)
    before = 0
    for size in sizes.grown:
        households.copy_households(database, first=before, until=size, bare=False)
        before = size
        with kantis_serving(database) as server:
            tills = Tills(server, database, tokens, size)
            # A session's first statements look into the catalog: not a receipt's cost.
            book(tills, connections=USUAL, seconds=sizes.warm_seconds, warm_seconds=0)
            alone, _ = _counted(tills, connections=1, seconds=sizes.single_seconds)
            together, driven = _counted(tills, connections=USUAL, seconds=sizes.level_seconds)
        yield Grown(size, _mib(database), alone, together, level_of(driven))


def _track(database: Database) -> None:
    """Let this database's statements be counted; the other figures do without."""
    with psycopg.connect(_statistics(database), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        connection.execute(f"ALTER DATABASE {database.name} SET pg_stat_statements.track = 'top'")


def _counted(tills: Tills, *, connections: int, seconds: float) -> tuple[Statements, Driven]:
    with psycopg.connect(_statistics(tills.database), autocommit=True) as connection:
        connection.execute("SELECT pg_stat_statements_reset()")
        driven = book(tills, connections=connections, seconds=seconds, warm_seconds=0)
        return _look(connection, tills.database, driven.loaded.acknowledged), driven


def _look(connection: psycopg.Connection, database: Database, receipts: int) -> Statements:
    """Divide by the receipts what the application's role has done in a database."""
    row = connection.execute(
        "SELECT sum(calls) FILTER (WHERE query <> ALL(%(boundaries)s)),"
        " sum(calls) FILTER (WHERE query = 'COMMIT'),"
        " sum(shared_blks_hit + shared_blks_read), sum(shared_blks_read), sum(wal_bytes),"
        " sum(total_exec_time) * 1000"
        " FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
        " JOIN pg_roles r ON r.oid = s.userid"
        " WHERE datname = %(database)s AND rolname = %(role)s",
        {"boundaries": list(_BOUNDARIES), "database": database.name, "role": APP},
    ).fetchone()
    assert row is not None, "an aggregate has a row"
    return Statements(*(float(total) / receipts for total in row))


def _statistics(database: Database) -> str:
    """Give where statements are looked up: not in a database that is measured."""
    return database.cluster.url(SUPERUSER, "postgres")


def _mib(database: Database) -> float:
    with psycopg.connect(database.superuser_url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None, "a function gives a row"
    return float(row[0]) / 2**20
