"""Receipts and quotes by the shortest way: tills' two commonest requests, answered together.

Everything else goes through Litestar, whose own handlers of these two addresses (`tills.py`) say
the same, one by one: a test holds both to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import Any, Protocol, TypeVar

import msgspec
import psycopg
from msgspec import Struct
from psycopg_pool import ConnectionPool

from kantis.api import problems
from kantis.api.access import Till, bearer_in, find_token, now, too_many
from kantis.api.lanes import Lanes
from kantis.api.problems import Fault, Malformed, TooLarge
from kantis.api.tills import check_own, is_missed, read_said, told_of
from kantis.api.wire import BODY_BYTES_MAX, decode
from kantis.core.admission import Warrant
from kantis.core.receipt import Receipt
from kantis.core.refusals import Refusal
from kantis.operations.limits import Limits
from kantis.operations.sales import Outcome, Recorded, Result, Sent, quote_all, record_sent

BOOKING_LANES = 2
"""While one waits for the database, the other decides. More would only wait for each other."""

THREADS = 8
"""For what blocks: a connection for a lane, a token seen for the first time, guesses counted."""

CARDS_KEPT = 100_000
"""Cards whose account is remembered, only to keep it to one lane at a time."""

_receipt = msgspec.json.Decoder(Receipt)

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Known(Struct, frozen=True):
    """A till that has been let in before: what never changes of it."""

    token_hash: bytes
    till: Till
    warrant: Warrant


TillLanes = Lanes[Sent, Outcome | None]


class Work(Protocol):
    """What a lane does with what tills have sent."""

    def __call__(
        self, connection: psycopg.Connection, sent: Sequence[Sent], *, programme: str
    ) -> list[Outcome | None]:
        """Give what comes of each."""


T = TypeVar("T")


class Counter:
    """The two addresses as ASGI applications, with the lanes behind them."""

    def __init__(self, pool: ConnectionPool, limits: Limits) -> None:
        """Open on a pool, which stays the caller's to close."""
        self._pool = pool
        self._limits = limits
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="counter")
        self._known: dict[bytes, Known] = {}
        self._account_of: dict[str, int] = {}
        self._booking: dict[str, TillLanes] = {}
        self._quoting: dict[str, TillLanes] = {}

    async def book_receipt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Book a receipt, as `tills.book_receipt` does."""
        await _answer(scope, send, self._book(scope, receive))

    async def quote_receipt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what a receipt would earn, as `tills.quote_receipt` does."""
        await _answer(scope, send, self._quote(scope, receive))

    async def _book(self, scope: Scope, receive: Receive) -> Recorded:
        known = await self._known_till(scope)
        till, receipt, said = await self._decided(known, scope, receive, self._booking_lanes)
        assert said is not None, "receipts are always taken"
        if isinstance(said, Recorded) and said.account_id is not None:
            self._remember(receipt.card, said.account_id)
        told: Recorded | Refusal | Fault = said
        if till.untold_until is not None or is_missed(said):
            (told,) = await self._in_thread(told_of, till, [said])
        if not isinstance(told, Recorded):
            raise told
        return told

    async def _quote(self, scope: Scope, receive: Receive) -> Recorded:
        known = await self._known_till(scope)
        if known.till.untold_until is not None:
            # Nothing is looked at, so that no time tells a card from none.
            raise too_many(known.till.untold_until)
        till, _, said = await self._decided(known, scope, receive, self._quoting_lanes)
        if till.untold_until is not None or said is None:
            raise too_many(till.untold_until or now())
        if is_missed(said):
            await self._in_thread(till.check_miss, read_said(said))
        if isinstance(said, Refusal):
            raise said
        return said

    async def _decided(
        self,
        known: Known,
        scope: Scope,
        receive: Receive,
        lanes_of: Callable[[str], TillLanes],
    ) -> tuple[Till, Receipt, Result | None]:
        """Let a lane decide on the receipt in a request; its token is looked up along with it."""
        receipt = decode(_receipt, await _body(receive))
        check_own(known.till, receipt)
        lanes = lanes_of(known.till.programme)
        while (outcome := await lanes.ask(Sent(receipt, known.warrant, known.token_hash))) is None:
            # The token is good no more: it is refused, and counted, as a wrong one.
            self._known.pop(known.token_hash, None)
            known = await self._known_till(scope)
        if outcome.untold_until is not None:
            self._known.pop(known.token_hash, None)
        # One of its own for each request: it is told when something is counted.
        till = msgspec.structs.replace(known.till, untold_until=outcome.untold_until)
        return till, receipt, outcome.said

    async def _known_till(self, scope: Scope) -> Known:
        """Give who asks: looked up the first time, again with each batch, and while it is untold.

        :raises Fault: as `kantis.api.access.let_in`
        """
        header = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                header = value
                break
        token = bearer_in(header.decode("latin-1"))
        token_hash = sha256(token.encode()).digest()
        if (known := self._known.get(token_hash)) is None:
            host = (scope.get("client") or ("",))[0]
            found = await self._in_thread(find_token, self._pool, token, host, self._limits)
            till = Till(found, self._pool, self._limits, found.untold_until)
            known = Known(token_hash, till, till.warrant())
            if found.untold_until is None:
                self._known[token_hash] = known
        return known

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Do what blocks in a thread that no other address keeps busy."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    # --- lanes -----------------------------------------------------------------------------

    def _booking_lanes(self, programme: str) -> TillLanes:
        if (lanes := self._booking.get(programme)) is None:
            lanes = self._booking[programme] = self._open(programme, _record, BOOKING_LANES)
        return lanes

    def _quoting_lanes(self, programme: str) -> TillLanes:
        if (lanes := self._quoting.get(programme)) is None:
            lanes = self._quoting[programme] = self._open(programme, _quote, 1)
        return lanes

    def _open(self, programme: str, work: Work, lanes: int) -> TillLanes:
        return TillLanes(
            partial(work, programme=programme),
            pool=self._pool,
            programme=programme,
            lanes=lanes,
            apart=self._account,
            burden=lambda sent: len(sent.receipt.lines),
            threads=self._threads,
        )

    def _account(self, sent: Sent) -> int | str:
        """Give the account of a receipt's card, if it has been booked to before, else the card."""
        return self._account_of.get(sent.receipt.card, sent.receipt.card)

    def _remember(self, card: str, account_id: int) -> None:
        if len(self._account_of) >= CARDS_KEPT:
            self._account_of.clear()
        self._account_of[card] = account_id


