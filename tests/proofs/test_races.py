"""Whatever two tills, desks or clocks do at one moment, nothing is spent, booked or lost twice.

Each race lets 2 to 16 racers, each with a connection of its own, go at a barrier; what each got
is classified, and what the account holds afterwards must be what it held before, less what was
granted. After each batch the books and the accounts are audited.

`python test_races.py URL ROUNDS` runs the plainest race alone and prints what came out. The
proof that the harness can fail runs it on a copy of Kantis without its lock.
"""

import itertools
import json
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from itertools import islice, takewhile
from pathlib import Path
from threading import Barrier
from typing import Any, Self, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest

from kantis.core.admission import Applicant, Warrant
from kantis.core.answers import Answer
from kantis.core.cards import Card
from kantis.core.events import Held, Left, Opened, OpeningLot, Released
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender
from kantis.core.refusals import Refusal
from kantis.core.standing import Standing
from kantis.db import accounts
from kantis.db.cluster import APP, OWNER
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.operations import audit, cards, members, publishing, sales, spending, upkeep

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
ZONE = {"alltid": ZoneInfo("Europe/Oslo"), "coop": ZoneInfo("Europe/Sofia")}
KIND = {"alltid": "customer-card", "coop": "card"}
CURRENCY = {"alltid": "NOK", "coop": "BGN"}
NOW = datetime(2026, 1, 15, 12, tzinfo=ZoneInfo("UTC"))
RACERS_MAX = 16
SOAK_FACTOR = 20
BATCH = 100
"""Races after which the books are audited."""

ROUNDS_PER_MEMBER = 25
"""Longer histories only make late receipts slower."""

ATTEMPTS = 3
"""How often the API asks again when another transaction came between."""


class Member(msgspec.Struct, frozen=True):
    """A member with the first card."""

    account_id: int
    card: str


