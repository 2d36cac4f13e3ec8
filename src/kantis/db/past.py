"""What happened to an account before, read back: receipts by their keys, histories in order."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache
from hashlib import sha256

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.bookkeeping import BOOK_OF
from kantis.core.events import AnyEvent, PastSale, Returned, Sale, order_of, sale_key_of
from kantis.core.periods import day_start, month_of, month_start
from kantis.core.programme import Programme
from kantis.core.refusals import SaleUnknown
from kantis.core.replay import Fold, refold
from kantis.core.spending import admit_payments
from kantis.core.standing import Decision, LotKey, Part, Standing, Transfer
from kantis.core.step import caught_up, is_late
from kantis.db.accounts import Account

_decode_event: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_decode_decision = msgspec.json.Decoder(Decision)
_decode_sale = msgspec.json.Decoder(Sale)
_decode_return = msgspec.json.Decoder(Returned)
_decode_standing = msgspec.json.Decoder(Standing)

INSTANT = timedelta(microseconds=1)
"""The least time between two instants."""

Happened = tuple[int, AnyEvent, Decision]
"""An event with its number in the account and with what was decided."""

Written = tuple[int, AnyEvent, bytes]
"""The same with the decision as JSON, as it is kept."""


class Known(Struct, frozen=True):
    """A receipt key that was used: its content's hash and where the answer lies."""

    content_hash: bytes
    account_id: int | None
    event_no: int | None
    answer: bytes
    content: bytes


class Past(Struct, frozen=True):
    """What a late event is folded from: where the account stood, and what has happened since.

    `sales` are those from before that something since then takes back.
    """

    standing: Standing
    since_on: date
    events: list[Happened]
    sales: dict[str, PastSale]

    def fold(self, programme: Programme) -> Fold:
        """Begin a fold where the account stood."""
        fold = Fold(programme, self.standing)
        fold.sales.update(self.sales)
        return fold


@lru_cache(maxsize=10_000)
@lru_cache(maxsize=1_000)  # a batch asks for each of its keys several times
def hash_of(key: str) -> bytes:
    """Give the hash under which a receipt's key is remembered."""
    return sha256(key.encode()).digest()


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
    connection: psycopg.Connection, account_id: int, *, since_at: datetime | None = None
) -> list[Happened]:
    """Give an account's events in their total order, all or those from an instant on."""
    rows = connection.execute(
        "SELECT event_no, content::text, decision::text FROM event WHERE account_id = %s"
        " AND (%s::timestamptz IS NULL OR at >= %s) ORDER BY at, rank, key",
        [account_id, since_at, since_at],
    ).fetchall()
    return [
        (number, _decode_event.decode(content), _decode_decision.decode(decision))
        for number, content, decision in rows
    ]


def written(connection: psycopg.Connection, account_ids: Sequence[int]) -> dict[int, list[Written]]:
    """Give the events of several accounts in their total order, decisions as they are kept."""
    rows = connection.execute(
        "SELECT account_id, event_no, content::text, decision::text FROM event"
        " WHERE account_id = ANY(%s) ORDER BY account_id, at, rank, key",
        [list(account_ids)],
    ).fetchall()
    found: dict[int, list[Written]] = {}
    for account_id, number, content, decision in rows:
        event = _decode_event.decode(content)
        found.setdefault(account_id, []).append((number, event, decision.encode()))
    return found


def transfers_of(
    connection: psycopg.Connection, account_ids: Sequence[int]
) -> dict[int, list[Transfer]]:
    """Give what was posted to accounts, added up by what it is about and by lot."""
    rows = connection.execute(
        "SELECT account_id, kind, clause, unit, entity, value_on, valid_until, earned_on,"
        " valid_from, sum(amount)::bigint"
        " FROM transfer JOIN posting USING (account_id, transfer_no)"
        " WHERE account_id = ANY(%s) AND book IN ('member', 'debt')"
        " GROUP BY account_id, kind, clause, unit, entity, value_on, valid_until, earned_on,"
        " valid_from",
        [list(account_ids)],
    ).fetchall()
    found: dict[int, list[Transfer]] = {}
    for account_id, kind, clause, unit, entity, value_on, *lot, amount in rows:
        part = Part(LotKey(*lot) if lot[0] is not None else None, amount)
        transfer = Transfer(kind, clause, unit, BOOK_OF[kind], entity, value_on, (part,))
        found.setdefault(account_id, []).append(transfer)
    return found


