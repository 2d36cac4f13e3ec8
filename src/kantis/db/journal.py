"""An account's history: moved on by events, folded again for late ones, saved in one call."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
import psycopg
from msgspec import Raw, Struct

from kantis.core.admission import Warrant, check_is_other, check_time
from kantis.core.answers import Answer, answer_of
from kantis.core.bookkeeping import BOOK_OF
from kantis.core.events import AnyEvent, Held, PastSale, Returned, Sale, order_of, sale_key_of
from kantis.core.periods import day_start
from kantis.core.programme import Programme
from kantis.core.refusals import KeyReused, SaleUnknown
from kantis.core.replay import corrections, refold
from kantis.core.standing import CardsDue, Decision, LotKey, Part, Standing, Transfer
from kantis.core.step import caught_up, is_late, step
from kantis.core.upkeep import next_due
from kantis.db import accounts, programmes
from kantis.db.accounts import Account

Asked = TypeVar("Asked", bound=AnyEvent)

INSTANT = timedelta(microseconds=1)
"""The least time between two instants."""

CALENDAR = 0
"""The event number of transfers that no event caused."""

_encode = msgspec.json.Encoder().encode
_decode_event: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_decode_decision = msgspec.json.Decoder(Decision)
_decode_sale = msgspec.json.Decoder(Sale)
_decode_return = msgspec.json.Decoder(Returned)
_decode_answer = msgspec.json.Decoder(Answer)


class Known(Struct, frozen=True):
    """A receipt key that was used: its content's hash and where the answer lies."""

    content_hash: bytes
    account_id: int | None
    event_no: int | None
    answer: bytes
    content: bytes


@lru_cache(maxsize=10_000)
def hash_of(key: str) -> bytes:
    """Give the hash under which a receipt's key is remembered."""
    return sha256(key.encode()).digest()