class Course:
    """Where races are run: one programme, a desk to prepare and look, racers' connections."""

    def __init__(
        self,
        url: str,
        chance: random.Random,
        programme: str = "alltid",
        retried: tuple[type[Exception], ...] = sales.RETRIED,
    ) -> None:
        self.url = url
        self.chance = chance
        self.retried = retried
        self.programme = programme
        self.members: list[Member] = []
        self.double_spends = 0
        self.racers_total = 0
        self.outcomes: Counter[str] = Counter()
        self._numbers = itertools.count(10**12 + secrets.randbelow(10**9) * 1000)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.desk = self._open.enter_context(connect(self.url))
        self.racers = [self._open.enter_context(connect(self.url)) for _ in range(RACERS_MAX)]
        self._threads = self._open.enter_context(ThreadPoolExecutor(RACERS_MAX))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    # --- racing -----------------------------------------------------------------------------

    def some(self) -> int:
        """Draw how many race: mostly two, at times many."""
        return self.chance.choice([2, 2, 2, 2, 2, 2, 3, 4, 8, RACERS_MAX])

    def race(self, acts: Sequence[Callable[[psycopg.Connection], T]]) -> list[T | Refusal]:
        """Let all act at one moment; give what each got, in the order of `acts`.

        Only a refusal is an answer: any other exception is unclassified and fails the race.
        """
        barrier = Barrier(len(acts))

        def act(connection: psycopg.Connection, one: Callable[[psycopg.Connection], T]) -> Any:  # noqa: ANN401
            barrier.wait(timeout=30)
            try:
                return persistently(connection, one, self.retried)
            except Refusal as refusal:
                return refusal

        lanes = self.chance.sample(self.racers, len(acts))
        got = list(self._threads.map(act, lanes, acts))
        self.racers_total += len(acts)
        self.outcomes.update(map(outcome, got))
        return got

    # --- what happens at desks and tills ----------------------------------------------------

    def number(self) -> str:
        return str(next(self._numbers))

    def at(self, text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=ZONE[self.programme])

    def join(self, card: str = "") -> Member:
        enrolled = self.enrol(self.desk, card or self.number(), self.number())
        member = Member(enrolled.account_id, enrolled.card_number)
        self.members.append(member)
        return member

    def enrol(self, connection: psycopg.Connection, card: str, key: str) -> members.Enrolled:
        return members.enrol(
            connection,
            programme=self.programme,
            application=members.Application(
                applicant=Applicant(born_on=date(1980, 5, 1), organization_number="930258008"),
                card_kind=KIND[self.programme],
                card_number=card,
            ),
            request_key=key,
            at=self.at("2024-03-01 10:00"),
            warrant=Warrant("desk"),
        )

    def open(self, connection: psycopg.Connection, member: Member, *lots: OpeningLot) -> Answer:
        return members.open_balances(
            connection,
            programme=self.programme,
            account_id=member.account_id,
            opening=Opened(at=self.at("2024-03-01 11:00"), key=f"o{self.number()}", lots=lots),
            warrant=Warrant("desk", approved_by="Kari"),
        )

    def receipt(self, card: str, at: datetime, amount: int, **changes: Any) -> Receipt:  # noqa: ANN401
        return Receipt(
            **{
                "store": "north",
                "till": "1",
                "business_day": at.date(),
                "number": self.number(),
                "at": at,
                "currency": CURRENCY[self.programme],
                "total_minor": amount,
                "lines": (Line(amount),),
                "card": card,
                "proof": "staff",
                **changes,
            }
        )

    def payment(self, card: str, at: datetime, amount: int, hold: str = "") -> Receipt:
        return self.receipt(card, at, amount, tenders=(Tender("bonus", amount, hold),))

    def return_of(self, sale: Receipt, at: datetime, amount: int) -> Return:
        return Return(
            store="north",
            till="1",
            business_day=at.date(),
            number=self.number(),
            at=at,
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            lines=(ReturnLine(1, amount),),
        )

    def record(self, connection: psycopg.Connection, *receipts: Receipt) -> list[sales.Result]:
        return sales.record_receipts(
            connection,
            programme=self.programme,
            receipts=receipts,
            now=NOW,
            warrant=Warrant("till"),
        )

    def take_back(self, connection: psycopg.Connection, back: Return) -> sales.Result:
        return sales.record_returns(
            connection, programme=self.programme, returns=[back], now=NOW, warrant=Warrant("till")
        )[0]

    def hold(
        self, connection: psycopg.Connection, member: Member, at: datetime, amount: int, key: str
    ) -> Answer:
        return spending.hold(
            connection,
            programme=self.programme,
            account_id=member.account_id,
            held=Held(at=at, key=key, hold_id=key, unit="bonus", amount=amount, until_at=at),
            proof="staff",
            warrant=Warrant("till"),
        )

    def tick(self, connection: psycopg.Connection, through: date) -> int:
        return upkeep.tick(connection, programme=self.programme, through=through, now=NOW)

    def sell(self, member: Member, at: datetime, amount: int) -> Receipt:
        receipt = self.receipt(member.card, at, amount)
        (result,) = self.record(self.desk, receipt)
        assert isinstance(result, sales.Recorded), result
        return receipt

    # --- looking ----------------------------------------------------------------------------

    def standing(self, member: Member) -> Standing:
        return accounts.one(self.desk, self.programme, member.account_id).standing

    def worth(self, member: Member, unit: str = "bonus") -> int:
        """Give what a member has, less debt."""
        return self.standing(member).balance(unit)

    def moved(self, member: Member, book: str) -> int:
        """Give what the books say has gone from a member to a book."""
        ((amount,),) = self.desk.execute(
            "SELECT coalesce(sum(amount), 0)::bigint FROM posting WHERE account_id = %s"
            " AND book = %s",
            [member.account_id, book],
        ).fetchall()
        return int(amount)

    def judge_spending(self, member: Member, *, before: int, granted: int, taken: int = 0) -> None:
        """Check that what was granted was there, and is gone, as is what was taken back."""
        if granted > before:
            self.double_spends += 1
        else:
            assert self.worth(member) == before - granted - taken

    def audit(self) -> None:
        """Audit the books and the accounts that raced since the last time."""
        for finding in audit.audit_books(self.desk):
            assert finding.wrong == (), finding
        for member in self.members:
            wrong = audit.audit_account(
                self.desk, programme=self.programme, account_id=member.account_id
            )
            assert wrong == ()
            spent, *came = (self.moved(member, book) for book in ("spent", "issued", "opened"))
            owed = sum(self.standing(member).debts.values())
            assert spent <= owed - sum(came)
        self.members.clear()


