"""Receipts and quotes by the shortest way: tills' two commonest requests, answered together.

Everything else goes through Litestar, whose own handlers of these two addresses (`tills.py`) say
the same, one by one: a test holds both to it.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
import psycopg
from litestar.concurrency import sync_to_thread
from msgspec import Raw, Struct
from psycopg_pool import ConnectionPool

from kantis.api import problems
from kantis.api.access import Till, bearer_in, find_token, now, too_many
from kantis.api.lanes import Lanes
from kantis.api.problems import Malformed, TooLarge
from kantis.api.tills import check_own, may_be_miss, read_said, told_of
from kantis.api.wire import BODY_BYTES_MAX, decode
from kantis.core.admission import Warrant
from kantis.core.receipt import Receipt
from kantis.core.refusals import Refusal
from kantis.operations.limits import Limits, recognize_all
from kantis.operations.sales import Recorded, Sent, quote_all, record_sent

BOOKING_LANES = 2
"""While one waits for the database, the other decides. More would only wait for each other."""

CARDS_KEPT = 100_000
"""Cards whose account is remembered, only to keep it to one lane at a time."""

_receipt = msgspec.json.Decoder(Receipt)

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

Said = Recorded | Refusal


class Known(Struct, frozen=True):
    """A till that has been let in before: what never changes of it."""

    token_hash: bytes
    till: Till
    warrant: Warrant


Asked = tuple[Known, Receipt]
"""A receipt and who sent it."""

Decided = tuple[Said, datetime | None] | None
"""What is said, and until when nothing of cards is; none to a token that is good no more."""


class Counter:
    """The two addresses as ASGI applications, with the lanes behind them."""

    def __init__(self, pool: ConnectionPool, limits: Limits) -> None:
        """Open on a pool, which stays the caller's to close."""
        self._pool = pool
        self._limits = limits
        self._known: dict[bytes, Known] = {}
        self._account_of: dict[str, int] = {}
        self._opened: dict[tuple[str, Decide], Lanes[Asked, Decided]] = {}

    async def book_receipt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Book a receipt, as `tills.book_receipt` does."""
        await _answer(scope, send, self._book(scope, receive))

    async def quote_receipt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what a receipt would earn, as `tills.quote_receipt` does."""
        await _answer(scope, send, self._quote(scope, receive))

    async def _book(self, scope: Scope, receive: Receive) -> Recorded:
        till, receipt, said = await self._decided(scope, receive, self._booking)
        if isinstance(said, Recorded) and said.account_id is not None:
            self._remember(receipt.card, said.account_id)
        if till.untold_until is None and isinstance(said, Recorded) and not may_be_miss(said):
            return said
        (told,) = await sync_to_thread(told_of, till, [said])
        if not isinstance(told, Recorded):
            raise told
        return told

    async def _quote(self, scope: Scope, receive: Receive) -> Recorded:
        till, _, said = await self._decided(scope, receive, self._quoting)
        if till.untold_until is not None:
            raise too_many(till.untold_until)
        if may_be_miss(said):
            await sync_to_thread(till.check_miss, read_said(said))
        if isinstance(said, Refusal):
            raise said
        return said

    async def _decided(
        self,
        scope: Scope,
        receive: Receive,
        lanes_of: Callable[[str], Lanes[Asked, Decided]],
    ) -> tuple[Till, Receipt, Said]:
        """Let a lane decide on the receipt in a request; its token is looked up along with it."""
        known = await self._known_till(scope)
        receipt = decode(_receipt, await _body(receive))
        check_own(known.till, receipt)
        lanes = lanes_of(known.till.programme)
        while (decided := await lanes.ask((known, receipt))) is None:
            self._known.clear()  # the token is good no more: refused, and counted, as a wrong one
            known = await self._known_till(scope)
        said, untold_until = decided
        if untold_until is None:
            return known.till, receipt, said
        return msgspec.structs.replace(known.till, untold_until=untold_until), receipt, said

    async def _known_till(self, scope: Scope) -> Known:
        """Give who asks: looked up the first time, and again with each batch.

        :raises Fault: as `kantis.api.access.let_in`
        """
        header = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                header = value
                break
        if (known := self._known.get(header)) is not None:
            return known
        token = bearer_in(header.decode("latin-1"))
        host = (scope.get("client") or ("",))[0]
        found = await sync_to_thread(find_token, self._pool, token, host, self._limits)
        till = Till(found, self._pool, self._limits, None)
        known = Known(sha256(token.encode()).digest(), till, till.warrant())
        self._known[header] = known
        return known

    # --- lanes -----------------------------------------------------------------------------

    def _booking(self, programme: str) -> Lanes[Asked, Decided]:
        return self._lanes(programme, BOOKING_LANES, _record)

    def _quoting(self, programme: str) -> Lanes[Asked, Decided]:
        return self._lanes(programme, 1, _quote)

    def _lanes(self, programme: str, lanes: int, decide: "Decide") -> Lanes[Asked, Decided]:
        if (opened := self._opened.get((programme, decide))) is None:

            def work(connection: psycopg.Connection, batch: Sequence[Asked]) -> list[Decided]:
                return _for_good_tokens(connection, programme, batch, decide)

            opened = Lanes(
                work, pool=self._pool, programme=programme, lanes=lanes, apart=self._account
            )
            self._opened[programme, decide] = opened
        return opened

    def _account(self, asked: Asked) -> int | str:
        """Give the account of a receipt's card, if it has been booked to before, else the card."""
        return self._account_of.get(asked[1].card, asked[1].card)

    def _remember(self, card: str, account_id: int) -> None:
        if len(self._account_of) >= CARDS_KEPT:
            self._account_of.clear()
        self._account_of[card] = account_id


# --- in a lane -----------------------------------------------------------------------------

Decide = Callable[[psycopg.Connection, str, Sequence[Asked]], Sequence[Said]]


def _for_good_tokens(
    connection: psycopg.Connection, programme: str, batch: Sequence[Asked], decide: Decide
) -> list[Decided]:
    """Decide for those whose token is still good: it may have been revoked, or have guessed."""
    tokens = recognize_all(connection, {known.token_hash for known, _ in batch}, at=now())
    good = [asked for asked in batch if asked[0].token_hash in tokens]
    said = iter(decide(connection, programme, good) if good else ())
    return [
        (next(said), token.untold_until) if (token := tokens.get(known.token_hash)) else None
        for known, _ in batch
    ]


def _record(
    connection: psycopg.Connection, programme: str, batch: Sequence[Asked]
) -> Sequence[Said]:
    sent = [Sent(receipt, known.warrant) for known, receipt in batch]
    return record_sent(connection, programme=programme, sent=sent, now=now())


def _quote(
    connection: psycopg.Connection, programme: str, batch: Sequence[Asked]
) -> Sequence[Said]:
    receipts = [receipt for _, receipt in batch]
    said = quote_all(connection, programme=programme, receipts=receipts, now=now())
    return [
        one if isinstance(one, Refusal) else Recorded(Raw(msgspec.json.encode(one))) for one in said
    ]


# --- over the wire -------------------------------------------------------------------------


async def _answer(scope: Scope, send: Send, asking: Awaitable[Recorded]) -> None:
    """Send what is said, or the problem that comes instead; bugs are logged and not told."""
    try:
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
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("The body ended too early.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(TooLarge.__doc__ or "")
    return body


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
