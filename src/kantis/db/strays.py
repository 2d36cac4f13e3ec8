"""Receipts without an account and returns that wait: taken in when what they lacked comes."""

from collections.abc import Iterable

import msgspec
import psycopg
from msgspec import Raw

from kantis.core.admission import Warrant, admit_return
from kantis.core.cards import Card, account_at, why_not_usable
from kantis.core.events import AnyEvent, Returned, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import Refusal
from kantis.core.standing import Decision
from kantis.db import journal
from kantis.db.accounts import Account
from kantis.db.journal import Journal

_decode_receipt = msgspec.json.Decoder(Receipt)
_decode_return = msgspec.json.Decoder(Return)


def meet(connection: psycopg.Connection, sale_keys: Iterable[str]) -> None:
    """Let a sale and its return that are recorded at the same moment wait for each other.

    Neither sees what the other has not committed: without this both could be kept and the
    return wait for ever. Whoever is second looks again and finds the first.
    """
    numbers = sorted(int.from_bytes(journal.hash_of(key)[:8], signed=True) for key in sale_keys)
    connection.execute(
        "SELECT count(pg_advisory_xact_lock(n)) FROM unnest(%s::bigint[]) n", [numbers]
    )


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

    One that turns out to be refused (more comes back than was bought) goes on waiting: staff
    decide, and the till has long had its answer.
    """
    hashes = {journal.hash_of(key): key for key in sale_keys}
    meet(notes.connection, hashes.values())
    rows = notes.connection.execute(
        "SELECT sale_hash, key, content::text, answer::text FROM stray"
        " WHERE sale_hash = ANY(%s) ORDER BY key",
        [list(hashes)],
    ).fetchall()
    for sale_hash, key, content, answer in rows:
        sale_key = hashes[bytes(sale_hash)]
        sale = journal.known(notes.connection, [sale_key]).get(bytes(sale_hash))
        if sale is None or sale.account_id is None:
            continue
        document = _decode_return.decode(content)
        returned = Returned(
            at=document.at,
            key=key,
            document=document,
            past=journal.past_sale(notes.connection, sale_key, sale),
        )
        try:
            # Its time was judged when it came; what makes its sale known may be dated back.
            admit_return(programme, returned, now=max(notes.now, document.at))
        except Refusal:
            continue
        _place(notes, programme, accounts[sale.account_id], returned, answer, warrant)


def take_receipts_of_card(
    notes: Journal, programme: Programme, account: Account, card: Card, warrant: Warrant
) -> None:
    """Fold in the receipts of a card that, as it turns out, was active when they were made.

    What came back of them meanwhile has waited and is taken in too.
    """
    taken = []
    meet(notes.connection, [card_key(card.number)])
    rows = notes.connection.execute(
        "SELECT s.key, content::text, answer::text, chain, entity FROM stray s JOIN store"
        " ON store.programme = s.programme AND store.store = content ->> 'store'"
        " WHERE s.programme = %s AND card_number = %s ORDER BY s.key",
        [programme.name, card.number],
    ).fetchall()
    for key, content, answer, chain, entity in rows:
        receipt = _decode_receipt.decode(content)
        terms = programme.on(programme.day(receipt.at)).terms
        if why_not_usable(terms, card, at=receipt.at):
            continue
        if account_at(card, at=receipt.at) == account.account_id:
            sale = Sale(at=receipt.at, key=key, receipt=receipt, chain=chain, entity=entity)
            _place(notes, programme, account, sale, answer, warrant)
            taken.append(key)
    take_waiting_returns(notes, programme, {account.account_id: account}, taken, warrant)


def claim(
    notes: Journal, programme: Programme, account: Account, key: str, warrant: Warrant
) -> Decision | None:
    """Give a receipt for which no card was read to an account, if there is one of this key."""
    # Deleted first: of two who claim it at once, one waits here and finds nothing.
    row = notes.connection.execute(
        "DELETE FROM stray USING store WHERE key_hash = %s AND nothing = 'no-card'"
        " AND store.programme = stray.programme AND store.store = content ->> 'store'"
        " RETURNING content::text, answer::text, chain, entity",
        [journal.hash_of(key)],
    ).fetchone()
    if row is None:
        return None
    content, answer, chain, entity = row
    receipt = _decode_receipt.decode(content)
    sale = Sale(at=receipt.at, key=key, receipt=receipt, chain=chain, entity=entity)
    decision = _place(notes, programme, account, sale, answer, warrant)
    take_waiting_returns(notes, programme, {account.account_id: account}, [key], warrant)
    return decision


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
    notes.save()
    notes.connection.execute(
        "UPDATE receipt_key SET account_id = %s, event_no = %s WHERE key_hash = %s",
        [account.account_id, account.last_event, journal.hash_of(event.key)],
    )
    notes.connection.execute("DELETE FROM stray WHERE key_hash = %s", [journal.hash_of(event.key)])
    return decision
