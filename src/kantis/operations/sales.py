"""Receipts, returns and quotes: load, decide, save."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, TypeVar, cast

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
from kantis.core.receipt import Receipt, Return, SaleKey, fingerprint, first_difference, key_of
from kantis.core.refusals import ReceiptDiffers, Refusal, SaleUnknown, StoreUnknown
from kantis.core.replay import refold
from kantis.core.spending import check_unpaid, pays_with_units
from kantis.core.step import is_late, step
from kantis.db import accounts, past, programmes, refused, strays
from kantis.db.accounts import Account
from kantis.db.batch import Found, look_up
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


class Sent(Struct, frozen=True):
    """A receipt, and who sent it: by a token, which has to be good, or as an operator."""

    receipt: Receipt
    warrant: Warrant
    token_hash: bytes | None = None


class Recorded(Struct, frozen=True):
    """The answer to a document as JSON, and whether it is the one that was given before.

    `account_id` is the account that it is booked to, if any.
    """

    answer: Raw
    replayed: bool = False
    account_id: int | None = None


Result = Recorded | Refusal


class Outcome(Struct, frozen=True):
    """What is said of what was sent, and until when its sender, having guessed, is told nothing.

    Such a sender's question has no outcome of its own; its receipt has one, for later.
    """

    said: Result | None
    untold_until: datetime | None = None


NOBODY = Warrant("")
"""Whoever asks without booking anything."""

Item = TypeVar("Item")
Done = TypeVar("Done")

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
    """Book receipts that all come from one sender, as `record_sent` does."""
    sent = [Sent(receipt, warrant) for receipt in receipts]
    outcomes = record_sent(connection, programme=programme, sent=sent, now=now)
    results = [one and one.said for one in outcomes]
    assert None not in results, "an operator, who has no token, is always told"
    return cast(list[Result], results)


def record_sent(
    connection: psycopg.Connection, *, programme: str, sent: Sequence[Sent], now: datetime
) -> list[Outcome | None]:
    """Book receipts, each once for ever, in one transaction; results are in the same order.

    A refused receipt books nothing and does not keep the others from being booked. A
    receipt without a working card is kept on no account and earns nothing. One whose sender's
    token is good no more is not booked and gives None.
    """

    def book(some: Sequence[Sent]) -> list[Outcome | None]:
        with connection.transaction():
            found = _look_up(connection, programme, some, now, locking=True)
            good = [one for one in some if found.lets_in(one.token_hash)]
            results = iter(_Sales(connection, found, now, good).record())
            return [
                Outcome(next(results), found.untold_until(one.token_hash))
                if found.lets_in(one.token_hash)
                else None
                for one in some
            ]

    return _together_or_alone(book, sent)


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
            return _Returns(connection, programme, now, some, warrant).record()

    return _together_or_alone(book, returns)


def quote(
    connection: psycopg.Connection, *, programme: str, receipt: Receipt, now: datetime
) -> Answer:
    """Say what a receipt would earn; nothing is written and nothing locked.

    :raises Refusal: as `record_receipts` would refuse it
    """
    found = _look_up(connection, programme, [Sent(receipt, NOBODY)], now, locking=False)
    return _quoted(connection, found, receipt, now)


def quote_all(
    connection: psycopg.Connection, *, programme: str, sent: Sequence[Sent], now: datetime
) -> list[Outcome | None]:
    """Say what each of several receipts would earn, none of them knowing of the others.

    A sender whose token is good no more gives None; to one that has guessed too often nothing is
    said.
    """
    found = _look_up(connection, programme, sent, now, locking=False)

    def one(sent: Sent) -> Outcome | None:
        if not found.lets_in(sent.token_hash):
            return None
        if until := found.untold_until(sent.token_hash):
            return Outcome(None, until)
        try:
            answer = _quoted(connection, found, sent.receipt, now)
        except Refusal as refusal:
            return Outcome(refusal)
        return Outcome(Recorded(Raw(msgspec.json.encode(answer))))

    return [one(each) for each in sent]


def _look_up(
    connection: psycopg.Connection,
    programme: str,
    sent: Sequence[Sent],
    now: datetime,
    *,
    locking: bool,
) -> Found:
    """Look up all that receipts name, and whether those who sent them are still let in."""
    receipts = [one.receipt for one in sent]
    return look_up(
        connection,
        programme,
        cards={receipt.card for receipt in receipts if receipt.card},
        stores={receipt.store for receipt in receipts},
        key_hashes=[past.hash_of(key_of(programme, one)) for one in receipts] if locking else (),
        tokens={one.token_hash for one in sent if one.token_hash},
        at=now,
        locking=locking,
    )


def _quoted(
    connection: psycopg.Connection, found: Found, receipt: Receipt, now: datetime
) -> Answer:
    terms = found.programme
    key = key_of(terms.name, receipt)
    check_receipt(terms, receipt, now=now)
    if clause := too_late(terms, receipt.at, now=now):
        return Answer(key=key, nothing="too-late", clause=clause)
    account_id, nothing = account_of(terms, found.cards, receipt)
    sale = _sale(receipt, key, found.stores.get(receipt.store))
    if account_id is None:
        check_unpaid(terms, receipt, nothing)
        return Answer(key=key, nothing=nothing)
    if (account := found.accounts.get(account_id)) is None:
        raise CardMovedError(receipt.card)
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
    book: Callable[[Sequence[Item]], list[Done]], items: Sequence[Item]
) -> list[Done]:
    """Book all at once; if another transaction came between, one by one."""
    try:
        return book(items)
    except RETRIED:
        return [_persistently(book, item) for item in items]


def _persistently(book: Callable[[Sequence[Item]], list[Done]], item: Item) -> Done:
    for _ in range(ATTEMPTS - 1):
        try:
            return book([item])[0]
        except RETRIED:
            continue
    return book([item])[0]


class _Batch(Generic[Document]):
    """One transaction over several documents, each with a key that is used once for ever."""

    def __init__(
        self,
        connection: psycopg.Connection,
        programme: str,
        now: datetime,
        documents: Sequence[Document],
    ) -> None:
        self.connection = connection
        self.name = programme
        self.now = now
        self.documents: Sequence[Document] = documents
        self.keys = [key_of(programme, document) for document in documents]
        self.journal = Journal(connection, now=now)
        self.known: dict[bytes, Known] = {}
        self.refused: dict[tuple[bytes, bytes], Refusal] = {}
        self.taken: dict[str, tuple[bytes, bytes, Receipt | Return]] = {}

    def each(self, one: Callable[[int], Booked]) -> list[Result]:
        """Take documents in the order in which they happened; give results as they were sent.

        `one` books the document of a place in the batch.
        """
        documents = self.documents
        in_order = sorted(range(len(documents)), key=lambda index: documents[index].at)
        results = {index: self._once(index, one) for index in in_order}
        return [results[index] for index in range(len(documents))]

    def _once(self, index: int, one: Callable[[int], Booked]) -> Result:
        document, key = self.documents[index], self.keys[index]
        content_hash = fingerprint(document)
        if (before := self.refused.get((past.hash_of(key), content_hash))) is not None:
            return before
        if (again := self._again(document, key, content_hash)) is not None:
            return again
        try:
            answer, account = one(index)
        except Refusal as refusal:
            if refusal.is_remembered:
                self.journal.refuse(key, content_hash, refusal)
                self.refused[past.hash_of(key), content_hash] = refusal
            return refusal
        self.journal.remember(key, content_hash, account)
        encoded = msgspec.json.encode(answer)
        self.taken[key] = (content_hash, encoded, document)
        return Recorded(Raw(encoded), account_id=None if account is None else account.account_id)

    def _again(self, document: Receipt | Return, key: str, content_hash: bytes) -> Result | None:
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


class _Sales(_Batch[Receipt]):
    """Receipts being booked."""

    def __init__(
        self, connection: psycopg.Connection, found: Found, now: datetime, sent: Sequence[Sent]
    ) -> None:
        super().__init__(connection, found.programme.name, now, [one.receipt for one in sent])
        self.found = found
        self.programme = found.programme
        self.accounts, self.cards, self.stores = found.accounts, found.cards, found.stores
        self.warrants = [one.warrant for one in sent]
        self.owners = self._owners()

    def record(self) -> list[Result]:
        if stray := {
            receipt.card
            for receipt, (account_id, _) in zip(self.documents, self.owners, strict=True)
            if receipt.card and account_id is None
        }:
            # Its card may be being handed over at this moment.
            strays.meet(self.connection, map(strays.card_key, stray))
            numbers = {receipt.card for receipt in self.documents if receipt.card}
            self.cards = accounts.cards(self.connection, self.name, numbers)
            self.owners = self._owners()
        if used := [key for key in self.keys if past.hash_of(key) in self.found.used]:
            self.known = past.known(self.connection, used)
        # Only payments with units can be refused at one moment and possible at another.
        if paid := [
            key
            for key, receipt in zip(self.keys, self.documents, strict=True)
            if any(tender.hold or tender.kind in self.programme.units for tender in receipt.tenders)
        ]:
            self.refused = refused.recall(self.connection, paid)
        results = self.each(self._one)
        self.journal.save()
        self._take_waiting_returns()
        return results

    def _owners(self) -> list[tuple[int | None, str]]:
        return [account_of(self.programme, self.cards, receipt) for receipt in self.documents]

    def _take_waiting_returns(self) -> None:
        for key, warrant in zip(self.keys, self.warrants, strict=True):
            if key in self.taken and past.hash_of(key) in self.found.awaited:
                strays.take_waiting_returns(
                    self.journal, self.programme, self.accounts, [key], warrant
                )

    def _one(self, index: int) -> Booked:
        receipt, key, warrant = self.documents[index], self.keys[index], self.warrants[index]
        check_receipt(self.programme, receipt, now=self.now)
        if receipt.store not in self.stores:
            raise StoreUnknown(store=receipt.store)
        if clause := too_late(self.programme, receipt.at, now=self.now):
            return self._keep(receipt, Answer(key=key, nothing="too-late", clause=clause))
        account_id, nothing = self.owners[index]
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
        decision = self.journal.move(self.programme, account, sale, warrant)
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


class _Returns(_Batch[Return]):
    """Returns being booked."""

    def __init__(
        self,
        connection: psycopg.Connection,
        programme: str,
        now: datetime,
        returns: Sequence[Return],
        warrant: Warrant,
    ) -> None:
        super().__init__(connection, programme, now, returns)
        self.warrant = warrant

    def record(self) -> list[Result]:
        programmes.hold_still(self.connection, self.name)
        self.programme = programmes.load(self.connection, self.name)
        sale_keys = {key_of(self.name, document.sale) for document in self.documents}
        found = past.known(self.connection, sale_keys)
        ids = {sale.account_id for sale in found.values() if sale.account_id is not None}
        self.accounts = accounts.lock(self.connection, ids)
        self.stores = programmes.stores(
            self.connection, self.name, {document.store for document in self.documents}
        )
        # Read again under the locks: another till may have returned the same lines.
        self.sales = past.known(self.connection, sale_keys)
        if missing := {key for key in sale_keys if not self._is_booked(key)}:
            strays.meet(self.connection, missing)
            self.sales = past.known(self.connection, sale_keys)
        self.known = past.known(self.connection, self.keys)
        self.refused = refused.recall(self.connection, self.keys)
        results = self.each(self._one)
        self.journal.save()
        return results

    def _is_booked(self, sale_key: str) -> bool:
        sale = self.sales.get(past.hash_of(sale_key))
        return sale is not None and sale.account_id is not None

    def _one(self, index: int) -> Booked:
        document, key = self.documents[index], self.keys[index]
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