def persistently(
    connection: psycopg.Connection,
    act: Callable[[psycopg.Connection], T],
    retried: tuple[type[Exception], ...] = sales.RETRIED,
) -> T:
    """Do as the API does: what another transaction can cause is tried again."""
    for _ in range(ATTEMPTS - 1):
        try:
            return act(connection)
        except retried:
            continue
    return act(connection)


def outcome(result: object) -> str:
    match result:
        case Refusal():
            return result.code
        case sales.Recorded():
            return "replayed" if result.replayed else "recorded"
        case list():
            return "batch"
        case _:
            return type(result).__name__.lower()


def answer(result: object) -> Answer:
    assert isinstance(result, sales.Recorded), result
    return msgspec.json.decode(result.answer, type=Answer)


def recorded(results: Sequence[object]) -> list[sales.Recorded]:
    """Give those that were booked now and not before."""
    return [one for one in results if isinstance(one, sales.Recorded) and not one.replayed]


def set_up(url: str) -> None:
    with connect(url) as connection:
        for name in KIND:
            for path in sorted((ROOT / "programmes" / name).glob("*.toml")):
                source = path.read_text("utf-8")
                publishing.publish_terms(connection, source=source, at=NOW, by="publisher")
            publishing.add_store(connection, programme=name, store=Store("north"))


# --- the races ------------------------------------------------------------------------------
# Each is a generator that prepares, races, judges, and yields once a race.

Races = Iterator[None]


def rounds(course: Course) -> Iterator[tuple[Member, datetime]]:
    """Give a member and a moment for each race, later than all before on that account."""
    while True:
        member = course.join()
        for minute in range(0, ROUNDS_PER_MEMBER * 10, 10):
            yield member, course.at("2024-03-05 08:00") + timedelta(minutes=minute)


def richer(course: Course, member: Member, at: datetime) -> int:
    """Let a member earn; give the balance."""
    course.sell(member, at, course.chance.randint(5_000, 20_000))
    return course.standing(member).balance("bonus")


def payments(course: Course) -> Races:
    """Let tills spend one whole balance at once: one may."""
    for member, at in rounds(course):
        before = richer(course, member, at)
        tries = [
            course.payment(member.card, at + timedelta(minutes=1), before)
            for _ in range(course.some())
        ]
        got = course.race([recording(course, one) for one in tries])
        granted = len(recorded(got)) * before
        course.judge_spending(member, before=before, granted=granted)
        assert granted, got
        yield


def payments_in_parts(course: Course) -> Races:
    """Let tills spend parts of one balance at once: as many as it covers, no fewer."""
    for member, at in rounds(course):
        before = richer(course, member, at)
        amounts = [course.chance.randint(1, before) for _ in range(course.some())]
        seconds = [course.chance.randint(1, 300) for _ in amounts]
        tries = [
            course.payment(member.card, at + timedelta(seconds=second), amount)
            for second, amount in zip(seconds, amounts, strict=True)
        ]
        got = course.race([recording(course, one) for one in tries])
        won = [isinstance(one, sales.Recorded) for one in got]
        granted = sum(amount for amount, ok in zip(amounts, won, strict=True) if ok)
        course.judge_spending(member, before=before, granted=granted)
        refused = [amount for amount, ok in zip(amounts, won, strict=True) if not ok]
        assert all(amount > before - granted for amount in refused)
        yield


def holds(course: Course) -> Races:
    """Let tills set one balance aside at once, some of them spending it outright."""
    for member, at in rounds(course):
        before = richer(course, member, at)
        acts: list[Act] = []
        for _ in range(course.some()):
            moment = at + timedelta(minutes=1)
            if course.chance.random() < 0.7:
                key = f"h{course.number()}"
                acts.append(holding(course, member, moment, before, key))
            else:
                pay = course.payment(member.card, moment, before)
                acts.append(recording(course, pay))
        got = course.race(acts)
        paid = len(recorded(got)) * before
        set_aside = sum(isinstance(one, Answer) for one in got) * before
        if paid + set_aside > before:
            course.double_spends += 1
        assert paid + set_aside == before, got
        standing = course.standing(member)
        assert standing.balance("bonus") == before - paid
        assert sum(hold.amount for hold in standing.holds) == set_aside
        for hold in standing.holds:
            released = Released(
                at=at + timedelta(minutes=2), key=hold.hold_id + "r", hold_id=hold.hold_id
            )
            releasing(course, member, released)(course.desk)
        yield