class Journal:
    """The decisions of one transaction, collected and then saved with one call of `book`."""

    def __init__(self, connection: psycopg.Connection, *, now: datetime) -> None:
        """Collect for a transaction on `connection`; `now` is when it is recorded."""
        self.connection = connection
        self.now = now
        self._accounts: dict[int, tuple[Programme, Account]] = {}
        self._events: list[dict[str, Any]] = []
        self._transfers: list[dict[str, Any]] = []
        self._postings: list[dict[str, Any]] = []
        self._keys: list[dict[str, Any]] = []
        self._strays: list[dict[str, Any]] = []
        self._orders: list[dict[str, Any]] = []
        self._tier_changes: list[dict[str, Any]] = []
        self._reviews: list[dict[str, Any]] = []

    def move(
        self, programme: Programme, account: Account, event: AnyEvent, warrant: Warrant
    ) -> Decision:
        """Move an account on by an event and note what is to be saved.

        A late event is put in its place: the history is folded again and what comes out
        otherwise is posted as corrections that name this event.
        """
        check_is_other(warrant)
        account.last_event += 1
        if not is_late(programme, account.standing, event):
            account.standing, decision = step(programme, account.standing, event)
            if decision.calendar is not None:
                self._note(account, decision.calendar, event_no=CALENDAR)
            self._note(account, decision, event_no=account.last_event)
        else:
            decision = self._move_late(programme, account, event)
        self._accounts[account.account_id] = (programme, account)
        self._events.append(_event_row(account, event, decision, warrant, self.now))
        return decision

    def follow_calendar(self, programme: Programme, account: Account, *, at: datetime) -> Decision:
        """Move an account on to an instant at which nothing else happens to it."""
        account.standing, decision = caught_up(programme, account.standing, at=at)
        self._note(account, decision, event_no=CALENDAR)
        self._accounts[account.account_id] = (programme, account)
        return decision

    def answer(self, answer: object) -> None:
        """Keep what was answered to the event noted last."""
        self._events[-1]["answer"] = Raw(_encode(answer))

    def remember(self, key: str, content_hash: bytes, account: Account | None) -> None:
        """Remember a receipt's key for ever, for the event noted last or for none."""
        self._keys.append(
            {
                "key_hash": hash_of(key).hex(),
                "content_hash": content_hash.hex(),
                "account_id": account and account.account_id,
                "event_no": account and account.last_event,
            }
        )

    def keep_stray(
        self,
        *,
        programme: str,
        key: str,
        nothing: str,
        content: object,
        answer: object,
        card_number: str = "",
        sale_key: str = "",
    ) -> None:
        """Keep a receipt that stands for no account, or a return whose sale has not come."""
        self._strays.append(
            {
                "key_hash": hash_of(key).hex(),
                "programme": programme,
                "key": key,
                "sale_hash": hash_of(sale_key).hex() if sale_key else None,
                "card_number": card_number,
                "nothing": nothing,
                "content": Raw(_encode(content)),
                "answer": Raw(_encode(answer)),
                "recorded_at": self.now,
            }
        )

    def save(self) -> None:
        """Write everything noted so far; the caller's transaction commits it."""
        accounts = [
            {
                "account_id": account.account_id,
                "standing": Raw(_encode(account.standing)),
                "last_event": account.last_event,
                "last_transfer": account.last_transfer,
                "next_due_on": next_due(programme, account.standing),
            }
            for programme, account in self._accounts.values()
        ]
        tables: tuple[list[dict[str, Any]], ...] = (
            accounts,
            self._events,
            self._transfers,
            self._postings,
            self._keys,
            self._strays,
            self._orders,
            self._tier_changes,
            self._reviews,
        )
        if any(tables):
            self.connection.execute(
                f"SELECT book({', '.join(['%s::text::json'] * len(tables))})",
                [_encode(rows).decode() if rows else None for rows in tables],
            )
        self._accounts.clear()
        for rows in tables[1:]:
            rows.clear()

    def _move_late(self, programme: Programme, account: Account, event: AnyEvent) -> Decision:
        """Fold the account's whole history with a late event in its place; post the difference."""
        self.save()
        if isinstance(event, Returned):
            # Its sale is looked up in the fold: returns after it, which were booked before, must
            # not count as what came back earlier.
            event = msgspec.structs.replace(event, past=None)
        before = history(self.connection, account.account_id)
        standing, decided = refold(programme, [event, *(past for _, past, _ in before)])
        through = max(standing.through_on, account.standing.through_on)
        standing, calendar = caught_up(programme, standing, at=day_start(through, programme.zone))
        account.standing = standing
        parts = [part for _, decision in decided for part in decision.parts()] + [calendar]
        right = [transfer for part in parts for transfer in part.transfers]
        posted = transfers_of(self.connection, account.account_id)
        self._post(account, corrections(posted, right), event_no=account.last_event, corrects=True)
        by_key = {one.key: decision for one, decision in decided}
        self._redecide(account.account_id, before, by_key)
        self._order_missing_cards(account, parts)
        for table in ("tier_change", "review"):
            self.connection.execute(
                f"DELETE FROM {table} WHERE account_id = %s",  # noqa: S608 - two names of ours
                [account.account_id],
            )
        for part in parts:
            self._note_tiers(account, part)
        return by_key[event.key]

    def _redecide(
        self,
        account_id: int,
        before: Iterable[tuple[int, AnyEvent, Decision]],
        by_key: dict[str, Decision],
    ) -> None:
        """Keep what the fold now says of earlier events; what was answered stays as it was."""
        for event_no, event, old in before:
            if (new := _without_calendar(by_key[event.key])) != old:
                self.connection.execute(
                    "UPDATE event SET decision = %s WHERE account_id = %s AND event_no = %s",
                    [_encode(new).decode(), account_id, event_no],
                )

    def _note(self, account: Account, decision: Decision, *, event_no: int) -> None:
        """Note all that a decision comes to."""
        self._post(account, decision.transfers, event_no=event_no)
        self._order_cards(account, decision.cards)
        self._note_tiers(account, decision)

    def _post(
        self,
        account: Account,
        transfers: Iterable[Transfer],
        *,
        event_no: int,
        corrects: bool = False,
    ) -> None:
        """Note transfers with their postings: the member's lots and debt, then the other side."""
        for transfer in transfers:
            account.last_transfer += 1
            key = {"account_id": account.account_id, "transfer_no": account.last_transfer}
            self._transfers.append(
                {
                    **key,
                    "event_no": event_no,
                    "kind": transfer.kind,
                    "clause": transfer.clause,
                    "unit": transfer.unit,
                    "entity": transfer.entity,
                    "value_on": transfer.value_on,
                    "corrects": corrects,
                    "postings": len(transfer.parts) + (transfer.amount != 0),
                    "posted_at": self.now,
                }
            )
            self._postings.extend(
                {**key, "posting_no": number, "unit": transfer.unit, **posting}
                for number, posting in enumerate(_postings(transfer), start=1)
            )

    def _note_tiers(self, account: Account, decision: Decision) -> None:
        self._tier_changes.extend(
            {
                "account_id": account.account_id,
                "from_on": change.on,
                "old": change.old,
                "new": change.new,
                "until_on": change.until,
                "clause": change.clause,
            }
            for change in decision.tier_changes
        )
        self._reviews.extend(
            {"account_id": account.account_id, "month_on": month, "tier": tier}
            for month, tier in decision.reviews
        )

    def _order_cards(self, account: Account, cards: Iterable[CardsDue]) -> None:
        """Note the cards to be ordered; `order_no` counts within the event that is noted last."""
        for number, due in enumerate(cards, start=1):
            self._orders.append(
                {
                    "account_id": account.account_id,
                    "event_no": account.last_event,
                    "order_no": number,
                    "card": due.card,
                    "role": due.role,
                    "count": due.count,
                    "clause": due.clause,
                    "ordered_on": due.on,
                }
            )

    def _order_missing_cards(self, account: Account, decisions: Iterable[Decision]) -> None:
        """Order what the fold now says and was not ordered yet; what was ordered is a fact."""
        ordered = Counter(
            {
                (card, role): count
                for card, role, count in self.connection.execute(
                    "SELECT card, role, sum(count)::int FROM card_order WHERE account_id = %s"
                    " GROUP BY card, role",
                    [account.account_id],
                ).fetchall()
            }
        )
        missing = []
        for due in (due for decision in decisions for due in decision.cards):
            if ordered[due.card, due.role] >= due.count:
                ordered[due.card, due.role] -= due.count
            else:
                missing.append(due)
        self._order_cards(account, missing)


