"""Who may ask for what: a bearer token speaks for one store of one programme."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, TypeVar

import psycopg
from litestar import Request
from litestar.concurrency import sync_to_thread
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from msgspec import Struct
from psycopg_pool import ConnectionPool

from kantis.api.problems import NotForThisToken, TokenUnknown
from kantis.core.admission import CLOCK_TOLERANCE, Warrant
from kantis.core.refusals import ApprovalMissing, StoreNotYours, TimeImpossible
from kantis.db.connect import speaking_for
from kantis.db.programmes import Token, find_token
from kantis.operations.sales import RETRIED

T = TypeVar("T")

TILL = frozenset({"till", "staff"})
STAFF = frozenset({"staff"})

WHO = {
    "quote_receipt": TILL,
    "book_receipt": TILL,
    "book_batch": TILL,
    "book_return": TILL,
    "hold": TILL,
    "capture_hold": TILL,
    "release_hold": TILL,
    "show_card": TILL,
    "enrol_member": STAFF,
    "issue_card": STAFF,
    "activate_card": STAFF,
    "block_card": STAFF,
    "replace_card": STAFF,
    "pool_card": STAFF,
    "change_status": STAFF,
    "end_membership": STAFF,
    "open_balances": STAFF,
    "list_waiting": STAFF,
    "accept_waiting": STAFF,
    "dismiss_waiting": STAFF,
}
"""Which kinds of token may call a handler; every handler is named here, which a test holds."""

ATTEMPTS = 3
"""How often something is tried against others' transactions before we answer 503."""


class Till(Struct, frozen=True):
    """Whoever asks: a store's token, and the way to the database."""

    token: Token
    pool: ConnectionPool

    @property
    def programme(self) -> str:
        """Name the programme that the token is for."""
        return self.token.programme

    def check_store(self, store: str) -> None:
        """Check that a document is of the token's own store.

        :raises StoreNotYours:
        """
        if store != self.token.store:
            raise StoreNotYours(store=store, yours=self.token.store)

    def warrant(self, reason: str = "", approved_by: str = "") -> Warrant:
        """Say who does something.

        :raises ApprovalMissing: who asks and who approves are one
        """
        actor = f"{self.token.kind}:{self.token.store}/{self.token.label}"
        if approved_by == actor:
            raise ApprovalMissing(approved_by=approved_by)
        return Warrant(actor, reason, approved_by)

    def own(self, key: str) -> str:
        """Give an idempotency key as one of this store's: stores do not know each other's."""
        return f"{self.token.store}/{key}"

    def ask(self, question: Callable[[psycopg.Connection], T]) -> T:
        """Put a question to the database, again if another transaction came between.

        :raises psycopg.OperationalError: the database is away, or none of the pool's
            connections came free in time
        """
        for _ in range(ATTEMPTS - 1):
            with suppress(*RETRIED), self.pool.connection() as connection:
                return question(speaking_for(connection, self.programme))
        with self.pool.connection() as connection:
            return question(speaking_for(connection, self.programme))


def now() -> datetime:
    """Read the clock; everything further in takes the moment as an argument."""
    return datetime.now(UTC)


def moment(tills: datetime | None) -> datetime:
    """Give when a till says that something happens now; our own clock if it does not say.

    :raises TimeImpossible: its clock and ours are too far apart
    """
    ours = now()
    if tills is None:
        return ours
    if abs(tills - ours) > CLOCK_TOLERANCE:
        raise TimeImpossible(at=tills, now=ours)
    return tills


def this_second() -> datetime:
    """Give the whole second that it is: a till's first receipt tells no finer time."""
    return now().replace(microsecond=0)


async def let_in(
    connection: ASGIConnection[Any, Any, Any, State], handler: BaseRouteHandler
) -> None:
    """Let a request in whose token is known and of a kind that may; the body is not yet read.

    :raises TokenUnknown:
    :raises NotForThisToken:
    """
    scheme, _, token = connection.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenUnknown("There is no bearer token in the header `Authorization`.")
    pool: ConnectionPool = connection.app.state.pool
    found = await sync_to_thread(_find, pool, sha256(token.strip().encode()).digest())
    if found is None:
        raise TokenUnknown("The token is not known, or was revoked.")
    if found.kind not in WHO[handler.handler_name]:
        raise NotForThisToken(
            "The token may not do this.", allowed=sorted(WHO[handler.handler_name])
        )
    connection.scope["auth"] = found


def _find(pool: ConnectionPool, token_hash: bytes) -> Token | None:
    with pool.connection() as connection:
        return find_token(connection, token_hash)


def till_of(request: Request[Any, Token, State]) -> Till:
    """Give a handler whoever asks."""
    return Till(request.auth, request.app.state.pool)


Asker = NamedDependency[Till]
"""A handler's argument that `till_of` provides."""