def past_before(
    connection: psycopg.Connection, programme: Programme, account_id: int, event: AnyEvent
) -> Past:
    """Give where an account stood before the month of a late event, and what came since.

    From the latest month start that is remembered and not after the event (§4b of the design):
    what a late receipt costs depends on how late it is and not on how old the account is.
    """
    row = connection.execute(
        "SELECT month_on, standing::text FROM snapshot"
        " WHERE account_id = %s AND month_on <= %s ORDER BY month_on DESC LIMIT 1",
        [account_id, month_start(month_of(programme.day(event.at)))],
    ).fetchone()
    if row is None:
        return Past(Standing(), date.min, history(connection, account_id), {})
    since_on, standing = row
    since_at = day_start(since_on, programme.zone)
    events = history(connection, account_id, since_at=since_at)
    sold = {one.key for _, one, _ in events if isinstance(one, Sale)}
    returns = [one for one in (event, *(e for _, e, _ in events)) if isinstance(one, Returned)]
    keys = {sale_key_of(one) for one in returns} - sold - {event.key}
    sales = _sales_before(connection, account_id, keys, since_at) if keys else {}
    return Past(_decode_standing.decode(standing), since_on, events, sales)


def _sales_before(
    connection: psycopg.Connection, account_id: int, keys: Iterable[str], until_at: datetime
) -> dict[str, PastSale]:
    """Give sales with what had come back of them before an instant."""
    wanted = list(keys)
    back: dict[str, dict[int, int]] = {key: {} for key in wanted}
    for key, content in connection.execute(
        "SELECT sale_key, content::text FROM event"
        " WHERE account_id = %s AND sale_key = ANY(%s) AND at < %s",
        [account_id, wanted, until_at],
    ).fetchall():
        for line in _decode_return.decode(content).document.lines:
            back[key][line.line] = back[key].get(line.line, 0) + line.amount_minor
    return {
        key: PastSale(_decode_sale.decode(content), _decode_decision.decode(decision), back[key])
        for key, content, decision in connection.execute(
            "SELECT key, content::text, decision::text FROM event"
            " WHERE account_id = %s AND key = ANY(%s) AND kind = 'sale'",
            [account_id, wanted],
        ).fetchall()
    }


def after_its_holds(connection: psycopg.Connection, account: Account, sale: Sale) -> Sale:
    """Put a sale behind the holds that it captures: a till's clock may be behind ours."""
    captured = {tender.hold for tender in sale.receipt.tenders if tender.hold}
    held = [hold.held_at for hold in account.standing.holds if hold.hold_id in captured]
    if over := captured - {hold.hold_id for hold in account.standing.holds}:
        rows = connection.execute(
            "SELECT at FROM event WHERE account_id = %s AND kind = 'held'"
            " AND content ->> 'hold_id' = ANY(%s)",
            [account.account_id, list(over)],
        ).fetchall()
        held += [at for (at,) in rows]
    if not held:
        return sale
    return msgspec.structs.replace(sale, at=max(sale.at, *(at + INSTANT for at in held)))


def check_payments(
    connection: psycopg.Connection, programme: Programme, account: Account, sale: Sale
) -> None:
    """Check what a sale pays with units: on what the account has now, also if it comes late.

    What was held was set aside for it. If it comes when the hold has run out, the hold is the
    one that there was at its time; what was done with it since becomes a debt.

    :raises Refusal: as `kantis.core.spending.admit_payments`
    """
    last = account.standing.last
    latest = sale.at if last is None else max(sale.at, last[0])
    now, _ = caught_up(programme, account.standing, at=latest)
    then = now
    if is_late(programme, account.standing, sale):
        held = {hold.hold_id for hold in account.standing.holds}
        if {tender.hold for tender in sale.receipt.tenders if tender.hold} - held:
            then = _standing_at(connection, programme, account.account_id, sale)
    admit_payments(programme, now, sale, then=then)


def _standing_at(
    connection: psycopg.Connection, programme: Programme, account_id: int, sale: Sale
) -> Standing:
    """Give where an account stood when a sale was made; a hold that a sale captured is gone."""
    past = past_before(connection, programme, account_id, sale)
    events = [event for _, event, _ in past.events]
    earlier = [event for event in events if order_of(event) < order_of(sale)]
    standing = refold(past.fold(programme), earlier, through=programme.day(sale.at)).standing
    then, _ = caught_up(programme, standing, at=sale.at)
    receipts = [event.receipt for event in events if isinstance(event, Sale)]
    real = [receipt for receipt in receipts if not receipt.training]
    captured = {tender.hold for receipt in real for tender in receipt.tenders}
    then.holds = tuple(hold for hold in then.holds if hold.hold_id not in captured)
    return then