def happen(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    asked: Asked,
    warrant: Warrant,
    decide: Callable[[Programme, Standing, Asked], AnyEvent],
) -> Answer:
    """Let one thing happen to one account: lock, load, `decide`, save.

    `decide` admits what was asked for, from the standing at that moment. Something that a
    desk asks for happens when it is asked: if a till's clock has put a receipt after that,
    it happens right after the receipt. The event's key is its idempotency key: asked again,
    the first answer is given again.

    :raises AccountUnknown:
    :raises KeyReused: the key was used for something else on this account
    :raises Refusal: whatever `decide` refuses
    """
    programmes.hold_still(connection, programme)
    account = accounts.lock_one(connection, programme, account_id)
    if (before := _answered(connection, account_id, asked)) is not None:
        return before
    terms = programmes.load(connection, programme)
    check_time(terms, asked.at, now=asked.at)
    last = account.standing.last
    at = asked.at if last is None else max(asked.at, last[0] + INSTANT)
    standing, _ = caught_up(terms, account.standing, at=at)
    event = decide(terms, standing, msgspec.structs.replace(asked, at=at))
    journal = Journal(connection, now=asked.at)
    decision = journal.move(terms, account, event, warrant)
    answer = answer_of(event.key, decision, account.standing)
    journal.answer(answer)
    journal.save()
    return answer


def _answered(connection: psycopg.Connection, account_id: int, asked: AnyEvent) -> Answer | None:
    """Give the first answer to an event that was asked for before, whenever that was."""
    row = connection.execute(
        "SELECT content::text, answer::text FROM event WHERE account_id = %s AND key = %s",
        [account_id, asked.key],
    ).fetchone()
    if row is None:
        return None
    before = _decode_event.decode(row[0])
    moments = {"at": asked.at} | ({"until_at": asked.until_at} if isinstance(asked, Held) else {})
    if type(before) is not type(asked) or msgspec.structs.replace(before, **moments) != asked:
        raise KeyReused(key=asked.key)
    return _decode_answer.decode(row[1])


def known(connection: psycopg.Connection, keys: Iterable[str]) -> dict[bytes, Known]:
    """Give what is remembered of receipt keys, by their hash."""
    rows = connection.execute(
        "SELECT k.key_hash, k.content_hash, k.account_id, k.event_no,"
        " coalesce(e.answer, s.answer)::text, coalesce(e.content, s.content)::text"
        " FROM receipt_key k LEFT JOIN event e USING (account_id, event_no)"
        " LEFT JOIN stray s USING (key_hash) WHERE k.key_hash = ANY(%s)",
        [[hash_of(key) for key in keys]],
    ).fetchall()
    return {
        bytes(row[0]): Known(
            bytes(row[1]), row[2], row[3], (row[4] or "").encode(), (row[5] or "").encode()
        )
        for row in rows
    }


