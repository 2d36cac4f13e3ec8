"""Connections to PostgreSQL, and what a server must promise before points are kept on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[tuple[object, ...]]

T = TypeVar("T")

ANSWER_SECONDS = 12
"""How long one statement of a till's request may go unanswered; longer than `lock_timeout`."""

CHECK_SECONDS = 2
"""The same for the question whether a connection taken from the pool still lives."""

CONNECT_SECONDS = 5
"""The same for a new connection; psycopg would wait for two minutes."""

MUST_BE_ON = ("fsync", "full_page_writes", "synchronous_commit")
"""Without these an acknowledged receipt can be lost."""


class UnsafeServer(Exception):
    """The database server does not promise to keep what it acknowledges."""


EVERY_PROGRAMME = "*"
"""What an operator's session speaks for; a till's speaks for its own (`speaking_for`)."""

LOOK_AGAIN_SECONDS = timedelta(milliseconds=100).total_seconds()
"""How often a wait is looked at, so that Ctrl-C is heard: psycopg's own pause."""


class ImpatientConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection that is given up when the server leaves a statement unanswered for too long.

    PostgreSQL's own timeouts are no help when all of it stands still, or the network swallows
    what is sent: then nobody is there to keep them.
    """

    patience: float = ANSWER_SECONDS

    waiter: Callable[[PQGen[Any], float], Any] | None = None
    """Who waits instead, if not this thread: it gets what to wait for, and for how many seconds."""

    def wait(
        self, gen: PQGen[T], interval: float = LOOK_AGAIN_SECONDS, timeout: float | None = None
    ) -> T:
        """Wait for the server, `patience` seconds at most.

        :raises psycopg.OperationalError: the time is over; the connection is closed then, since
            nobody knows whether the statement was carried out
        """
        patience = self.patience if timeout is None else timeout
        try:
            if self.waiter is not None:
                return cast(T, self.waiter(gen, patience))
            return super().wait(gen, interval, patience)
        except psycopg.OperationalError:
            if self.info.transaction_status is TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


def open_pool(url: str, *, size: int = 8, sees: str = "") -> ConnectionPool:
    """Open a pool whose sessions run in UTC and give up on locks and statements in time.

    They see no account until they speak for somebody, unless `sees` is `EVERY_PROGRAMME`: those
    are an operator's, whose work may take long. A connection that the server has closed is
    noticed when it is taken, and replaced; one on which it does not answer a till any more is
    given up.
    """

    def configure(connection: psycopg.Connection) -> None:
        _configure(connection)
        _speak(connection, sees)

    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        timeout=5,
        # Then the next request tries anew, instead of waiting out ever longer pauses.
        reconnect_timeout=5,
        connection_class=psycopg.Connection if sees else ImpatientConnection,
        kwargs={"autocommit": True, "connect_timeout": CONNECT_SECONDS},
        configure=configure,
        reset=lambda connection: _speak(connection, sees),
        check=ConnectionPool.check_connection if sees else _check,
        open=True,
    )


@contextmanager
def connect(url: str) -> Iterator[psycopg.Connection]:
    """Open one connection of an operator, who sees every programme."""
    with psycopg.connect(url, autocommit=True) as connection:
        _configure(connection)
        _speak(connection, EVERY_PROGRAMME)
        yield connection


def speaking_for(connection: psycopg.Connection, programme: str) -> psycopg.Connection:
    """Let a pool's connection see and book one programme only, until it goes back."""
    _speak(connection, programme)
    return connection


def _speak(connection: psycopg.Connection, programme: str) -> None:
    connection.execute("SELECT set_config('kantis.programme', %s, false)", [programme])


GUARDS = {
    "the trigger {} is switched off: switch it on again": """
        SELECT tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
        WHERE NOT tgisinternal AND tgenabled NOT IN ('O', 'A')
          AND relnamespace = 'public'::regnamespace""",
    "the trigger {} is gone: restore it from a backup or by migrating anew": """
        SELECT name FROM unnest(ARRAY['transfer_posted', 'posting_belongs', 'transfer_append_only',
            'posting_append_only', 'event_kept', 'event_unchanged', 'receipt_key_kept',
            'receipt_key_unchanged', 'terms_append_only', 'seal_append_only']) AS name
        WHERE to_regclass('public.posting') IS NOT NULL
          AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = name)""",
    "the table {} has lost its row-level security: restore it": """
        SELECT relname FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
        WHERE attname = 'account_id' AND relkind = 'r' AND relname <> 'receipt_key'
          AND relnamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND polname = 'scope')""",
    "the table {} has its row-level security switched off: switch it on again": """
        SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid
        WHERE NOT (relrowsecurity AND relforcerowsecurity)""",
}
"""What keeps wrong bookings out in the database itself, and what finds that it does not."""


def check_server(connection: psycopg.Connection) -> None:
    """Refuse a server that could forget what it has acknowledged, or book what must not be.

    :raises UnsafeServer: naming the setting, or the guard that is off
    """
    for fault, question in GUARDS.items():
        if row := connection.execute(question).fetchone():
            raise UnsafeServer(fault.format(row[0]))
    for name in MUST_BE_ON:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
        if row is None or row[0] == "off":
            msg = f"the database server runs with {name} = off; switch it on: points are money"
            raise UnsafeServer(msg)


def passes_by_guards(connection: psycopg.Connection) -> str:
    """Name the session's role if row-level security does not hold it; empty if it does."""
    row = connection.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)"
    ).fetchone()
    return "" if row is None else str(row[0])


def _check(connection: psycopg.Connection) -> None:
    assert isinstance(connection, ImpatientConnection)
    connection.patience = CHECK_SECONDS
    ConnectionPool.check_connection(connection)
    connection.patience = ANSWER_SECONDS


def _configure(connection: psycopg.Connection) -> None:
    connection.execute(
        "SELECT set_config('timezone', 'UTC', false),"
        " set_config('lock_timeout', '10s', false),"
        " set_config('idle_in_transaction_session_timeout', '60s', false)"
    )