def captures(course: Course) -> Races:
    """Let tills capture one hold at once, some letting it go: it ends once."""
    for member, at in rounds(course):
        before = richer(course, member, at)
        key = f"h{course.number()}"
        course.hold(course.desk, member, at + timedelta(seconds=1), before, key)
        # A receipt of before the release may still capture the hold when it comes after it.
        released_at = at + timedelta(seconds=course.chance.choice([30, 60, 90]))
        acts: list[Act] = []
        for _ in range(course.some()):
            if course.chance.random() < 0.75:
                pay = course.payment(member.card, at + timedelta(seconds=60), before, key)
                acts.append(recording(course, pay))
            else:
                gone = Released(at=released_at, key=f"r{key}", hold_id=key)
                acts.append(releasing(course, member, gone))
        got = course.race(acts)
        paid = len(recorded(got)) * before
        course.judge_spending(member, before=before, granted=paid)
        released = any(isinstance(one, Answer) for one in got)
        assert paid or released, got
        assert not (paid and released) or released_at >= at + timedelta(seconds=60)
        assert course.standing(member).holds == ()
        yield


def crossed_batches(course: Course) -> Races:
    """Let tills send batches that spend the same balances in other orders: each is spent once."""
    while True:
        some = [course.join() for _ in range(4)]
        for minute in range(0, ROUNDS_PER_MEMBER * 10, 10):
            at = course.at("2024-03-05 08:00") + timedelta(minutes=minute)
            before = [richer(course, member, at) for member in some]
            batches = []
            for _ in range(course.chance.choice([2, 3])):
                batch = [
                    course.payment(member.card, at + timedelta(minutes=1), amount)
                    for member, amount in zip(some, before, strict=True)
                ]
                course.chance.shuffle(batch)
                batches.append(batch)
            got = course.race([recording_all(course, batch) for batch in batches])
            spent: Counter[str] = Counter()
            for batch, results in zip(batches, got, strict=True):
                assert isinstance(results, list)
                for receipt, result in zip(batch, results, strict=True):
                    spent[receipt.card] += isinstance(result, sales.Recorded)
            for member, amount in zip(some, before, strict=True):
                course.judge_spending(member, before=amount, granted=amount * spent[member.card])
                assert spent[member.card], got
            yield


def expiry(course: Course) -> Races:
    """Let the clock take a lot while tills spend it in its last second: it goes one way."""
    for member, ends in expiring(course):
        before = course.standing(member).balance("bonus")
        lot = sum(
            lot.amount
            for lot in course.standing(member).lots["bonus"]
            if lot.key.valid_until <= ends
        )
        gone = {book: course.moved(member, book) for book in ("spent", "expired")}
        last_second = course.at(f"{ends} 00:00") - timedelta(seconds=1)
        amounts = [course.chance.randint(1, before) for _ in range(course.some() - 1)]
        acts: list[Act] = [
            recording(course, course.payment(member.card, last_second, amount))
            for amount in amounts
        ]
        # Who comes a second later finds the lot gone, whoever else was first.
        acts.append(
            recording(course, course.payment(member.card, course.at(f"{ends} 00:00"), before))
            if lot and course.chance.random() < 0.5
            else ticking(course, ends)
        )
        got = course.race(acts)
        assert not recorded(got[-1:]), got
        while course.tick(course.desk, ends):
            pass
        spent, expired = (course.moved(member, book) - gone[book] for book in ("spent", "expired"))
        granted = sum(amount for amount, one in zip(amounts, got, strict=False) if recorded([one]))
        course.judge_spending(member, before=before - expired, granted=granted)
        assert (spent, expired) == (granted, max(0, lot - granted))
        yield


def expiring(course: Course) -> Iterator[tuple[Member, date]]:
    """Give a member and a day on which a lot of theirs expires, if anything is left of it."""
    while True:
        amounts = course.chance.choices(range(100, 900), k=20)
        days = [date(2024, 4, 1) + timedelta(days=number) for number in range(len(amounts))]
        lots = [
            OpeningLot("bonus", amount, date(2024, 3, 1), day)
            for amount, day in zip(amounts, days, strict=True)
        ]
        member = course.join()
        course.open(course.desk, member, *lots)
        for day in days:
            if course.standing(member).balance("bonus"):
                yield member, day


