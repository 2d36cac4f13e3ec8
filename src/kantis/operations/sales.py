"""Receipts, returns and quotes: load, decide, save."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
import psycopg
from msgspec import Raw, Struct

from kantis.core.admission import (
    Warrant,
    account_of,
    admit_return,
    check_claim,
    check_receipt,
    check_time,
    too_late,
)
from kantis.core.answers import Answer, answer_of
from kantis.core.events import Returned, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, Return, SaleKey, fingerprint, first_difference, key_of
from kantis.core.refusals import ReceiptDiffers, Refusal, SaleUnknown, StoreUnknown
from kantis.core.replay import refold
from kantis.core.spending import check_unpaid, pays_with_units
from kantis.core.step import is_late, step
from kantis.db import accounts, past, programmes, refused, strays
from kantis.db.accounts import Account
from kantis.db.journal import Journal
from kantis.db.past import Known
from kantis.db.programmes import Store

Document = TypeVar("Document", Receipt, Return)

ATTEMPTS = 5
"""How often one document is tried against others' transactions before we say so."""


class CardMovedError(Exception):
    """A card came to stand for another account while we waited for the lock."""


RETRIED = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    CardMovedError,
)
"""What another transaction can cause: the same work is done again, one document at a time."""


class Recorded(Struct, frozen=True):
    """The answer to a document as JSON, and whether it is the one that was given before."""

    answer: Raw
    replayed: bool = False


Result = Recorded | Refusal

Booked = tuple[Answer, Account | None]
"""What is answered to a new document, and the account that it was booked to, if any."""


def record_receipts(
    connection: psycopg.Connection,
    *,
    programme: str,
    receipts: Sequence[Receipt],
    now: datetime,
    warrant: Warrant,
) -> list[Result]:
    """Book receipts, each once for ever, in one transaction; results are in the same order.

    A refused receipt books nothing and does not keep the others from being booked. A
    receipt without a working card is kept on no account and earns nothing.
    """

    def book(some: Sequence[Receipt]) -> list[Result]:
        with connection.transaction():
            return _Sales(connection, programme, now, warrant).record(some)

    return _together_or_alone(book, receipts)


def record_returns(
    connection: psycopg.Connection,
    *,
    programme: str,
    returns: Sequence[Return],
    now: datetime,
    warrant: Warrant,
) -> list[Result]:
    """Book returns, each once for ever; one that comes before its sale waits for it."""

    def book(some: Sequence[Return]) -> list[Result]:
        with connection.transaction():
            return _Returns(connection, programme, now, warrant).record(some)

    return _together_or_alone(book, returns)


def quote(
    connection: psycopg.Connection, *, programme: str, receipt: Receipt, now: datetime
) -> Answer:
    """Say what a receipt would earn; nothing is written and nothing locked.

    :raises Refusal: as `record_receipts` would refuse it
    """
    with connection.transaction():
        terms = programmes.load(connection, programme)
        check_receipt(terms, receipt, now=now)
        if clause := too_late(terms, receipt.at, now=now):
            return Answer(key=key_of(programme, receipt), nothing="too-late", clause=clause)
        stores = programmes.stores(connection, programme, [receipt.store])
        cards = accounts.cards(connection, programme, [receipt.card])
        account_id, nothing = account_of(terms, cards, receipt)
        key = key_of(programme, receipt)
        sale = _sale(receipt, key, stores.get(receipt.store))
        if account_id is None:
            check_unpaid(terms, receipt, nothing)
            return Answer(key=key, nothing=nothing)
        account = accounts.read(connection, [account_id])[account_id]
        sale = past.after_its_holds(connection, account, sale)
        past.check_payments(connection, terms, account, sale)
        if not is_late(terms, account.standing, sale):
            after, decision = step(terms, account.standing, sale)
            return answer_of(key, decision, after)
        before = past.past_before(connection, terms, account_id, sale)
    course = refold(
        before.fold(terms),
        [sale, *(event for _, event, _ in before.events)],
        through=account.standing.through_on,
    )
    decision = next(one for event, one in course.decided if event is sale)
    return answer_of(key, decision, course.standing)


def claim_receipt(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    sale: SaleKey,
    at: datetime,
    warrant: Warrant,
) -> Answer:
    """Count a purchase for which no card was read, where the terms let it be claimed (K-1.4).

    :raises AccountUnknown:
    :raises ClaimNotAllowed:
    :raises SaleUnknown: no receipt of this key was made without a card, or somebody has it
    """
    key = key_of(programme, sale)
    with connection.transaction():
        programmes.hold_still(connection, programme)
        account = accounts.lock_one(connection, programme, account_id)
        terms = programmes.load(connection, programme)
        check_claim(terms, at=at)
        decision = strays.claim(Journal(connection, now=at), terms, account, key, warrant)
        if decision is None:
            raise SaleUnknown(sale=key)
        return answer_of(key, decision, account.standing)