# --- in a lane -----------------------------------------------------------------------------


def _record(
    connection: psycopg.Connection, sent: Sequence[Sent], *, programme: str
) -> list[Outcome | None]:
    return record_sent(connection, programme=programme, sent=sent, now=now())


def _quote(
    connection: psycopg.Connection, sent: Sequence[Sent], *, programme: str
) -> list[Outcome | None]:
    return quote_all(connection, programme=programme, sent=sent, now=now())


# --- over the wire -------------------------------------------------------------------------


async def _answer(scope: Scope, send: Send, asking: Awaitable[Recorded]) -> None:
    """Send what is said, or the problem that comes instead; bugs are logged and not told."""
    try:
        async with asyncio.timeout(problems.ANSWER_WITHIN_SECONDS):
            said = await asking
    except Exception as error:  # noqa: BLE001 - as Litestar does with the other addresses
        told = problems.told(error, scope["method"], scope["path"])
        await _send(send, told.status, told.headers, told.body)
        return
    replayed = {"Idempotency-Replayed": "true"} if said.replayed else {}
    await _send(send, 200, {"Content-Type": "application/json", **replayed}, bytes(said.answer))


async def _body(receive: Receive) -> bytes:
    """Read a whole body.

    :raises TooLarge:
    :raises Malformed: it ended too early
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("The body ended too early.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(TooLarge.__doc__ or "")
    return bytes(body)


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