def ticks(course: Course) -> Races:
    """Let several follow the calendar at once: what expires, expires once."""
    for member, ends in expiring(course):
        before = course.standing(member).balance("bonus")
        lots = course.standing(member).lots["bonus"]
        due = sum(lot.amount for lot in lots if lot.key.valid_until <= ends)
        expired = course.moved(member, "expired")
        visited = course.race([ticking(course, ends)] * course.some())
        assert course.tick(course.desk, ends) == 0
        assert not any(isinstance(one, Refusal) for one in visited)
        assert course.moved(member, "expired") - expired == due
        assert course.standing(member).balance("bonus") == before - due
        yield


def returns_and_payments(course: Course) -> Races:
    """Let goods come back while what they earned is spent: it is taken back, or owed."""
    for member, at in rounds(course):
        sale = course.sell(member, at, course.chance.randint(5_000, 20_000))
        rest = course.standing(member).balance("bonus")
        if rest <= 0:  # a debt of the races before is paid by a further sale
            course.sell(member, at + timedelta(seconds=1), 1_000_000 - rest)
            rest = course.standing(member).balance("bonus")
        moment = at + timedelta(minutes=1)
        back = course.return_of(sale, moment, sale.total_minor)
        pays = [course.payment(member.card, moment, rest) for _ in range(course.some() - 1)]
        acts = [recording(course, pay) for pay in pays]
        got = course.race([*acts, returning(course, back)])
        taken = answer(got[-1]).taken_back.get("bonus", 0)
        assert taken
        granted = len(recorded(got[:-1])) * rest
        course.judge_spending(member, before=rest, granted=granted, taken=taken)
        yield


def one_line_returned(course: Course) -> Races:
    """Let one line come back at several counters at once, whole or in parts: once."""
    for member, at in rounds(course):
        sale = course.sell(member, at, 10_000)
        before = course.standing(member).balance("bonus")
        amounts = [course.chance.choice([10_000, 6_000]) for _ in range(course.some())]
        backs = [course.return_of(sale, at + timedelta(minutes=1), amount) for amount in amounts]
        got = course.race([returning(course, back) for back in backs])
        course.double_spends += len(recorded(got)) > 1
        ((won, amount),) = [
            (one, amount)
            for one, amount in zip(got, amounts, strict=True)
            if isinstance(one, sales.Recorded)
        ]
        taken = answer(won).taken_back["bonus"]
        assert taken == amount // 100
        assert course.standing(member).balance("bonus") == before - taken
        yield


def one_receipt(course: Course) -> Races:
    """Let one receipt come by several ways at once, at times altered: booked once, as one."""
    for member, at in rounds(course):
        before = course.standing(member).balance("bonus")
        card = course.chance.choice([member.card, member.card, ""])
        first = course.receipt(card, at, 10_000)
        other = course.receipt(card, at, 20_000, number=first.number)
        sent = [course.chance.choice([first, first, other]) for _ in range(course.some())]
        got = course.race([recording(course, one) for one in sent])
        (won,) = recorded(got)
        booked = sent[got.index(won)]
        for one, result in zip(sent, got, strict=True):
            if one == booked:
                assert isinstance(result, sales.Recorded)
                assert result.answer == won.answer
            else:
                assert outcome(result) == "receipt-differs"
        earned = booked.total_minor // 100 if card else 0
        assert course.standing(member).balance("bonus") == before + earned
        yield


