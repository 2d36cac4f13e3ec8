"""An account's history: moved on by events, folded again for late ones, saved in one call."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
import psycopg

from kantis.core.admission import Warrant, check_clock, check_is_other, check_time
from kantis.core.answers import Answer, answer_of
from kantis.core.events import AnyEvent, Returned, Sale, order_of, sale_key_of
from kantis.core.periods import month_of, month_start
from kantis.core.programme import Programme
from kantis.core.refusals import KeyReused, Refusal
from kantis.core.replay import corrections, refold
from kantis.core.standing import CardsDue, Decision, Standing, Transfer, month_begun
from kantis.core.step import caught_up, is_late, step
from kantis.core.upkeep import next_due
from kantis.db import accounts, programmes, refused
from kantis.db.accounts import Account
from kantis.db.past import INSTANT, Happened, Past, hash_of, past_before

Asked = TypeVar("Asked", bound=AnyEvent)

CALENDAR = 0
"""The event number of transfers that no event caused."""

TABLES = (
    "account",
    "event",
    "transfer",
    "posting",
    "receipt_key",
    "stray",
    "card_order",
    "tier_change",
    "review",
    "snapshot",
    "capture",
    "refused",
    "decision",
    "forgotten",
    "placed",
)
"""What `book` takes rows for, in the order of its parameters."""

_BOOK = f"SELECT book(%s, %s, {', '.join(['%s::text::json'] * len(TABLES))})"

_encode = msgspec.json.Encoder().encode
_decode_event: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_decode_answer = msgspec.json.Decoder(Answer)


class Journal:
    """The decisions of one transaction, collected and then saved with one call of `book`."""

    def __init__(self, connection: psycopg.Connection, *, now: datetime) -> None:
        """Collect for a transaction on `connection`; `now` is when it is recorded."""
        self.connection = connection
        self.now = now
        self._accounts: dict[int, tuple[Programme, Account]] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
        self._documents: list[bytes] = []

    def move(
        self, programme: Programme, account: Account, event: AnyEvent, warrant: Warrant
    ) -> Decision:
        """Move an account on by an event and note what is to be saved.

        A late event is put in its place: what came after it is folded again, and what comes
        out otherwise is posted as corrections that name this event.
        """
        check_is_other(warrant)
        account.last_event += 1
        if not is_late(programme, account.standing, event):
            before = account.standing
            account.standing, decision = step(programme, before, event)
            self._note_month(account, before)
            if decision.calendar is not None:
                self._note(account, decision.calendar, event_no=CALENDAR)
            self._note(account, decision, event_no=account.last_event)
        else:
            decision = self._move_late(programme, account, event)
        self._accounts[account.account_id] = (programme, account)
        self._rows["event"].append(self._event_row(account, event, decision, warrant))
        if isinstance(event, Sale):
            self._note_captures(account, event)
        return decision

    def follow_calendar(self, programme: Programme, account: Account, *, at: datetime) -> Decision:
        """Move an account on to an instant at which nothing else happens to it."""
        before = account.standing
        account.standing, decision = caught_up(programme, before, at=at)
        self._note_month(account, before)
        self._note(account, decision, event_no=CALENDAR)
        self._accounts[account.account_id] = (programme, account)
        return decision

    def answer(self, answer: object) -> None:
        """Keep what was answered to the event noted last."""
        self._rows["event"][-1]["answer"] = self._document(_encode(answer))

    def remember(self, key: str, content_hash: bytes, account: Account | None) -> None:
        """Remember a receipt's key for ever, for the event noted last or for none."""
        self._rows["receipt_key"].append(
            {
                "key_hash": hash_of(key).hex(),
                "content_hash": content_hash.hex(),
                "account_id": account and account.account_id,
                "event_no": account and account.last_event,
            }
        )

    def refuse(self, key: str, content_hash: bytes, refusal: Refusal) -> None:
        """Remember a refusal for ever, so that the same request asked again gets it again."""
        self._rows["refused"].append(refused.row(key, content_hash, refusal))

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
        self._rows["stray"].append(
            {
                "key_hash": hash_of(key).hex(),
                "programme": programme,
                "key": key,
                "sale_hash": hash_of(sale_key).hex() if sale_key else None,
                "card_number": card_number,
                "nothing": nothing,
                "content": self._document(_encode(content)),
                "answer": self._document(_encode(answer)),
            }
        )

    def place(self, key: str, account: Account) -> None:
        """Let a stray's key lead to the event noted last from now on; it is a stray no more."""
        self._rows["placed"].append(
            {
                "key_hash": hash_of(key).hex(),
                "account_id": account.account_id,
                "event_no": account.last_event,
            }
        )

    def save(self) -> None:
        """Write everything noted so far; the caller's transaction commits it."""
        self._rows["account"] = [
            {
                "account_id": account.account_id,
                "standing": self._document(_encode(account.standing)),
                "last_event": account.last_event,
                "last_transfer": account.last_transfer,
                "next_due_on": next_due(programme, account.standing),
            }
            for programme, account in self._accounts.values()
        ]
        if any(self._rows.values()):
            tables = self._rows.values()
            encoded = [_encode(table).decode() if table else None for table in tables]
            documents = b"\n".join(self._documents).decode()
            self.connection.execute(_BOOK, [self.now, documents, *encoded])
        self._accounts.clear()
        self._documents.clear()
        for rows in self._rows.values():
            rows.clear()

    def _event_row(
        self, account: Account, event: AnyEvent, decision: Decision, warrant: Warrant
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
            "content": self._document(_encode(event)),
            "decision": self._document(kept_decision(decision)),
            "actor": warrant.actor,
            "reason": warrant.reason,
            "approved_by": warrant.approved_by,
        }

    def _document(self, encoded: bytes) -> int:
        """Note a document to be kept as it is, one line of JSON, and give its number."""
        assert b"\n" not in encoded, "each line is a document"
        self._documents.append(encoded)
        return len(self._documents)

    def _move_late(self, programme: Programme, account: Account, event: AnyEvent) -> Decision:
        """Fold what came since with a late event in its place; post the difference.

        What was posted is what the fold without the event says: `kantis audit` proves it.
        """
        self.save()
        if isinstance(event, Returned):
            # Its sale is looked up in the fold: returns after it, which were booked before, must
            # not count as what came back earlier.
            event = msgspec.structs.replace(event, past=None)
        past = past_before(self.connection, programme, account.account_id, event)
        since = [one for _, one, _ in past.events]
        through = account.standing.through_on
        before = refold(past.fold(programme), since, through=through)
        after = refold(past.fold(programme), [event, *since], through=through)
        assert before.standing == account.standing, "a standing is the fold of its history"
        account.standing = after.standing
        self._post(
            account,
            corrections(before.transfers(), after.transfers()),
            event_no=account.last_event,
            corrects=True,
        )
        by_key = {one.key: decision for one, decision in after.decided}
        self._redecide(account.account_id, past.events, by_key)
        self._order_missing_cards(account, past, after.parts())
        self._forget(account, past)
        for part in after.parts():
            self._note_tiers(account, part)
        for month_on, standing in after.snapshots.items():
            if month_on > past.since_on:
                self._note_snapshot(account, month_on, standing)
        return by_key[event.key]

    def _redecide(
        self, account_id: int, before: Iterable[Happened], by_key: dict[str, Decision]
    ) -> None:
        """Keep what the fold now says of earlier events; what was answered stays as it was."""
        for event_no, event, old in before:
            if (new := _without_calendar(by_key[event.key])) != old:
                self._rows["decision"].append(
                    {
                        "account_id": account_id,
                        "event_no": event_no,
                        "decision": self._document(_encode(new)),
                    }
                )

    def _forget(self, account: Account, past: Past) -> None:
        """Let go what the fold said of tiers and months since then; it is noted anew."""
        reached_on = past.standing.through_on
        self._rows["forgotten"].append(
            {
                "account_id": account.account_id,
                "tiers_after": reached_on,
                # A review is named for the month before the day on which it was made.
                "reviews_from": month_start(month_of(reached_on)),
                "snapshots_after": past.since_on,
            }
        )

    def _note(self, account: Account, decision: Decision, *, event_no: int) -> None:
        """Note all that a decision comes to."""
        self._post(account, decision.transfers, event_no=event_no)
        self._order_cards(account, decision.cards)
        self._note_tiers(account, decision)

    def _note_month(self, account: Account, before: Standing) -> None:
        """Keep where the account stood if a month has begun: late events are folded from there."""
        if (month_on := month_begun(before, account.standing)) is not None:
            self._note_snapshot(account, month_on, before)

    def _note_snapshot(self, account: Account, month_on: date, standing: Standing) -> None:
        self._rows["snapshot"].append(
            {
                "account_id": account.account_id,
                "month_on": month_on,
                "standing": self._document(_encode(standing)),
            }
        )

    def _note_captures(self, account: Account, sale: Sale) -> None:
        """Note which holds a sale captures: each is captured once, as PostgreSQL sees to."""
        if sale.receipt.training:
            return  # it moves nothing, so that the hold is still there
        self._rows["capture"].extend(
            {
                "account_id": account.account_id,
                "hold_id": tender.hold,
                "event_no": account.last_event,
            }
            for tender in sale.receipt.tenders
            if tender.hold
        )

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
            self._rows["transfer"].append(
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
                }
            )
            self._rows["posting"].extend(
                {**key, "posting_no": number, "unit": transfer.unit, **posting}
                for number, posting in enumerate(_postings(transfer), start=1)
            )

    def _note_tiers(self, account: Account, decision: Decision) -> None:
        self._rows["tier_change"].extend(
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
        self._rows["review"].extend(
            {"account_id": account.account_id, "month_on": month, "tier": tier}
            for month, tier in decision.reviews
        )

    def _order_cards(self, account: Account, cards: Iterable[CardsDue]) -> None:
        """Note the cards to be ordered; `order_no` counts within the event that is noted last."""
        for number, due in enumerate(cards, start=1):
            self._rows["card_order"].append(
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

    def _order_missing_cards(
        self, account: Account, past: Past, decisions: Iterable[Decision]
    ) -> None:
        """Order what the fold now says and was not ordered yet; what was ordered is a fact."""
        ordered = Counter(
            {
                (card, role): count
                for card, role, count in self.connection.execute(
                    "SELECT card, role, sum(count)::int FROM card_order"
                    " WHERE account_id = %s AND ordered_on > %s GROUP BY card, role",
                    [account.account_id, past.standing.through_on],
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
    now: datetime | None = None,
) -> Answer:
    """Let one thing happen to one account, in one transaction: lock, load, `decide`, save.

    `decide` admits what was asked for, from the standing at that moment. Something that a
    desk asks for happens when it is asked: if a till's clock has put a receipt after that,
    it happens right after the receipt. The event's key is its idempotency key: asked again,
    the first answer is given again, and so is a first refusal that depended on the moment.
    `now` is our own time if it is a till that says when.

    :raises AccountUnknown:
    :raises TimeImpossible: the till's clock and ours are too far apart
    :raises KeyReused: the key was used for something else on this account
    :raises Refusal: whatever `decide` refuses
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        account = accounts.lock_one(connection, programme, account_id)
        if (before := _answered(connection, account_id, asked)) is not None:
            return before
        key, content_hash = f"account/{account_id}/{asked.key}", _content_hash(asked)
        refusal = refused.recall(connection, [key]).get((hash_of(key), content_hash))
        if refusal is None:
            try:
                check_clock(asked.at, now=now or asked.at)
                return _decided(connection, programme, account, asked, warrant, decide)
            except Refusal as reason:
                refusal = reason
            if refusal.is_remembered:
                journal = Journal(connection, now=now or asked.at)
                journal.refuse(key, content_hash, refusal)
                journal.save()
    raise refusal


def _decided(
    connection: psycopg.Connection,
    programme: str,
    account: Account,
    asked: Asked,
    warrant: Warrant,
    decide: Callable[[Programme, Standing, Asked], AnyEvent],
) -> Answer:
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


def _content_hash(asked: AnyEvent) -> bytes:
    """Give the hash of what was asked for, whenever that was."""
    content = msgspec.to_builtins(asked)
    return sha256(_encode({**content, "at": None, "until_at": None})).digest()


def _answered(connection: psycopg.Connection, account_id: int, asked: AnyEvent) -> Answer | None:
    """Give the first answer to an event that was asked for before, whenever that was."""
    row = connection.execute(
        "SELECT content::text, answer::text FROM event WHERE account_id = %s AND key = %s",
        [account_id, asked.key],
    ).fetchone()
    if row is None:
        return None
    if _content_hash(_decode_event.decode(row[0])) != _content_hash(asked):
        raise KeyReused(key=asked.key)
    return _decode_answer.decode(row[1])


def kept_decision(decision: Decision) -> bytes:
    """Give a decision as JSON, as it is kept."""
    return _encode(_without_calendar(decision))


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
