"""All operations in any order against a small model, on a real database, with every commit made.

After each step both must agree on what was answered or refused and on where every account stands;
the books must add up, and each account be the fold of its history. `model.py` is the model.
Each round has a database of its own, each example a programme of its own. Hypothesis repeats its
examples when `CI` is set, so it is given a profile and a seed of ours.
"""

import copy
import importlib.util
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import hypothesis
import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kantis.core.admission import Applicant, Warrant
from kantis.core.answers import Answer
from kantis.core.cards import Card
from kantis.core.events import (
    AnyEvent,
    Held,
    Joined,
    Left,
    Opened,
    OpeningLot,
    Released,
    StatusChanged,
)
from kantis.core.periods import Period
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender
from kantis.core.refusals import Refusal
from kantis.core.standing import Standing
from kantis.core.step import caught_up
from kantis.db import accounts, programmes
from kantis.db.cluster import APP
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.operations import audit, cards, members, publishing, sales, spending, upkeep

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.proofs import model
else:
    # Tests are no package: what lies beside them is loaded by its path.
    spec = importlib.util.spec_from_file_location("model", Path(__file__).with_name("model.py"))
    model = sys.modules["model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)

T = TypeVar("T")

EXAMPLES, STEPS = 20, 50
"""In a round: examples, each of at most so many steps."""

hypothesis.settings.register_profile(
    "model",
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    derandomize=False,
    database=None,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

START = datetime(2024, 2, 26, 10, tzinfo=model.ZONE)
WAITS = [timedelta(seconds=1)] * 4 + [
    timedelta(minutes=1),
    timedelta(minutes=50),
    timedelta(hours=7),
    timedelta(hours=7),
    timedelta(days=1),
    timedelta(days=2),
    timedelta(days=2),
    timedelta(days=9),
    timedelta(days=30),
    timedelta(days=75),
    timedelta(0),  # until just before midnight
]
AGO = [timedelta(0)] * 9 + [
    timedelta(minutes=-4),
    timedelta(minutes=-6),
    timedelta(minutes=20),
    timedelta(hours=5),
    timedelta(days=1),
    timedelta(days=4),
    timedelta(days=20),
    timedelta(days=33),
    timedelta(days=70),
    timedelta(days=900),
]
"""How long ago a receipt was made when it comes; a clock may also be ahead."""

waits = st.sampled_from(WAITS)
agos = st.sampled_from(AGO)
picks = st.sampled_from([*range(12), 0, 1, 2, 0, 1])
percents = st.sampled_from([0, 1, 10, 33, 50, 50, 99, 100, 100, 100, 101, 150])
rarely = st.integers(0, 9).map(lambda n: n == 9)
lines = st.lists(
    st.builds(
        Line,
        st.one_of(
            st.integers(1, 300), st.integers(300, 9_000), st.integers(9_000, 30_000), st.just(-250)
        ),
        st.sampled_from(["food", "food", "gift"]),
        st.sampled_from(["", "", "a"]),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
warrants = st.sampled_from(
    [Warrant("desk", "why")] * 4
    + [Warrant("desk", "why", "chief")] * 4
    + [Warrant("desk"), Warrant("desk", "why", "desk")]
)
faults = st.sampled_from(
    [""] * 14 + ["store", "currency", "sum", "tenders", "proof", "training", "stars"]
)


TILL = Warrant("till")
ADULT = Applicant(born_on=date(1980, 5, 1))

MUST_HAPPEN = ["in order", "late", "Again", "Kept", "with a debt", "with a hold", "gold", "gone"]
MUST_HAPPEN += ["not-enough", "receipt-differs", "returned-more-than-bought", "card-not-usable"]
"""A run in which one of these never happened has proved too little."""


class Ledger:
    """A database for some examples; another one after an example that went wrong."""

    def __init__(self, server: "Server", name: str) -> None:
        self.server = server
        self.names = (f"{name}-{number}" for number in itertools.count())
        self.numbers = itertools.count(1)
        self.open = ExitStack()
        self.is_clean = False
        self.done: Counter[str] = Counter()

    def connection_for_an_example(self) -> psycopg.Connection:
        if not self.is_clean:
            self.renew()
        self.is_clean = False
        return self.connection

    def renew(self) -> None:
        self.close()
        name = next(self.names)
        self.server.create(name, template=self.server.database("template"))
        self.open.callback(self.server.drop, name)
        url = self.server.url(APP, self.server.database(name))
        self.connection = self.open.enter_context(connect(url))

    def close(self) -> None:
        self.open.close()
        self.is_clean = False


def outcome_of(call: Callable[[], T]) -> T | model.No:
    """Give what an operation gives, or its refusal in the model's words."""
    try:
        return call()
    except Refusal as refusal:
        return model.No(refusal.code)


at_a_desk = precondition(lambda self: self.turns % 3 == 0)
"""Desks have less to do than tills."""


class Machine(RuleBasedStateMachine):
    """What tills, desks and the calendar may do, each on Kantis and on the model."""

    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.connection = self.ledger.connection_for_an_example()
        self.example = next(self.ledger.numbers)
        self.name = f"model-{self.example}"
        self.shop = model.Shop(self.name)
        self.now = START
        self.turns = 0
        self.number = itertools.count(1)
        self.sent: list[Receipt | Return] = []
        self.unsent: list[Receipt] = []
        self.first: dict[tuple[int, str] | str, Any] = {}
        self.cards: list[str] = []
        self.asked: list[Callable[[], None]] = []
        self.went_wrong = True
        publishing.publish_terms(
            self.connection,
            source=model.TERMS.replace("NAME", self.name),
            at=START,
            by="publisher",
        )
        for store in model.STORES:
            publishing.add_store(self.connection, programme=self.name, store=Store(store))
        self.went_wrong = False

    def teardown(self) -> None:
        """End the example with a full audit of its accounts and of the books."""
        if self.went_wrong:
            return
        for account in self.shop.accounts:
            wrong = audit.audit_account(self.connection, programme=self.name, account_id=account)
            assert wrong == ()
        for finding in audit.audit_books(self.connection):
            assert finding.wrong == (), finding.check
        self.ledger.done["examples"] += 1
        self.ledger.is_clean = True

    # --- what steps share ---

    def step(self, what: str, wait: timedelta) -> None:
        self.went_wrong = True
        self.turns += 1
        self.ledger.done["steps"] += 1
        self.ledger.done[what] += 1
        if wait:
            self.now += wait
            return
        self.now = self.now.astimezone(model.ZONE)
        late = self.now.replace(hour=23, minute=57, second=0)
        self.now = late if late > self.now else late + timedelta(days=1)

    def agree(self) -> None:
        """Compare where every account stands, and what is told of one of them."""
        terms = programmes.load(self.connection, self.name)
        kept = accounts.read(self.connection, self.shop.accounts)
        asked = [*self.shop.accounts][self.turns % len(self.shop.accounts)]
        for account, ours in self.shop.stand(self.now).items():
            theirs, _ = caught_up(terms, kept[account].standing, at=self.now)
            assert described(theirs) == expected(ours)
            self.ledger.done["with a debt"] += any(ours.debts.values())
            self.ledger.done["with a hold"] += any(hold.amount for hold in ours.holds)
            self.ledger.done["gold"] += ours.tier == "gold"
            self.ledger.done["gone"] += ours.left
            if account == asked:
                seen = members.look(
                    self.connection, programme=self.name, account_id=account, at=self.now
                )
                assert balances_told(seen) == balances_expected(ours)
        self.went_wrong = False

    def compare(self, outcome: model.Outcome, answer: Answer, raw: object) -> None:
        """Compare an answer with what the model says, or with what was answered first."""
        match outcome:
            case model.Booked(account=account, key=key, in_order=in_order):
                # Returns that have waited for a receipt come after its answer.
                standing = self.shop.standing(account, upto=key)
                said = standing.said[key]
                assert answer.key == key
                assert told(answer) == model_told(said)
                if in_order:
                    assert balances_told(answer) == balances_expected(standing)
                    assert answer.tier == standing.tier
                    assert answer.next_tier == ("gold" if standing.rises_on != model.NEVER else "")
                self.first[account, key] = self.first[key] = raw
            case model.Kept(nothing=nothing):
                assert answer == Answer(key=answer.key, nothing=nothing)
                self.first[answer.key] = raw
            case _:
                raise AssertionError(outcome)

    def count(self, what: str) -> None:
        self.ledger.done[what] += 1

    def account(self, pick: int) -> int:
        """Pick an account, now and then one that there is not."""
        known = list(self.shop.accounts)
        return 10**15 if pick == 11 else known[pick % len(known)]

    def card(self, pick: int) -> str:
        """Pick a card: mostly one that works, now and then any, none, or one nobody has."""
        if pick == 11:
            return ""
        if pick == 10:
            return self.card_number(7)
        working = [one for one in self.cards if not self.shop.cards[one].why_not(self.now)]
        candidates = working if working and pick < 9 else self.cards
        return candidates[-1 - pick % len(candidates)]

    def card_number(self, number: int) -> str:
        """Give a number of few, that can be seen before its card is handed over."""
        return f"{self.example:08d}{number:04d}"

    def some_number(self, pick: int) -> str:
        """Give a card's number: one of few that may be taken, or none."""
        return "" if pick > 7 else self.card_number(pick)

    def drawn_number(self) -> str:
        return self.card_number(1000 + next(self.number))

    def fresh_or_used(self, account: int, what: str, reuse: bool) -> str:
        used = [event.key for event in self.shop.accounts.get(account, ())]
        return used[-1] if reuse and used else f"{what}-{next(self.number)}"

    # --- tills ---

    def receipt(
        self, *, card: str, ago: timedelta, lines: tuple[Line, ...], fault: str = ""
    ) -> Receipt:
        at = self.now - ago
        total = sum(line.amount_minor for line in lines)
        return Receipt(
            store="nowhere" if fault == "store" else model.STORES[len(lines) % 2],
            till="1",
            business_day=at.date(),
            number=str(next(self.number)),
            at=at,
            currency="SEK" if fault == "currency" else "EUR",
            total_minor=total + (fault == "sum"),
            lines=lines,
            tenders=(Tender("cash", total + 1),) if fault == "tenders" else (),
            card=card,
            training=fault == "training",
        )

    def paid(self, receipt: Receipt, percent: int, hold_pick: int, fault: str) -> Receipt:
        """Pay a part of a receipt with bonus that the account has, or with a hold."""
        card = self.shop.cards.get(receipt.card)
        account = None if card is None else card.account(receipt.at)
        if account is None:
            account = self.account(0)
        standing = self.shop.standing(account, self.now)
        available = standing.spendable(model.day_of(self.now))
        hold = ""
        if hold_pick < 6 and standing.holds:
            held = standing.holds[hold_pick % len(standing.holds)]
            hold, available = held.name, held.amount
        elif hold_pick == 11:
            hold = "no-such-hold"
        bonus = max(1, min(available * percent // 100, receipt.total_minor))
        unit = model.STARS if fault == "stars" else model.BONUS
        tenders = [Tender(unit, bonus, hold)]
        if receipt.total_minor != bonus:
            tenders.append(Tender("cash", receipt.total_minor - bonus))
        return msgspec.structs.replace(
            receipt, tenders=tuple(tenders), proof="" if fault == "proof" else "pin"
        )

    def send(self, *documents: Receipt | Return) -> None:
        """Send documents of one kind together, and compare each result."""
        receipts = [one for one in documents if isinstance(one, Receipt)]
        returns = [one for one in documents if isinstance(one, Return)]
        common: dict[str, Any] = {"programme": self.name, "now": self.now, "warrant": TILL}
        results: list[sales.Result] = []
        outcomes: list[model.Outcome] = []
        if receipts:
            results += sales.record_receipts(self.connection, receipts=receipts, **common)
            outcomes += self.shop.record(receipts, self.now)
        if returns:
            results += sales.record_returns(self.connection, returns=returns, **common)
            outcomes += self.shop.record_returns(returns, self.now)
        in_turn: list[Receipt | Return] = [*receipts, *returns]
        for document, outcome, result in zip(in_turn, outcomes, results, strict=True):
            self.count(type(outcome).__name__)
            if isinstance(outcome, model.Booked):
                self.count("in order" if outcome.in_order else "late")
            if isinstance(outcome, model.No):
                assert isinstance(result, Refusal), (outcome, result)
                assert result.code == outcome.code
                self.count(outcome.code)
                continue
            assert isinstance(result, sales.Recorded), (outcome, result)
            assert result.replayed == isinstance(outcome, model.Again)
            if isinstance(outcome, model.Again):
                assert result.answer == self.first[outcome.key]
            elif len(documents) == 1:
                self.compare(
                    outcome, msgspec.json.decode(result.answer, type=Answer), result.answer
                )
            else:
                # What the account stood at in between is seen when documents are sent alone.
                self.first[self.shop.key(document)] = result.answer
            self.sent.append(document)
        self.agree()

    @initialize(some=lines, kind=st.sampled_from(["app", "app", "plastic"]))
    def begin(self, some: tuple[Line, ...], kind: str) -> None:
        self.join(timedelta(seconds=1), "app", 0, 1980, "begin", True)
        self.join(timedelta(seconds=1), kind, 0, 1980, "begin too", True)
        self.send(self.receipt(card=self.cards[0], ago=timedelta(0), lines=some))

    @precondition(lambda self: self.cards)
    @rule(wait=waits, ago=agos, card=picks, some=lines, fault=faults, quoted=st.booleans())
    def buy(
        self,
        wait: timedelta,
        ago: timedelta,
        card: int,
        some: tuple[Line, ...],
        fault: str,
        quoted: bool,
    ) -> None:
        self.step("buy", wait)
        receipt = self.receipt(card=self.card(card), ago=ago, lines=some, fault=fault)
        if quoted:
            self.quote(receipt)
        self.send(receipt)

    @precondition(lambda self: self.cards)
    @rule(
        wait=waits,
        ago=agos,
        card=picks,
        some=lines,
        percent=percents,
        hold=picks,
        fault=faults,
        quoted=st.booleans(),
    )
    def buy_with_bonus(
        self,
        wait: timedelta,
        ago: timedelta,
        card: int,
        some: tuple[Line, ...],
        percent: int,
        hold: int,
        fault: str,
        quoted: bool,
    ) -> None:
        self.step("buy with bonus", wait)
        receipt = self.receipt(card=self.card(card), ago=ago, lines=some)
        receipt = self.paid(receipt, percent, hold, fault)
        if quoted:
            self.quote(receipt)
        self.send(receipt)

    def quote(self, receipt: Receipt) -> None:
        """Ask what a receipt would earn, of both; on a model of the model."""
        quoted = outcome_of(
            lambda: sales.quote(self.connection, programme=self.name, receipt=receipt, now=self.now)
        )
        trial = copy.deepcopy(self.shop)
        (outcome,) = trial.record([receipt], self.now)
        if isinstance(outcome, model.Booked):
            assert isinstance(quoted, Answer), quoted
            assert told(quoted) == model_told(trial.standing(outcome.account).said[outcome.key])
        elif isinstance(outcome, model.Kept):
            assert quoted == Answer(key=self.shop.key(receipt), nothing=outcome.nothing)
        else:
            assert quoted == outcome

    @precondition(lambda self: self.cards)
    @rule(wait=waits, each=st.lists(st.tuples(agos, picks, lines), min_size=2, max_size=4))
    def buy_at_once(
        self, wait: timedelta, each: list[tuple[timedelta, int, tuple[Line, ...]]]
    ) -> None:
        self.step("buy at once", wait)
        some = [self.receipt(card=self.card(card), ago=ago, lines=of) for ago, card, of in each]
        self.send(*some, some[0])

    @precondition(lambda self: self.sent)
    @rule(wait=waits, pick=picks, how=st.sampled_from(["same", "same", "zone", "other", "kind"]))
    def send_again(self, wait: timedelta, pick: int, how: str) -> None:
        """Send a document again: the same, written in another zone, with another content."""
        self.step("send again", wait)
        document = self.sent[-1 - pick % len(self.sent)]
        match how, document:
            case "zone", _:
                document = msgspec.structs.replace(document, at=document.at.astimezone(UTC))
            case "other", Receipt():
                document = msgspec.structs.replace(document, proof="other")
            case "other", Return():
                document = msgspec.structs.replace(document, lines=(ReturnLine(1, 77),))
            case "kind", Receipt():
                document = self.return_of(document, timedelta(0), [(0, 50)], document.number)
            case _:
                pass
        self.send(document)

    def return_of(
        self, sale: Receipt, ago: timedelta, some: list[tuple[int, int]], number: str = ""
    ) -> Return:
        at = self.now - ago
        if ago != AGO[-2]:  # most goods are brought back after they were bought
            at = max(at, sale.at)
        backs = []
        for index, percent in some:
            place = index % (len(sale.lines) + 1 if percent == 101 else len(sale.lines))
            amount = sale.lines[place].amount_minor if place < len(sale.lines) else 100
            backs.append(ReturnLine(place + 1, max(1, amount * percent // 100)))
        return Return(
            store=sale.store if number else "south",
            till="1",
            business_day=sale.business_day if number else at.date(),
            number=number or str(next(self.number)),
            at=at,
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            lines=tuple(backs),
        )

    @precondition(lambda self: self.sent)
    @rule(
        wait=waits,
        ago=agos,
        pick=picks,
        some=st.lists(st.tuples(st.integers(0, 3), percents), min_size=1, max_size=3),
        twice=rarely,
    )
    def bring_back(
        self,
        wait: timedelta,
        ago: timedelta,
        pick: int,
        some: list[tuple[int, int]],
        twice: bool,
    ) -> None:
        self.step("bring back", wait)
        sale = self.sent[-1 - pick % len(self.sent)]
        if isinstance(sale, Return):
            # The goods of a return: nobody sold them.
            sale = msgspec.structs.replace(
                self.receipt(card="", ago=ago, lines=(Line(100),)),
                store=sale.store,
                business_day=sale.business_day,
                number=sale.number,
            )
        back = self.return_of(sale, ago, some)
        more = [self.return_of(sale, ago, some)] if twice else []
        self.send(back, *more)

    @precondition(lambda self: self.cards)
    @rule(wait=waits, ago=agos, card=picks, some=lines, back=percents, bought=agos)
    def bring_back_first(
        self,
        wait: timedelta,
        ago: timedelta,
        card: int,
        some: tuple[Line, ...],
        back: int,
        bought: timedelta,
    ) -> None:
        """Bring goods back whose receipt has not come yet."""
        self.step("bring back first", wait)
        sale = self.receipt(card=self.card(card), ago=max(ago, bought), lines=some)
        self.unsent.append(sale)
        self.send(self.return_of(sale, min(ago, bought), [(0, back)]))

    @precondition(lambda self: self.cards)
    @rule(wait=waits, card=picks, some=lines, percent=percents)
    def spend_and_bring_back(
        self, wait: timedelta, card: int, some: tuple[Line, ...], percent: int
    ) -> None:
        """Buy, spend the bonus, and bring back what had earned it."""
        self.step("spend and bring back", wait)
        number = self.card(card)
        earning = self.receipt(card=number, ago=timedelta(0), lines=some)
        self.send(earning)
        spending = self.receipt(card=number, ago=timedelta(0), lines=(Line(9_000),))
        self.send(self.paid(spending, percent, 10, ""))
        self.send(self.return_of(earning, timedelta(0), [(n, 100) for n in range(len(some))]))

    @precondition(lambda self: self.cards)
    @rule(
        wait=waits, card=picks, ago=agos, some=lines, held=percents, percent=percents, fault=faults
    )
    def hold_and_pay(
        self,
        wait: timedelta,
        card: int,
        ago: timedelta,
        some: tuple[Line, ...],
        held: int,
        percent: int,
        fault: str,
    ) -> None:
        """Hold and capture, with a till whose clock may be behind, or long after."""
        self.step("hold and pay", wait)
        number = self.card(card)
        account = self.shop.cards[number].account(self.now) if number in self.shop.cards else None
        if account is not None:
            available = self.shop.standing(account, self.now).spendable(model.day_of(self.now))
            name = f"hold-{next(self.number)}"
            asked = Held(
                at=self.now,
                key=name,
                hold_id=name,
                unit=model.BONUS,
                amount=available * held // 100,
                until_at=self.now,
            )
            self.ask(account, asked, TILL, proof="pin")
        receipt = self.receipt(card=number, ago=ago, lines=some)
        receipt = self.paid(receipt, percent, 5, fault)
        if fault == "tenders":
            receipt = msgspec.structs.replace(
                receipt,
                tenders=tuple(msgspec.structs.replace(one, kind="cash") for one in receipt.tenders),
            )
        self.send(receipt)

    @precondition(lambda self: self.unsent)
    @rule(wait=waits)
    def send_what_was_missing(self, wait: timedelta) -> None:
        self.step("send what was missing", wait)
        self.send(self.unsent.pop())

    @precondition(lambda self: self.sent)
    @rule(wait=waits, pick=picks, account=picks)
    def claim(self, wait: timedelta, pick: int, account: int) -> None:
        self.step("claim", wait)
        receipts = [one for one in self.sent if isinstance(one, Receipt)]
        without = [
            one for one in receipts if not one.card and self.shop.key(one) in self.shop.strays
        ]
        candidates = without if without and pick < 9 else receipts
        if not candidates:
            return self.agree()
        receipt = candidates[pick % len(candidates)]
        onto = self.account(account)
        claimed = outcome_of(
            lambda: sales.claim_receipt(
                self.connection,
                programme=self.name,
                account_id=onto,
                sale=SaleKey(receipt.store, receipt.till, receipt.business_day, receipt.number),
                at=self.now,
                warrant=TILL,
            )
        )
        outcome = self.shop.claim(onto, receipt)
        self.count(type(outcome).__name__)
        if isinstance(outcome, model.Booked):
            assert isinstance(claimed, Answer), claimed
            said = self.shop.standing(onto).said[outcome.key]
            assert told(claimed) == model_told(said)
        else:
            assert claimed == outcome
        return self.agree()

    # --- desks ---

    def ask(self, account: int, asked: AnyEvent, warrant: Warrant, *, proof: str = "") -> None:
        """Ask for something on an account, of both."""
        act: Callable[..., Answer]
        named: dict[str, Any]
        match asked:
            case Joined():
                act, named = members.rejoin, {"joined": asked, "applicant": ADULT}
            case Opened():
                act, named = members.open_balances, {"opening": asked}
            case StatusChanged():
                act, named = members.grant_status, {"change": asked}
            case Left():
                act, named = members.leave, {"left": asked}
            case Held():
                act, named = spending.hold, {"held": asked, "proof": proof}
            case Released():
                act, named = spending.release, {"released": asked}
            case _:
                raise AssertionError(asked)
        answer = outcome_of(
            lambda: act(
                self.connection,
                programme=self.name,
                account_id=account,
                warrant=warrant,
                **named,
            )
        )
        outcome = self.shop.happen(account, asked, warrant, proof=proof)
        self.count(type(outcome).__name__)
        if isinstance(outcome, model.Booked):
            assert isinstance(answer, Answer), (outcome, answer)
            self.compare(outcome, answer, answer)
        elif isinstance(outcome, model.Again):
            # Joining and cards have no answer that a till saw.
            assert answer == self.first.get((account, outcome.key), answer)
        else:
            assert answer == outcome
        self.agree()

    @at_a_desk
    @precondition(lambda self: len(self.shop.accounts) < 3)
    @rule(
        wait=waits,
        kind=st.sampled_from(["app", "app", "plastic", "paper"]),
        number=picks,
        born=st.sampled_from([1980, 1980, 1980, 2015]),
    )
    def enrol(self, wait: timedelta, kind: str, number: int, born: int) -> None:
        self.join(wait, kind, number, born, f"enrol-{next(self.number)}", False)

    def join(
        self, wait: timedelta, kind: str, number: int, born: int, key: str, drawn: bool
    ) -> None:
        self.step("enrol", wait)
        card = "" if drawn else self.some_number(number)
        applicant = Applicant(born_on=date(born, 5, 1))
        self.enrol_as(key, applicant, kind, card)
        self.asked.append(lambda: self.enrol_as(key, applicant, kind, card))

    def enrol_as(self, key: str, applicant: Applicant, kind: str, card: str) -> None:
        drawn = self.drawn_number()
        enrolled = outcome_of(
            lambda: members.enrol(
                self.connection,
                programme=self.name,
                application=members.Application(
                    applicant=applicant, card_kind=kind, card_number=card
                ),
                request_key=key,
                at=self.now,
                warrant=TILL,
                drawn_number=drawn,
            )
        )
        content = (kind, card)
        before = self.shop.asked_before(key, content)
        if before is not None:
            self.count(f"enrol {type(before).__name__}")
            assert enrolled == (self.first[key] if isinstance(before, model.Again) else before)
            return self.agree()
        if wrong := self.shop.why_not_enrol(applicant, kind, card or drawn, self.now):
            self.count(wrong)
            assert enrolled == model.No(wrong)
            return self.agree()
        assert isinstance(enrolled, members.Enrolled), enrolled
        assert enrolled.card_number == (card or drawn)
        assert enrolled.account_id not in self.shop.accounts
        self.shop.enrol(
            enrolled.account_id,
            request_key=key,
            content=content,
            card=card or drawn,
            kind=kind,
            at=self.now,
        )
        self.first[key] = enrolled
        self.cards.append(card or drawn)
        return self.agree()

    @at_a_desk
    @precondition(lambda self: self.shop.accounts)
    @rule(
        wait=waits,
        account=picks,
        kind=st.sampled_from(["app", "app", "plastic", "paper"]),
        role=st.sampled_from(["main", "family", "family", "guest"]),
        number=picks,
    )
    def issue(self, wait: timedelta, account: int, kind: str, role: str, number: int) -> None:
        self.step("issue", wait)
        key = f"issue-{next(self.number)}"
        onto, card = self.account(account), self.some_number(number)
        self.issue_as(key, onto, kind, role, card)
        self.asked.append(lambda: self.issue_as(key, onto, kind, role, card))

    def issue_as(self, key: str, account: int, kind: str, role: str, card: str) -> None:
        drawn = self.drawn_number()
        issued = outcome_of(
            lambda: cards.issue_card(
                self.connection,
                programme=self.name,
                issue=cards.Issue(account_id=account, kind=kind, role=role, number=card),
                request_key=key,
                at=self.now,
                warrant=TILL,
                drawn_number=drawn,
            )
        )
        content = (account, kind, role, card)
        before = self.shop.asked_before(key, content) if account in self.shop.accounts else None
        if before is not None:
            self.count(f"issue {type(before).__name__}")
            assert issued == (self.first[key] if isinstance(before, model.Again) else before)
            return self.agree()
        if wrong := self.shop.why_not_issue(account, kind, role, card or drawn):
            self.count(wrong)
            assert issued == model.No(wrong)
            return self.agree()
        assert isinstance(issued, Card), issued
        assert issued.number == (card or drawn)
        self.shop.issue(
            account,
            request_key=key,
            content=content,
            card=card or drawn,
            kind=kind,
            role=role,
            at=self.now,
        )
        self.first[key] = issued
        self.cards.append(card or drawn)
        return self.agree()

    @at_a_desk
    @precondition(lambda self: self.asked)
    @rule(wait=waits, pick=picks)
    def ask_for_a_card_again(self, wait: timedelta, pick: int) -> None:
        self.step("ask for a card again", wait)
        self.asked[-1 - pick % len(self.asked)]()

    @at_a_desk
    @precondition(lambda self: self.cards)
    @rule(
        wait=waits,
        what=st.sampled_from(["activate", "activate", "block", "replace", "pool"]),
        card=picks,
        number=picks,
        onto=picks,
    )
    def change_card(self, wait: timedelta, what: str, card: int, number: int, onto: int) -> None:
        self.step(what, wait)
        picked, new, drawn = self.card(card), self.some_number(number), self.drawn_number()
        account = self.account(onto)
        common: dict[str, Any] = {
            "programme": self.name,
            "number": picked,
            "at": self.now,
            "warrant": TILL,
        }
        changed: Card | model.No
        wanted: model.No | str | None
        match what:
            case "activate":
                changed = outcome_of(lambda: cards.activate_card(self.connection, **common))
                wanted = self.shop.activate(picked, self.now)
            case "block":
                changed = outcome_of(lambda: cards.block_card(self.connection, **common))
                wanted = self.shop.block(picked, self.now)
            case "pool":
                changed = outcome_of(
                    lambda: cards.pool_card(self.connection, onto=account, **common)
                )
                wanted = self.shop.pool(picked, account, self.now)
            case _:
                changed = outcome_of(
                    lambda: cards.replace_card(
                        self.connection, new_number=new, drawn_number=drawn, **common
                    )
                )
                wanted = self.shop.replace(picked, new, drawn, self.now)
        if isinstance(wanted, model.No):
            self.count(wanted.code)
            assert changed == wanted
        else:
            assert isinstance(changed, Card), changed
            assert changed.number == (wanted or picked)
            if wanted and wanted not in self.cards:
                self.cards.append(wanted)
        self.agree()

    @precondition(lambda self: self.shop.accounts)
    @rule(wait=waits, account=picks, percent=percents, proof=faults, reuse=rarely, stars=rarely)
    def hold(
        self, wait: timedelta, account: int, percent: int, proof: str, reuse: bool, stars: bool
    ) -> None:
        self.step("hold", wait)
        standings = self.shop.stand(self.now)
        of = self.account(account)
        if account < 8:  # mostly where there is something to hold
            of = max(standings, key=lambda one: standings[one].spendable(model.day_of(self.now)))
        available = standings[of].spendable(model.day_of(self.now)) if of in standings else 0
        key = self.fresh_or_used(of, "hold", reuse)
        held = Held(
            at=self.now,
            key=key,
            hold_id=key,
            unit=model.STARS if stars else model.BONUS,
            amount=available * percent // 100 + (percent == 1),
            until_at=self.now,
        )
        self.ask(of, held, TILL, proof="" if proof == "proof" else "pin")

    @precondition(lambda self: self.shop.accounts)
    @rule(wait=waits, account=picks, pick=picks, reuse=rarely)
    def release(self, wait: timedelta, account: int, pick: int, reuse: bool) -> None:
        self.step("release", wait)
        of = self.account(account)
        holding = [one for one, standing in self.shop.stand(self.now).items() if standing.holds]
        if account < 8 and holding:
            of = holding[0]
        events = self.shop.accounts.get(of, [])
        names = [event.hold_id for event in events if isinstance(event, Held)][-3:]
        name = names[pick % len(names)] if names else "no-such-hold"
        key = self.fresh_or_used(of, "release", reuse)
        self.ask(of, Released(at=self.now, key=key, hold_id=name), TILL)

    @at_a_desk
    @precondition(lambda self: self.shop.accounts)
    @rule(
        wait=waits,
        account=picks,
        status=st.sampled_from(["friend", "friend", "friend", "foe"]),
        granted=st.booleans(),
        warrant=warrants,
        reuse=rarely,
    )
    def grant(
        self,
        wait: timedelta,
        account: int,
        status: str,
        granted: bool,
        warrant: Warrant,
        reuse: bool,
    ) -> None:
        self.step("grant", wait)
        of = self.account(account)
        key = self.fresh_or_used(of, "status", reuse)
        self.ask(of, StatusChanged(at=self.now, key=key, status=status, granted=granted), warrant)

    @at_a_desk
    @precondition(lambda self: self.shop.accounts)
    @rule(
        wait=waits,
        account=picks,
        amounts=st.tuples(st.integers(0, 500), st.integers(0, 40)),
        days=st.integers(0, 60),
        own=st.booleans(),
        tier=st.sampled_from(["", "basic", "gold", "platinum"]),
        bought=st.sampled_from([0, 19_999, 20_000]),
        warrant=warrants,
        reuse=rarely,
    )
    def open_balances(
        self,
        wait: timedelta,
        account: int,
        amounts: tuple[int, int],
        days: int,
        own: bool,
        tier: str,
        bought: int,
        warrant: Warrant,
        reuse: bool,
    ) -> None:
        self.step("open balances", wait)
        of = self.account(account)
        today = model.day_of(self.now)
        earned_on = today - timedelta(days=days)
        until = today + timedelta(days=days) if own else None
        lots = [OpeningLot(model.BONUS, amounts[0], earned_on, until)]
        if amounts[1]:
            lots.append(OpeningLot(model.STARS, amounts[1], earned_on))
        opening = Opened(
            at=self.now,
            key=self.fresh_or_used(of, "open", reuse),
            lots=tuple(lots),
            tier=tier,
            sums={f"{today.year}-{today.month:02d}": bought} if bought else {},
        )
        self.ask(of, opening, warrant)

    @at_a_desk
    @precondition(lambda self: self.shop.accounts)
    @rule(
        wait=waits,
        account=picks,
        cause=st.sampled_from(["member", "abuse", "whim"]),
        warrant=warrants,
        reuse=rarely,
        sure=st.booleans(),
    )
    def leave(
        self,
        wait: timedelta,
        account: int,
        cause: str,
        warrant: Warrant,
        reuse: bool,
        sure: bool,
    ) -> None:
        self.step("leave", wait)
        of = self.account(account)
        if not sure:  # a member who stays is worth more steps than one who is gone
            cause = "whim"
        key = self.fresh_or_used(of, "leave", reuse)
        self.ask(of, Left(at=self.now, key=key, cause=cause), warrant)

    @at_a_desk
    @precondition(lambda self: self.shop.accounts)
    @rule(wait=waits, account=picks, warrant=warrants, reuse=rarely)
    def rejoin(self, wait: timedelta, account: int, warrant: Warrant, reuse: bool) -> None:
        self.step("rejoin", wait)
        gone = [of for of in self.shop.accounts if self.shop.standing(of).left]
        of = gone[0] if gone and account < 9 else self.account(account)
        self.ask(of, Joined(at=self.now, key=self.fresh_or_used(of, "rejoin", reuse)), warrant)

    # --- the calendar ---

    @rule(wait=waits, back=st.sampled_from([0, 0, 0, 1, 40, -1]), limit=st.sampled_from([1, 500]))
    def tick(self, wait: timedelta, back: int, limit: int) -> None:
        self.step("tick", wait)
        through = model.day_of(self.now) - timedelta(days=back)
        while True:
            visited = outcome_of(
                lambda: upkeep.tick(
                    self.connection,
                    programme=self.name,
                    through=through,
                    now=self.now,
                    limit=limit,
                )
            )
            if not isinstance(visited, int) or visited < limit:
                break
        if back < 0:
            assert visited == model.No("time-impossible")
        else:
            assert isinstance(visited, int), visited
            self.shop.ticked = max(self.shop.ticked, through)
        self.agree()

    @at_a_desk
    @rule(
        wait=waits,
        first=st.sampled_from([0, 0, 1, 3, -1]),
        days=st.sampled_from([1, 2, 10, 0]),
        warrant=warrants,
    )
    def suspend(self, wait: timedelta, first: int, days: int, warrant: Warrant) -> None:
        self.step("suspend", wait)
        start = model.day_of(self.now) + timedelta(days=first)
        end = start + timedelta(days=days)
        done = outcome_of(
            lambda: upkeep.suspend(
                self.connection,
                programme=self.name,
                period=Period(start, end),
                now=self.now,
                warrant=warrant,
            )
        )
        assert done == self.shop.suspend(start, end, warrant, self.now)
        self.agree()


def told(answer: Answer) -> tuple[object, ...]:
    return (
        answer.earned,
        answer.redeemed,
        answer.taken_back,
        answer.given_back,
        answer.nothing,
    )


def model_told(said: model.Said) -> tuple[object, ...]:
    return (
        dict(said.earned),
        dict(said.redeemed),
        dict(said.taken_back),
        dict(said.given_back),
        said.nothing,
    )


def balances_told(answer: Answer) -> dict[str, tuple[int, ...]]:
    return {
        unit: (one.balance, one.usable, one.pending, one.held, one.debt)
        for unit, one in answer.balances.items()
    }


def balances_expected(standing: model.Standing) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for unit in {*standing.lots, *(unit for unit, owed in standing.debts.items() if owed)}:
        lots = standing.lots.get(unit, {})
        free = sum(standing.free(unit, key) for key in lots)
        total, debt = sum(lots.values()), standing.debts[unit]
        found[unit] = (total - debt, free, 0, total - free, debt)
    return found


def described(standing: Standing) -> dict[str, object]:
    """Give what Kantis remembers of an account, in words that both share."""
    return {
        "lots": {
            unit: [(lot.key.valid_until, lot.key.earned_on, lot.amount, lot.pinned) for lot in lots]
            for unit, lots in standing.lots.items()
        },
        "debts": standing.debts,
        "holds": [(hold.hold_id, hold.amount) for hold in standing.holds],
        "tier": (standing.tier, standing.next_tier, standing.next_tier_on),
        "statuses": set(standing.statuses),
        "is a member": standing.joined_at is not None and standing.left_at is None,
        "bought": {month + 1: bought for month, bought in standing.sums.items() if bought},
    }


def expected(standing: model.Standing) -> dict[str, object]:
    """Give the same of the model."""
    rises = standing.rises_on != model.NEVER
    return {
        "lots": {
            unit: [(*key, lots[key], lots[key] - standing.free(unit, key)) for key in sorted(lots)]
            for unit, lots in standing.lots.items()
        },
        "debts": {unit: owed for unit, owed in standing.debts.items() if owed},
        "holds": [(hold.name, hold.amount) for hold in standing.holds],
        "tier": (standing.tier, "gold" if rises else "", standing.rises_on),
        "statuses": set(standing.statuses),
        "is a member": standing.joined and not standing.left,
        "bought": {month: bought for month, bought in standing.sums.items() if bought},
    }


@pytest.mark.timeout(0)
def test_all_operations_agree_with_the_model(
    server: "Server",
    worker_id: str,
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
) -> None:
    print(f"KANTIS_SEED={seed}")  # noqa: T201 - whoever repeats a failure needs it
    ledger = Machine.ledger = Ledger(server, f"{worker_id}-model")
    began, seconds = time.monotonic(), long_or_short(7_200, 100)
    rounds = 0
    try:
        while time.monotonic() - began < seconds:
            ledger.close()
            rounds += 1
            run_state_machine_as_test(
                hypothesis.seed(seed + rounds)(Machine),
                settings=hypothesis.settings.get_profile("model"),
            )
    finally:
        ledger.close()
        done = ledger.done
        took = time.monotonic() - began
        evidence(
            seconds=round(took),
            rounds=rounds,
            steps_a_second=round(done["steps"] / took, 1),
            **done,
        )
    never = {what for what in MUST_HAPPEN if not done[what]}
    assert not never