def one_hold(course: Course) -> Races:
    """Let one key ask several times at once, for different amounts: one hold, for one amount."""
    for member, at in rounds(course):
        before = richer(course, member, at)
        key = f"k{course.number()}"
        amounts = [course.chance.choice([before, before // 2]) for _ in range(course.some())]
        got = course.race([holding(course, member, at, amount, key) for amount in amounts])
        (held,) = course.standing(member).holds
        answers = set()
        for amount, result in zip(amounts, got, strict=True):
            if amount == held.amount:
                assert isinstance(result, Answer)
                answers.add(msgspec.json.encode(result))
            else:
                assert outcome(result) == "idempotency-key-reused"
        assert len(answers) == 1
        released = Released(at=at + timedelta(minutes=1), key=f"r{key}", hold_id=key)
        releasing(course, member, released)(course.desk)
        yield


def one_enrolment(course: Course) -> Races:
    """Let one application come several times at once: it opens one account."""
    while True:
        number = course.number()
        got = course.race([enrolling(course, number, number)] * course.some())
        (enrolled,) = set(got)
        assert isinstance(enrolled, members.Enrolled)
        course.members.append(Member(enrolled.account_id, enrolled.card_number))
        yield


def leaving(course: Course) -> Races:
    """Let a member leave while tills spend the bonus: what is not spent lapses."""
    while True:
        member = course.join()
        amount = course.chance.randint(100, 1_000)
        lot = OpeningLot("bonus", amount, date(2024, 3, 1))
        openings = course.race([opening(course, member, lot)] * course.some())
        course.double_spends += course.standing(member).balance("bonus") > amount
        assert [outcome(one) for one in openings].count("answer") == 1
        at = course.at("2024-03-05 10:00")
        pay = [course.payment(member.card, at, amount) for _ in range(course.some() - 1)]
        left = Left(at=at, key=f"l{course.number()}", cause="member")
        got = course.race(
            [
                *(recording(course, one) for one in pay),
                ending(course, member, left),
            ]
        )
        assert isinstance(got[-1], Answer)
        spent = len(recorded(got[:-1])) * amount
        course.double_spends += spent > amount
        assert course.moved(member, "spent") == spent
        assert course.moved(member, "lapsed") == amount - spent
        yield


def moving_cards(course: Course) -> Races:
    """Let a card be pooled or replaced while receipts come: each is booked once, somewhere."""
    while True:
        mother, son = course.join(), course.join()
        card, onto = son.card, mother
        for number in range(ROUNDS_PER_MEMBER):
            # A new card is active after 24 hours.
            at = course.at("2024-03-05 08:00") + timedelta(days=2 * number)
            before = course.worth(mother, "points") + course.worth(son, "points")
            moments = [
                at + timedelta(seconds=course.chance.randint(-100, 100))
                for _ in range(course.some() - 1)
            ]
            sent = [course.receipt(card, moment, 1_000) for moment in moments]
            if course.chance.random() < 0.5:
                move: Act = pooling(course, card, onto, at)
                onto = son if onto is mother else mother
            else:
                move = replacing(course, card, at)
            *got, moved = course.race([*(recording(course, one) for one in sent), move])
            assert isinstance(moved, Card)
            answers = [answer(one) for one in got]
            earned = sum(one.earned.get("points", 0) for one in answers)
            after = course.worth(mother, "points") + course.worth(son, "points")
            assert after - before == earned
            for moment, one in zip(moments, answers, strict=True):
                # Before the move the card works; after it a replaced one may not any more.
                assert one.earned or (moment >= at and moved.number != card), one
            card = moved.number
            yield


def sales_and_their_returns(course: Course) -> Races:
    """Let a return overtake its sale, or a sale the card that it was made with: all is folded."""
    for member, at in rounds(course):
        number = course.number()
        sale = course.receipt(member.card, at, 10_000)
        back = course.return_of(sale, at + timedelta(minutes=1), 4_000)
        before = course.standing(member).balance("bonus")
        early = course.receipt(number, course.at("2024-03-04 10:00"), 10_000)
        acts: list[Act] = [
            recording(course, sale),
            returning(course, back),
            recording(course, early),
            enrolling(course, number, number),
        ]
        course.chance.shuffle(acts)
        got: list[object] = list(course.race(acts))
        assert not any(isinstance(one, Refusal) for one in got), got
        (enrolled,) = [one for one in got if isinstance(one, members.Enrolled)]
        new = Member(enrolled.account_id, enrolled.card_number)
        course.members.append(new)
        assert course.standing(new).balance("bonus") == 100
        assert course.standing(member).balance("bonus") == before + 60
        yield


def publishing_terms(course: Course) -> Races:
    """Let terms be published while receipts of their first day come: one judges them all."""
    (path,) = (ROOT / "programmes" / "alltid").glob("*.toml")
    source = path.read_text("utf-8")
    member = course.join()
    percent = 1
    for number in itertools.count():
        day = date(2024, 4, 1) + timedelta(days=number)
        new = source.replace("valid_from = 2016-01-01", f"valid_from = {day}")
        new = new.replace("percent = 1\n", f"percent = {3 - percent}\n")
        assert new.count(f"percent = {3 - percent}\n") == 1
        sent = [
            course.receipt(member.card, course.at(f"{day} 10:00"), 1_000)
            for _ in range(course.some() - 1)
        ]
        # To read terms takes long: without a head start they would hardly ever be the first.
        acts = [delayed(recording(course, one), course.chance.uniform(0, 0.1)) for one in sent]
        *got, published = course.race([*acts, publishing_one(new)])
        if published is True:
            percent = 3 - percent
        else:
            assert outcome(published) == "terms-too-late"
        assert [answer(one).earned for one in got] == [{"bonus": 10 * percent}] * len(sent)
        yield


Act = Callable[[psycopg.Connection], Any]


def recording(course: Course, receipt: Receipt) -> Act:
    return lambda connection: course.record(connection, receipt)[0]


def delayed(act: Act, seconds: float) -> Act:
    def late(connection: psycopg.Connection) -> object:
        time.sleep(seconds)
        return act(connection)

    return late


def recording_all(course: Course, receipts: Sequence[Receipt]) -> Act:
    return lambda connection: course.record(connection, *receipts)


def returning(course: Course, back: Return) -> Act:
    return lambda connection: course.take_back(connection, back)


def holding(course: Course, member: Member, at: datetime, amount: int, key: str) -> Act:
    return lambda connection: course.hold(connection, member, at, amount, key)


def releasing(course: Course, member: Member, released: Released) -> Act:
    return lambda connection: spending.release(
        connection,
        programme=course.programme,
        account_id=member.account_id,
        released=released,
        warrant=Warrant("till"),
    )


def enrolling(course: Course, card: str, key: str) -> Act:
    return lambda connection: course.enrol(connection, card, key)


def opening(course: Course, member: Member, lot: OpeningLot) -> Act:
    return lambda connection: course.open(connection, member, lot)


def ending(course: Course, member: Member, left: Left) -> Act:
    return lambda connection: members.leave(
        connection,
        programme=course.programme,
        account_id=member.account_id,
        left=left,
        warrant=Warrant("desk"),
    )


def publishing_one(source: str) -> Act:
    return lambda connection: publishing.publish_terms(
        connection, source=source, at=NOW, by="publisher"
    )


def ticking(course: Course, through: date) -> Act:
    return lambda connection: course.tick(connection, through)


def pooling(course: Course, card: str, onto: Member, at: datetime) -> Act:
    return lambda connection: cards.pool_card(
        connection,
        programme=course.programme,
        number=card,
        onto=onto.account_id,
        at=at,
        warrant=Warrant("desk"),
    )


def replacing(course: Course, card: str, at: datetime) -> Act:
    new = course.number()
    return lambda connection: cards.replace_card(
        connection,
        programme=course.programme,
        number=card,
        new_number=new,
        at=at,
        warrant=Warrant("desk"),
    )


# --- the proofs -----------------------------------------------------------------------------

RACES: dict[Callable[[Course], Races], int] = {
    payments: 900,
    payments_in_parts: 500,
    holds: 600,
    captures: 600,
    crossed_batches: 200,
    expiry: 500,
    ticks: 200,
    returns_and_payments: 400,
    one_line_returned: 300,
    one_receipt: 300,
    one_hold: 120,
    one_enrolment: 80,
    leaving: 100,
    moving_cards: 100,
    sales_and_their_returns: 60,
    publishing_terms: 40,
}
"""How many of each are run in a short run: 5,000."""

MUST_HAPPEN: dict[Callable[[Course], Races], set[str]] = {
    payments: {"recorded", "not-enough"},
    payments_in_parts: {"recorded", "not-enough"},
    holds: {"answer", "recorded", "not-enough"},
    captures: {"answer", "recorded", "hold-unknown"},
    expiry: {"recorded", "not-enough", "int"},
    returns_and_payments: {"recorded", "not-enough"},
    one_line_returned: {"recorded", "returned-more-than-bought"},
    one_receipt: {"recorded", "replayed", "receipt-differs"},
    one_hold: {"answer", "idempotency-key-reused"},
    leaving: {"answer", "recorded", "membership-ended", "already-opened"},
    publishing_terms: {"recorded", "bool", "terms-too-late"},
}
"""Each way out of a race must have been seen: otherwise nothing was raced."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("races", RACES, ids=lambda races: races.__name__)
def test_nothing_is_spent_or_booked_twice(
    races: Callable[[Course], Races],
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    count = long_or_short(RACES[races] * SOAK_FACTOR, RACES[races])
    url = make_database(races.__name__.replace("_", "-"))(APP)
    set_up(url)
    started = time.monotonic()
    programme = "coop" if races is moving_cards else "alltid"
    with Course(url, chance, programme) as course:
        for number, _ in enumerate(islice(races(course), count), start=1):
            if number % BATCH == 0:
                course.audit()
        course.audit()
    evidence(
        races=count,
        racers=course.racers_total,
        double_spends=course.double_spends,
        outcomes=dict(course.outcomes),
        seconds=round(time.monotonic() - started, 1),
    )
    assert course.double_spends == 0
    assert course.outcomes.keys() >= MUST_HAPPEN.get(races, set())


# --- the harness can fail -------------------------------------------------------------------

LOCK = re.compile(r"\s*FOR NO KEY UPDATE(?=\",)")

DEFENCES = """
ALTER TABLE event DROP CONSTRAINT event_pkey CASCADE;
ALTER TABLE transfer DROP CONSTRAINT transfer_pkey CASCADE;
ALTER TABLE posting DROP CONSTRAINT posting_pkey CASCADE;
ALTER TABLE lot DROP CONSTRAINT lot_remaining_check;
DROP TRIGGER transfer_posted ON transfer;
DROP TRIGGER posting_belongs ON posting;
"""
"""What the database itself has against two transactions that count on from the same standing."""

NAIVE_ROUNDS = 50


def without_lock(source: Path, copy: Path) -> Path:
    """Copy Kantis with its accounts read as they are, though another may be about to change them.

    Checking and then acting without a lock is how balances are commonly spent twice.
    """
    shutil.copytree(source, copy / "kantis")
    for name, lock, none in (
        ("db/accounts.py", LOCK, ""),
        ("operations/sales.py", "locking=locking,", "locking=False,"),
    ):
        path = copy / "kantis" / name
        naive, found = re.subn(lock, none, path.read_text("utf-8"))
        assert found == 1, "where is the lock?"
        path.write_text(naive, "utf-8")
    return copy


def raced(kantis: Path, url: str, seed: int, rounds: int, *, has_lock: bool) -> dict[str, int]:
    """Run the plainest race in a process of its own, on a copy of Kantis."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            url,
            str(seed),
            str(rounds),
            *(["no-lock"] if not has_lock else []),
        ],
        env=os.environ | {"PYTHONPATH": str(kantis)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counted: dict[str, int] = json.loads(done.stdout)
    return counted


@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_lock", [True, False], ids=["lock", "no-lock"])
@pytest.mark.parametrize("has_defences", [True, False], ids=["constraints", "no-constraints"])
def test_only_without_lock_and_constraints_is_a_balance_spent_twice(
    has_lock: bool,
    has_defences: bool,
    seed: int,
    tmp_path: Path,
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    source = ROOT / "src"
    database = make_database(f"naive-{has_lock}-{has_defences}".lower())
    set_up(database(APP))
    if not has_defences:
        with psycopg.connect(database(OWNER), autocommit=True) as connection:
            connection.execute(DEFENCES)
    kantis = source if has_lock else without_lock(source / "kantis", tmp_path)
    counted = raced(kantis, database(APP), seed, NAIVE_ROUNDS, has_lock=has_lock)
    evidence(has_lock=has_lock, has_defences=has_defences, **counted)
    if has_lock or has_defences:
        assert counted["double_spends"] == 0
        assert counted["races"] == NAIVE_ROUNDS
    else:
        assert counted["double_spends"] == 1
        assert counted["races"] < NAIVE_ROUNDS


def run_alone(url: str, seed: str, rounds: str, *without: str) -> None:
    """Race for one balance until it is spent twice, and print in which race that was.

    Without the lock it is a lot's own constraint that may refuse the second payment first.
    """
    refused = (psycopg.errors.CheckViolation,) if without else ()
    with Course(url, random.Random(seed), retried=(*sales.RETRIED, *refused)) as course:
        until_spent_twice = takewhile(lambda _: not course.double_spends, payments(course))
        races = sum(1 for _ in islice(until_spent_twice, int(rounds)))
        found = course.double_spends
    sys.stdout.write(json.dumps({"races": races + found, "double_spends": found}))


if __name__ == "__main__":
    run_alone(*sys.argv[1:])