def find_sale(connection: psycopg.Connection, receipt: str) -> tuple[str, int, str, str] | None:
    """Give the programme, account, content and decision of a booked receipt.

    `receipt` is its key, or its number where only one receipt has it.
    """
    column = "key" if "/" in receipt else "content #>> '{receipt,number}'"
    rows = connection.execute(
        "SELECT programme, account_id, content::text, decision::text FROM event"  # noqa: S608
        f" JOIN account USING (account_id) WHERE {column} = %s"
        " AND event.kind = 'sale' LIMIT 2",
        [receipt],
    ).fetchall()
    return rows[0] if len(rows) == 1 else None


def past_sale(connection: psycopg.Connection, sale_key: str, sale: Known) -> PastSale:
    """Give what a return needs to know of its sale: what was decided, what came back before.

    :raises SaleUnknown: the key is another return's
    """
    row = connection.execute(
        "SELECT content::text, decision::text FROM event"
        " WHERE account_id = %s AND event_no = %s AND kind = 'sale'",
        [sale.account_id, sale.event_no],
    ).fetchone()
    if row is None:
        raise SaleUnknown(sale=sale_key)
    returned: dict[int, int] = {}
    for (content,) in connection.execute(
        "SELECT content::text FROM event WHERE account_id = %s AND sale_key = %s",
        [sale.account_id, sale_key],
    ).fetchall():
        for line in _decode_return.decode(content).document.lines:
            returned[line.line] = returned.get(line.line, 0) + line.amount_minor
    return PastSale(_decode_sale.decode(row[0]), _decode_decision.decode(row[1]), returned)


def history(
    connection: psycopg.Connection, account_id: int
) -> list[tuple[int, AnyEvent, Decision]]:
    """Give an account's events in their total order, each with its number and its decision."""
    rows = connection.execute(
        "SELECT event_no, content::text, decision::text FROM event WHERE account_id = %s"
        " ORDER BY at, rank, key",
        [account_id],
    ).fetchall()
    return [
        (number, _decode_event.decode(content), _decode_decision.decode(decision))
        for number, content, decision in rows
    ]


def transfers_of(connection: psycopg.Connection, account_id: int) -> list[Transfer]:
    """Give what was posted to an account, added up by what it is about and by lot."""
    rows = connection.execute(
        "SELECT kind, clause, unit, entity, value_on, valid_until, earned_on, valid_from,"
        " sum(amount)::bigint FROM transfer JOIN posting USING (account_id, transfer_no)"
        " WHERE account_id = %s AND book IN ('member', 'debt')"
        " GROUP BY kind, clause, unit, entity, value_on, valid_until, earned_on, valid_from",
        [account_id],
    ).fetchall()
    return [
        Transfer(
            kind,
            clause,
            unit,
            BOOK_OF[kind],
            entity,
            value_on,
            (Part(LotKey(*lot) if lot[0] is not None else None, amount),),
        )
        for kind, clause, unit, entity, value_on, *lot, amount in rows
    ]


def _event_row(
    account: Account, event: AnyEvent, decision: Decision, warrant: Warrant, now: datetime
) -> dict[str, Any]:
    at, rank, key = order_of(event)
    sale_key = ""
    if isinstance(event, Returned):
        sale_key = sale_key_of(event)
        event = msgspec.structs.replace(event, past=None)
    return {
        "account_id": account.account_id,
        "event_no": account.last_event,
        "kind": type(event).__struct_config__.tag,
        "at": at,
        "rank": rank,
        "key": key,
        "sale_key": sale_key or None,
        "content": Raw(_encode(event)),
        "decision": Raw(_encode(_without_calendar(decision))),
        "actor": warrant.actor,
        "reason": warrant.reason,
        "approved_by": warrant.approved_by,
        "recorded_at": now,
    }


def _without_calendar(decision: Decision) -> Decision:
    """Give a decision as it is kept: when the calendar was followed is of no matter to it."""
    if decision.calendar is None:
        return decision
    return msgspec.structs.replace(decision, calendar=None)


def _postings(transfer: Transfer) -> Iterator[dict[str, Any]]:
    for part in transfer.parts:
        if part.lot is None:
            yield {"book": "debt", "amount": part.amount}
        else:
            yield {
                "book": "member",
                "amount": part.amount,
                "valid_until": part.lot.valid_until,
                "earned_on": part.lot.earned_on,
                "valid_from": part.lot.valid_from,
            }
    if transfer.amount:
        yield {"book": transfer.book, "amount": -transfer.amount}