def _together_or_alone(
    book: Callable[[Sequence[Document]], list[Result]], documents: Sequence[Document]
) -> list[Result]:
    """Book all at once; if another transaction came between, one by one."""
    try:
        return book(documents)
    except RETRIED:
        return [_persistently(book, document) for document in documents]


def _persistently(book: Callable[[Sequence[Document]], list[Result]], document: Document) -> Result:
    for _ in range(ATTEMPTS - 1):
        try:
            return book([document])[0]
        except RETRIED:
            continue
    return book([document])[0]


class _Batch:
    """One transaction over several documents, each with a key that is used once for ever."""

    def __init__(
        self, connection: psycopg.Connection, programme: str, now: datetime, warrant: Warrant
    ) -> None:
        self.connection = connection
        self.name = programme
        programmes.hold_still(connection, programme)
        self.programme: Programme = programmes.load(connection, programme)
        self.now = now
        self.warrant = warrant
        self.journal = Journal(connection, now=now)
        self.known: dict[bytes, Known] = {}
        self.refused: dict[tuple[bytes, bytes], Refusal] = {}
        self.taken: dict[str, tuple[bytes, bytes, Receipt | Return]] = {}

    def each(
        self, documents: Sequence[Document], one: Callable[[Document, str], Booked]
    ) -> list[Result]:
        """Take documents in the order in which they happened; give results as they were sent."""
        in_order = sorted(range(len(documents)), key=lambda index: documents[index].at)
        results = {index: self._once(documents[index], one) for index in in_order}
        return [results[index] for index in range(len(documents))]

    def _once(self, document: Document, one: Callable[[Document, str], Booked]) -> Result:
        key = key_of(self.name, document)
        content_hash = fingerprint(document)
        if (before := self.refused.get((past.hash_of(key), content_hash))) is not None:
            return before
        if (again := self._again(document, key, content_hash)) is not None:
            return again
        try:
            answer, account = one(document, key)
        except Refusal as refusal:
            if refusal.is_remembered:
                self.journal.refuse(key, content_hash, refusal)
                self.refused[past.hash_of(key), content_hash] = refusal
            return refusal
        self.journal.remember(key, content_hash, account)
        encoded = msgspec.json.encode(answer)
        self.taken[key] = (content_hash, encoded, document)
        return Recorded(Raw(encoded))

    def _again(self, document: Document, key: str, content_hash: bytes) -> Result | None:
        """Answer a key that was used before, in this batch or ever."""
        if (taken := self.taken.get(key)) is not None:
            before_hash, answer, before = taken
            field = first_difference(before, document)
        elif (known := self.known.get(past.hash_of(key))) is not None:
            before_hash, answer = known.content_hash, known.answer
            field = "" if before_hash == content_hash else _difference(known, document)
        else:
            return None
        if before_hash == content_hash:
            return Recorded(Raw(answer), replayed=True)
        return ReceiptDiffers(receipt=key, field=field)


class _Sales(_Batch):
    """Receipts being booked."""

    def record(self, receipts: Sequence[Receipt]) -> list[Result]:
        numbers = {receipt.card for receipt in receipts if receipt.card}
        before = accounts.cards(self.connection, self.name, numbers)
        ids = (account_of(self.programme, before, receipt)[0] for receipt in receipts)
        self.accounts = accounts.lock(self.connection, [i for i in ids if i is not None])
        # Read again under the locks: a card may have moved while we waited for them.
        self.cards = accounts.cards(self.connection, self.name, numbers)
        if stray := {
            receipt.card
            for receipt in receipts
            if receipt.card and account_of(self.programme, self.cards, receipt)[0] is None
        }:
            # Its card may be being handed over at this moment.
            strays.meet(self.connection, map(strays.card_key, stray))
            self.cards = accounts.cards(self.connection, self.name, numbers)
        self.stores = programmes.stores(
            self.connection, self.name, {receipt.store for receipt in receipts}
        )
        keys = [key_of(self.name, receipt) for receipt in receipts]
        self.known = past.known(self.connection, keys)
        new = {key for key in keys if past.hash_of(key) not in self.known}
        # Only payments with units can be refused at one moment and possible at another.
        if paid := [
            key
            for key, receipt in zip(keys, receipts, strict=True)
            if any(tender.hold or tender.kind in self.programme.units for tender in receipt.tenders)
        ]:
            self.refused = refused.recall(self.connection, paid)
        results = self.each(receipts, self._one)
        self.journal.save()
        strays.take_waiting_returns(self.journal, self.programme, self.accounts, new, self.warrant)
        return results

    def _one(self, receipt: Receipt, key: str) -> Booked:
        check_receipt(self.programme, receipt, now=self.now)
        if receipt.store not in self.stores:
            raise StoreUnknown(store=receipt.store)
        if clause := too_late(self.programme, receipt.at, now=self.now):
            return self._keep(receipt, Answer(key=key, nothing="too-late", clause=clause))
        account_id, nothing = account_of(self.programme, self.cards, receipt)
        if account_id is None:
            check_unpaid(self.programme, receipt, nothing)
            return self._keep(receipt, Answer(key=key, nothing=nothing))
        if account_id not in self.accounts:
            raise CardMovedError(receipt.card)
        account = self.accounts[account_id]
        sale = _sale(receipt, key, self.stores[receipt.store])
        sale = past.after_its_holds(self.connection, account, sale)
        if receipt.tenders and pays_with_units(self.programme, receipt):
            if is_late(self.programme, account.standing, sale):
                self.journal.save()  # what this transaction has noted comes before
            past.check_payments(self.connection, self.programme, account, sale)
        decision = self.journal.move(self.programme, account, sale, self.warrant)
        answer = answer_of(key, decision, account.standing)
        self.journal.answer(answer)
        return answer, account

    def _keep(self, receipt: Receipt, answer: Answer) -> Booked:
        """Keep a receipt that stands for no account, or not yet."""
        self.journal.keep_stray(
            programme=self.name,
            key=answer.key,
            nothing=answer.nothing,
            content=receipt,
            answer=answer,
            card_number=receipt.card,
        )
        return answer, None


