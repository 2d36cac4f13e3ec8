"""Who may ask for what: a bearer token speaks for one store of one programme."""

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import ip_network
from math import ceil
from typing import Any, TypeVar

import psycopg
from litestar import Request
from litestar.concurrency import sync_to_thread
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from msgspec import Struct
from psycopg_pool import ConnectionPool

from kantis.api.problems import (
    NotForThisToken,
    TokenUnknown,
    TooManyUnknownCards,
    TooManyWrongTokens,
)
from kantis.core.admission import Warrant
from kantis.core.answers import Answer
from kantis.core.refusals import (
    ApprovalMissing,
    CardNotUsable,
    CardUnknown,
    HoldUnknown,
    Refusal,
    StoreNotYours,
)
from kantis.db.connect import speaking_for
from kantis.db.misses import Counted
from kantis.db.programmes import Token
from kantis.operations.limits import (
    Limits,
    Misses,
    count_unknown_cards,
    count_wrong_token,
    recognize,
)
from kantis.operations.sales import RETRIED

T = TypeVar("T")

log = logging.getLogger(__name__)

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

LOOKUPS = frozenset(
    {
        "quote_receipt",
        "hold",
        "release_hold",
        "show_card",
        "activate_card",
        "block_card",
        "replace_card",
        "pool_card",
    }
)
"""The handlers that are asked with a card and book no receipt: a token that guesses is refused
them. Receipts and returns are always taken (docs/decisions/0007)."""

UNKNOWN = CardUnknown.code

STORE_DIGITS = 8
HOLD_DIGITS = 32

ATTEMPTS = 3
"""How often something is tried against others' transactions before we answer 503."""


class Till(Struct):
    """Whoever asks, for one request: a store's token, and the way to the database.

    Until `untold_until` it is told nothing of cards.
    """

    token: Token
    pool: ConnectionPool
    limits: Limits
    untold_until: datetime | None

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

    def hold_id(self, key: str) -> str:
        """Give the hold of an idempotency key: the same for a repeated request, marked as ours."""
        drawn = sha256(f"{self.programme}/{self.own(key)}".encode()).hexdigest()
        return self._mark() + drawn[: HOLD_DIGITS - STORE_DIGITS]

    def check_hold(self, hold_id: str) -> None:
        """Check that a hold was made by this store, whose customer proved who spends.

        :raises HoldUnknown: it was not, or there is none
        """
        if not hold_id.startswith(self._mark()):
            raise HoldUnknown(hold=hold_id)

    def _mark(self) -> str:
        store = f"{self.programme}/{self.token.store}"
        return sha256(store.encode()).hexdigest()[:STORE_DIGITS]

    def ask(self, question: Callable[[psycopg.Connection], T]) -> T:
        """Put a question to the database, again if another transaction came between.

        A question about a card that there is not is counted.

        :raises TooManyUnknownCards: too many were asked for; what was found is not told
        :raises psycopg.OperationalError: the database is away, or none of the pool's
            connections came free in time
        """
        try:
            said = self._ask(question)
        except Refusal as refusal:
            self.check_miss(refusal)
            raise
        self.check_miss(said)
        return said

    def check_miss(self, said: object) -> None:
        """Count an answer that says that there is no such card.

        :raises TooManyUnknownCards:
        """
        if not is_miss(said):
            return
        self.count_misses(1)
        if self.untold_until is not None:
            raise too_many(self.untold_until)

    def count_misses(self, number: int) -> None:
        """Count unknown cards that were asked for; `untold_until` is set if they were too many."""
        with self.pool.connection() as connection:
            counted = count_unknown_cards(
                connection, token=self.token, number=number, at=now(), limits=self.limits
            )
        _warn(self.token, counted)
        self.untold_until = self.untold_until or counted.untold_until

    def _ask(self, question: Callable[[psycopg.Connection], T]) -> T:
        for _ in range(ATTEMPTS - 1):
            with suppress(*RETRIED), self.pool.connection() as connection:
                return question(speaking_for(connection, self.programme))
        with self.pool.connection() as connection:
            return question(speaking_for(connection, self.programme))


