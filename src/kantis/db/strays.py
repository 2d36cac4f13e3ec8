"""Receipts without an account and returns that wait: taken in when what they lacked comes."""

from collections.abc import Iterable

import msgspec
from msgspec import Raw

from kantis.core.admission import Warrant, admit_return
from kantis.core.cards import Card, account_at, why_not_usable
from kantis.core.events import AnyEvent, Returned, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import Refusal
from kantis.db import journal
from kantis.db.accounts import Account
from kantis.db.journal import Journal

_decode_receipt = msgspec.json.Decoder(Receipt)
_decode_return = msgspec.json.Decoder(Return)


def take_waiting_returns(
    notes: Journal,
    programme: Programme,
    accounts: dict[int, Account],
    sale_keys: Iterable[str],
    warrant: Warrant,
) -> None:
    """Book the returns that waited for these sales, which have just been saved.

    One that turns out to be refused (more comes back than was bought) goes on waiting: staff
    decide, and the till has long had its answer.
    """
    hashes = {journal.hash_of(key): key for key in sale_keys}
    rows = notes.connection.execute(
        "SELECT sale_hash, key, content::text, answer::text FROM stray"
        " WHERE sale_hash = ANY(%s) ORDER BY key",
        [list(hashes)],
    ).fetchall()
    for sale_hash, key, content, answer in rows:
        sale_key = hashes[bytes(sale_hash)]
        sale = journal.known(notes.connection, [sale_key])[bytes(sale_hash)]
        if sale.account_id is None:
            continue
        document = _decode_return.decode(content)
        returned = Returned(
            at=document.at,
            key=key,
            document=document,
            past=journal.past_sale(notes.connection, sale_key, sale),
        )
        try:
            admit_return(programme, returned, now=notes.now)
        except Refusal:
            continue
        _place(notes, programme, accounts[sale.account_id], returned, answer, warrant)


def take_receipts_of_card(
    notes: Journal, programme: Programme, account: Account, card: Card, warrant: Warrant
) -> None:
    """Fold in the receipts of a card that, as it turns out, was active when they were made."""
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


def _place(
    notes: Journal,
    programme: Programme,
    account: Account,
    event: AnyEvent,
    answer: str,
    warrant: Warrant,
) -> None:
    """Move an account on by a stray; its first answer stays its answer."""
    notes.move(programme, account, event, warrant)
    notes.answer(Raw(answer.encode()))
    notes.save()
    notes.connection.execute(
        "UPDATE receipt_key SET account_id = %s, event_no = %s WHERE key_hash = %s",
        [account.account_id, account.last_event, journal.hash_of(event.key)],
    )
    notes.connection.execute("DELETE FROM stray WHERE key_hash = %s", [journal.hash_of(event.key)])
