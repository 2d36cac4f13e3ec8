"""What waits for staff: receipts and returns that came too late, returns of too much."""

from datetime import datetime

import psycopg

from kantis.core.admission import Warrant, account_of, admit_return, admit_waiting
from kantis.core.answers import Answer, answer_of
from kantis.core.events import Returned, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, Return, key_of
from kantis.core.refusals import CardNotUsable, NotWaiting, SaleUnknown
from kantis.db import accounts, past, programmes, strays
from kantis.db.accounts import Account
from kantis.db.journal import Journal
from kantis.db.strays import Stray


def list_waiting(connection: psycopg.Connection, *, programme: str) -> list[Stray]:
    """Give what waits for staff, oldest first."""
    with connection.transaction():
        return strays.waiting(connection, programme)


def accept(
    connection: psycopg.Connection, *, programme: str, key: str, at: datetime, warrant: Warrant
) -> Answer:
    """Book what waits, in its place: with what it would have earned, or taken back, in time.

    :raises NotWaiting:
    :raises ReasonMissing:
    :raises ApprovalMissing: where the terms ask for it (`accept_waiting`)
    :raises CardNotUsable: the receipt's card did not work at its time
    :raises SaleUnknown: the return's sale is on no account
    :raises ReturnedMoreThanBought:
    :raises Refusal: what is paid with units is not there
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        strays.meet(connection, [key])
        stray = _find(connection, programme, key)
        terms = programmes.load(connection, programme)
        admit_waiting(terms, now=at, warrant=warrant)
        found: tuple[Account, Sale | Returned]
        if stray.receipt is not None:
            found = _sale(connection, terms, key, stray.receipt)
        else:
            assert stray.returned is not None, "it is one or the other"
            found = _return(connection, terms, key, stray.returned, now=at)
        account, event = found
        journal = Journal(connection, now=at)
        decision = strays.take(journal, terms, account, event, warrant)
        return answer_of(key, decision, account.standing)


def dismiss(
    connection: psycopg.Connection, *, programme: str, key: str, at: datetime, warrant: Warrant
) -> None:
    """Decide that what waits is never booked. Its key stays used, its first answer stays.

    :raises NotWaiting:
    :raises ReasonMissing:
    :raises ApprovalMissing: where the terms ask for it (`accept_waiting`)
    """
    with connection.transaction():
        strays.meet(connection, [key])
        _find(connection, programme, key)
        admit_waiting(programmes.load(connection, programme), now=at, warrant=warrant)
        strays.dismiss(Journal(connection, now=at), key, warrant)


def _find(connection: psycopg.Connection, programme: str, key: str) -> Stray:
    found = strays.waiting(connection, programme, key=key)
    if not found:
        raise NotWaiting(key=key)
    return found[0]


def _sale(
    connection: psycopg.Connection, terms: Programme, key: str, receipt: Receipt
) -> tuple[Account, Sale]:
    cards = accounts.cards(connection, terms.name, [receipt.card])
    account_id, why = account_of(terms, cards, receipt)
    if account_id is None:
        raise CardNotUsable(card=receipt.card, why=why)
    account = accounts.lock_one(connection, terms.name, account_id)
    store = programmes.stores(connection, terms.name, [receipt.store])[receipt.store]
    sale = Sale(at=receipt.at, key=key, receipt=receipt, chain=store.chain, entity=store.entity)
    sale = past.after_its_holds(connection, account, sale)
    past.check_payments(connection, terms, account, sale)
    return account, sale


def _return(
    connection: psycopg.Connection, terms: Programme, key: str, document: Return, *, now: datetime
) -> tuple[Account, Returned]:
    sale_key = key_of(terms.name, document.sale)
    sale = past.known(connection, [sale_key]).get(past.hash_of(sale_key))
    if sale is None or sale.account_id is None:
        raise SaleUnknown(sale=sale_key)
    account = accounts.lock_one(connection, terms.name, sale.account_id)
    bought = past.past_sale(connection, sale_key, sale)
    # Goods cannot come back before they are sold: a desk's clock was behind.
    at = max(document.at, bought.sale.at)
    returned = Returned(at=at, key=key, document=document, past=bought)
    return account, admit_return(terms, returned, now=now)
