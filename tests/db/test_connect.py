"""A server that could forget what it has acknowledged is refused; sessions are as they must be."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from kantis.db.cluster import APP, OWNER, Cluster
from kantis.db.connect import (
    MUST_BE_ON,
    ImpatientConnection,
    UnsafeServer,
    check_server,
    connect,
    open_pool,
    passes_by_guards,
)

if TYPE_CHECKING:
    from tests.conftest import Server


@pytest.fixture
def place(reachable_directory: Path) -> Iterator[Path]:
    yield reachable_directory
    Cluster(reachable_directory).destroy()


def test_a_server_that_may_forget_is_refused_and_the_setting_named(place: Path) -> None:
    for name in MUST_BE_ON:
        cluster = Cluster(place, {name: "off"})
        cluster.start()
        with (
            connect(cluster.url()) as connection,
            pytest.raises(UnsafeServer, match=f"runs with {name} = off; switch it on"),
        ):
            check_server(connection)
        cluster.stop()
    cluster = Cluster(place)
    cluster.start()
    with connect(cluster.url()) as connection:
        check_server(connection)
        # Less than "on", but what is acknowledged is on this machine's disk.
        connection.execute("SET synchronous_commit = local")
        check_server(connection)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("ALTER TABLE posting DISABLE TRIGGER posting_append_only", "posting_append_only"),
        ("ALTER TABLE event NO FORCE ROW LEVEL SECURITY", "table event"),
        ("ALTER TABLE lot DISABLE ROW LEVEL SECURITY", "table lot"),
        ("DROP TRIGGER posting_belongs ON posting", "posting_belongs is gone"),
        ("DROP POLICY scope ON event", "table event has lost"),
    ],
)
def test_a_guard_that_is_switched_off_is_named(
    fresh_database: Callable[[str], str], harm: str, named: str
) -> None:
    with connect(fresh_database(OWNER)) as owner, connect(fresh_database(APP)) as app:
        check_server(app)
        owner.execute(harm.encode())
        with pytest.raises(UnsafeServer, match=named):
            check_server(app)


def test_a_role_that_row_level_security_does_not_hold_is_named(
    server: "Server", database_url: str
) -> None:
    with server.administration() as superuser, connect(database_url) as app:
        assert passes_by_guards(superuser) != ""
        assert passes_by_guards(app) == ""


def test_the_settings_looked_at_are_those_that_lose_receipts() -> None:
    assert set(MUST_BE_ON) == {"fsync", "full_page_writes", "synchronous_commit"}


def test_a_session_runs_in_utc_commits_each_statement_and_does_not_wait_for_ever(
    database_url: str,
) -> None:
    expected = {
        "timezone": "UTC",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "1min",
        "transaction_isolation": "read committed",
    }
    with (
        connect(database_url) as one,
        open_pool(database_url, size=1) as pool,
        pool.connection() as pooled,
    ):
        for connection in (one, pooled):
            assert connection.autocommit
            for name, value in expected.items():
                row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
                assert row == (value,)


def test_a_pool_replaces_a_connection_that_the_server_has_closed(
    server: "Server", database_url: str
) -> None:
    with open_pool(database_url, size=1) as pool:
        with pool.connection() as connection:
            pid = connection.info.backend_pid
        with server.administration() as killer:
            killer.execute("SELECT pg_terminate_backend(%s)", [pid])
        with pool.connection() as connection:
            assert connection.info.backend_pid != pid
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pool_gives_up_a_connection_on_which_nobody_answers(database_url: str) -> None:
    with open_pool(database_url, size=1) as pool:
        with pool.connection() as connection:
            assert isinstance(connection, ImpatientConnection)
            connection.patience = 0.2
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                connection.execute("SELECT pg_sleep(5)")
            assert connection.closed
        with pool.connection() as another:
            assert another.execute("SELECT 1").fetchone() == (1,)
