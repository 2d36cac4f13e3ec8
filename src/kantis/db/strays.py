"""Receipts without an account and returns that wait: taken in when what they lacked comes."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
import psycopg
from msgspec import Raw, Struct

from kantis.core.admission import Warrant, admit_return
from kantis.core.cards import Card, account_at, why_not_usable
from kantis.core.events import AnyEvent, Returned, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import Refusal
from kantis.core.standing import Decision
from kantis.db import past
from kantis.db.accounts import Account
from kantis.db.journal import Journal

_decode_receipt = msgspec.json.Decoder(Receipt)
_decode_return = msgspec.json.Decoder(Return)


class Stray(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A receipt or a return that waits for staff, and why."""

    key: str
    why: str
    recorded_at: datetime
    receipt: Receipt | None = None
    returned: Return | None = None


def meet(connection: psycopg.Connection, sale_keys: Iterable[str]) -> None:
    """Let a sale and its return that are recorded at the same moment wait for each other.

    Neither sees what the other has not committed: without this both could be kept and the
    return wait for ever. Whoever is second looks again and finds the first.
    """
    connection.execute("SELECT meet(%s)", [[past.hash_of(key) for key in sale_keys]])


def card_key(number: str) -> str:
    """Give the key by which a receipt meets the handing over of its card."""
    return f"card/{number}"


def take_waiting_returns(
    notes: Journal,
    programme: Programme,
    accounts: dict[int, Account],
    sale_keys: Iterable[str],
    warrant: Warrant,
) -> None:
    """Book the returns that waited for those of these sales that have just been saved.

    One that turns out to be refused (more comes back than was bought, or before it was sold by a
    slow clock) waits for staff: the till has long had its answer.
    """
    hashes = {past.hash_of(key): key for key in sale_keys}
    meet(notes.connection, hashes.values())
    rows = notes.connection.execute(
        "SELECT sale_hash, key, content::text, answer::text FROM stray"
        " WHERE sale_hash = ANY(%s) AND nothing <> ALL(for_staff()) ORDER BY key",
        [list(hashes)],
    ).fetchall()
    for sale_hash, key, content, answer in rows:
        sale_key = hashes[bytes(sale_hash)]
        sale = past.known(notes.connection, [sale_key]).get(bytes(sale_hash))
        if sale is None or sale.account_id is None:
            continue
        document = _decode_return.decode(content)
        returned = Returned(
            at=document.at,
            key=key,
            document=document,
            past=past.past_sale(notes.connection, sale_key, sale),
        )
        try:
            # Its time was judged when it came; what makes its sale known may be dated back.
            admit_return(programme, returned, now=max(notes.now, document.at))
        except Refusal as refusal:
            notes.connection.execute(
                "UPDATE stray SET nothing = %s WHERE key_hash = %s",
                [refusal.code, past.hash_of(key)],
            )
            continue
        _place(notes, programme, accounts[sale.account_id], returned, answer, warrant)


def take_receipts_of_cards(
    notes: Journal,
    programme: Programme,
    owners: Sequence[tuple[Account, Card]],
    warrant: Warrant,
) -> None:
    """Fold in the receipts of cards that, as it turns out, were active when they were made.

    Each card comes with its account. What came back of them meanwhile has waited and is taken
    in too.
    """
    taken = []
    meet(notes.connection, [card_key(card.number) for _, card in owners])
    by_number = {card.number: (account, card) for account, card in owners}
    rows = notes.connection.execute(
        "SELECT card_number, s.key, content::text, answer::text, chain, entity FROM stray s"
        " JOIN store ON store.programme = s.programme AND store.store = content ->> 'store'"
        " WHERE s.programme = %s AND card_number = ANY(%s) AND nothing <> ALL(for_staff())"
        " ORDER BY s.key",
        [programme.name, list(by_number)],
    ).fetchall()
    for number, key, content, answer, chain, entity in rows:
        account, card = by_number[number]
        receipt = _decode_receipt.decode(content)
        terms = programme.on(programme.day(receipt.at)).terms
        if why_not_usable(terms, card, at=receipt.at):
            continue
        if account_at(card, at=receipt.at) == account.account_id:
            sale = Sale(at=receipt.at, key=key, receipt=receipt, chain=chain, entity=entity)
            _place(notes, programme, account, sale, answer, warrant)
            taken.append(key)
    if taken:
        accounts = {account.account_id: account for account, _ in owners}
        take_waiting_returns(notes, programme, accounts, taken, warrant)


def claim(
    notes: Journal, programme: Programme, account: Account, key: str, warrant: Warrant
) -> Decision | None:
    """Give a receipt for which no card was read to an account, if there is one of this key."""
    # Of two who claim it at once, one waits here and finds nothing.
    row = notes.connection.execute(
        "SELECT content::text, answer::text, chain, entity FROM stray JOIN store"
        " ON store.programme = stray.programme AND store.store = content ->> 'store'"
        " WHERE key_hash = %s AND nothing = 'no-card' FOR UPDATE OF stray",
        [past.hash_of(key)],
    ).fetchone()
    if row is None:
        return None
    content, answer, chain, entity = row
    receipt = _decode_receipt.decode(content)
    sale = Sale(at=receipt.at, key=key, receipt=receipt, chain=chain, entity=entity)
    decision = _place(notes, programme, account, sale, answer, warrant)
    take_waiting_returns(notes, programme, {account.account_id: account}, [key], warrant)
    return decision


def waiting(connection: psycopg.Connection, programme: str, *, key: str = "") -> list[Stray]:
    """Give what waits for staff, oldest first: all, or the one of a key."""
    rows = connection.execute(
        "SELECT key, nothing, recorded_at, content::text, sale_hash IS NULL"
        " FROM stray WHERE programme = %s AND nothing = ANY(for_staff()) AND dismissed_at IS NULL"
        " AND (%s = '' OR key_hash = %s) ORDER BY recorded_at, key",
        [programme, key, past.hash_of(key)],
    ).fetchall()
    return [
        Stray(
            key=found,
            why=why,
            recorded_at=recorded_at,
            receipt=_decode_receipt.decode(content) if is_sale else None,
            returned=None if is_sale else _decode_return.decode(content),
        )
        for found, why, recorded_at, content, is_sale in rows
    ]


def take(
    notes: Journal, programme: Programme, account: Account, event: AnyEvent, warrant: Warrant
) -> Decision:
    """Book a stray that staff have accepted, and what waited for it."""
    row = notes.connection.execute(
        "SELECT answer::text FROM stray WHERE key_hash = %s", [past.hash_of(event.key)]
    ).fetchone()
    assert row is not None, "the caller has met its key and found it"
    decision = _place(notes, programme, account, event, row[0], warrant)
    if isinstance(event, Sale):
        accounts = {account.account_id: account}
        take_waiting_returns(notes, programme, accounts, [event.key], warrant)
    return decision


def dismiss(notes: Journal, key: str, warrant: Warrant) -> None:
    """Keep that a stray is never to be booked, by whom and why."""
    notes.connection.execute(
        "UPDATE stray SET dismissed_at = %s, dismissed_by = %s, dismissed_why = %s"
        " WHERE key_hash = %s",
        [notes.now, warrant.actor, warrant.reason, past.hash_of(key)],
    )


def _place(
    notes: Journal,
    programme: Programme,
    account: Account,
    event: AnyEvent,
    answer: str,
    warrant: Warrant,
) -> Decision:
    """Move an account on by a stray; its first answer stays its answer."""
    decision = notes.move(programme, account, event, warrant)
    notes.answer(Raw(answer.encode()))
    notes.place(event.key, account)
    notes.save()
    return decision