def now() -> datetime:
    """Read the clock; everything further in takes the moment as an argument."""
    return datetime.now(UTC)


def this_second() -> datetime:
    """Give the whole second that it is: a till's first receipt tells no finer time."""
    return now().replace(microsecond=0)


def is_miss(said: object) -> bool:
    """Tell whether an answer says that there is no such card."""
    match said:
        case CardUnknown():
            return True
        case CardNotUsable():
            return said.fields.get("why") == UNKNOWN
        case Answer():
            return said.nothing == UNKNOWN
        case _:
            return False


async def let_in(
    connection: ASGIConnection[Any, Any, Any, State], handler: BaseRouteHandler
) -> None:
    """Let a request in whose token is known and of a kind that may; the body is not yet read.

    :raises TokenUnknown:
    :raises TooManyWrongTokens:
    :raises NotForThisToken:
    :raises TooManyUnknownCards: it is a look-up, and the token has guessed too often
    """
    if isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}:
        return  # Litestar's own, which says what methods there are and asks for nothing
    token = bearer_in(connection.headers.get("Authorization", ""))
    state = connection.app.state
    host = connection.client.host if connection.client else ""
    found = await sync_to_thread(find_token, state.pool, token, host, state.limits)
    if found.kind not in WHO[handler.handler_name]:
        raise NotForThisToken(
            "The token may not do this.", allowed=sorted(WHO[handler.handler_name])
        )
    if found.untold_until is not None and handler.handler_name in LOOKUPS:
        raise too_many(found.untold_until)
    connection.scope["auth"] = found


def bearer_in(header: str) -> str:
    """Give the token in the header `Authorization`.

    :raises TokenUnknown: there is none
    """
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenUnknown("There is no bearer token in the header `Authorization`.")
    return token.strip()


def too_many(until: datetime) -> TooManyUnknownCards:
    """Say that nothing is told of cards until then."""
    return TooManyUnknownCards(
        "Too many unknown cards were asked for.", retry_after=_seconds_to(until)
    )


def find_token(pool: ConnectionPool, token: str, host: str, limits: Limits) -> Token:
    """Give what a token stands for. Wrong ones are counted, right ones always let in.

    :raises TokenUnknown:
    :raises TooManyWrongTokens:
    """
    address = address_of(host)
    with pool.connection() as connection:
        found = recognize(connection, token_hash=sha256(token.encode()).digest(), at=now())
        if found is not None:
            return found
        counted = count_wrong_token(connection, address=address, at=now(), limits=limits)
    for window in counted.filled:
        log.warning(
            "too many wrong tokens: %d from %r by %s", window.misses, address, window.ends_at
        )
    if counted.untold_until is not None:
        raise TooManyWrongTokens(
            "Too many wrong tokens came from this address.",
            retry_after=_seconds_to(counted.untold_until),
        )
    raise TokenUnknown("The token is not known, or was revoked.")


def address_of(host: str) -> str:
    """Give what an address is counted by: of IPv6 the network, of which one machine has many."""
    return str(ip_network(f"{host}/64", strict=False)) if ":" in host else host


def _seconds_to(until: datetime) -> int:
    return max(1, ceil((until - now()).total_seconds()))


def _warn(token: Token, counted: Misses) -> None:
    """Tell the operator who guesses, once in each window, and never the numbers."""
    for window in counted.filled:
        log.warning(
            "too many unknown cards: %s asked for %d by %s%s",
            _whose(token, window),
            window.misses,
            window.ends_at,
            "" if window.limit.refuses else " (nothing is refused)",
        )


def _whose(token: Token, window: Counted) -> str:
    match window.limit.asker.partition("/")[0]:
        case "token":
            return f"the {token.kind} {token.store}/{token.label} of {token.programme}"
        case "store":
            return f"the tills of the store {token.store} of {token.programme}"
        case _:
            return f"the tills of {token.programme}"


def till_of(request: Request[Any, Token, State]) -> Till:
    """Give a handler whoever asks."""
    state = request.app.state
    return Till(request.auth, state.pool, state.limits, request.auth.untold_until)


Asker = NamedDependency[Till]
"""A handler's argument that `till_of` provides."""