class _Returns(_Batch):
    """Returns being booked."""

    def record(self, returns: Sequence[Return]) -> list[Result]:
        sale_keys = {key_of(self.name, document.sale) for document in returns}
        keys = {key_of(self.name, document) for document in returns}
        found = past.known(self.connection, sale_keys)
        ids = {sale.account_id for sale in found.values() if sale.account_id is not None}
        self.accounts = accounts.lock(self.connection, ids)
        self.stores = programmes.stores(
            self.connection, self.name, {document.store for document in returns}
        )
        # Read again under the locks: another till may have returned the same lines.
        self.sales = past.known(self.connection, sale_keys)
        if missing := {key for key in sale_keys if not self._is_booked(key)}:
            strays.meet(self.connection, missing)
            self.sales = past.known(self.connection, sale_keys)
        self.known = past.known(self.connection, keys)
        self.refused = refused.recall(self.connection, keys)
        results = self.each(returns, self._one)
        self.journal.save()
        return results

    def _is_booked(self, sale_key: str) -> bool:
        sale = self.sales.get(past.hash_of(sale_key))
        return sale is not None and sale.account_id is not None

    def _one(self, document: Return, key: str) -> Booked:
        check_time(self.programme, document.at, now=self.now)
        if document.store not in self.stores:
            raise StoreUnknown(store=document.store)
        sale_key = key_of(self.name, document.sale)
        if clause := too_late(self.programme, document.at, now=self.now):
            answer = Answer(key=key, nothing="too-late", clause=clause)
            return self._keep(document, answer, sale_key)
        sale = self.sales.get(past.hash_of(sale_key))
        if sale is None:
            return self._keep(document, Answer(key=key, nothing="sale-awaited"), sale_key)
        if sale.account_id is None:
            return self._keep(document, Answer(key=key, nothing="sale-without-card"), sale_key)
        if sale.account_id not in self.accounts:
            raise CardMovedError(sale_key)
        account = self.accounts[sale.account_id]
        self.journal.save()  # a return of this transaction may have taken of the same sale
        returned = Returned(
            at=document.at,
            key=key,
            document=document,
            past=past.past_sale(self.connection, sale_key, sale),
        )
        admit_return(self.programme, returned, now=self.now)
        decision = self.journal.move(self.programme, account, returned, self.warrant)
        answer = answer_of(key, decision, account.standing)
        self.journal.answer(answer)
        return answer, account

    def _keep(self, document: Return, answer: Answer, sale_key: str) -> Booked:
        self.journal.keep_stray(
            programme=self.name,
            key=answer.key,
            nothing=answer.nothing,
            content=document,
            answer=answer,
            sale_key=sale_key,
        )
        return answer, None


def _sale(receipt: Receipt, key: str, store: Store | None) -> Sale:
    if store is None:
        raise StoreUnknown(store=receipt.store)
    return Sale(at=receipt.at, key=key, receipt=receipt, chain=store.chain, entity=store.entity)


def _difference(known: Known, document: Receipt | Return) -> str:
    """Name the field in which a document differs from the one that its key was used for."""
    content = msgspec.json.decode(known.content)
    content = content.get("receipt") or content.get("document") or content
    try:
        return first_difference(msgspec.convert(content, type(document), strict=False), document)
    except msgspec.ValidationError:
        return "kind"
