"""Run the cases beside the terms: what a retailer expects against what happens.

The same steps go through two worlds, one pure (the fold alone, below) and one that is the
real engine on PostgreSQL (`kantis.check_database`); both must come out as the case expects.
"""

from bisect import insort
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cached_property

import msgspec
from msgspec import Struct

from kantis.core import admission, spending
from kantis.core.admission import Applicant, Warrant
from kantis.core.cards import Card, CardLink, account_at, why_not_usable
from kantis.core.cases import Amount, Case, Expect, Item, Join, Open, Step
from kantis.core.events import (
    AnyEvent,
    Held,
    Left,
    Opened,
    OpeningLot,
    PastSale,
    Released,
    Returned,
    Sale,
    StatusChanged,
    order_of,
)
from kantis.core.explain import explain
from kantis.core.periods import NEVER, Period
from kantis.core.programme import Programme
from kantis.core.receipt import (
    Line,
    Receipt,
    Return,
    ReturnLine,
    SaleKey,
    Tender,
    key_of,
)
from kantis.core.refusals import AccountUnknown, CardUnknown, Refusal, SaleUnknown
from kantis.core.replay import Fold
from kantis.core.standing import Decision, Standing
from kantis.core.step import caught_up
from kantis.core.terms import Terms
from kantis.operations.members import number_is_valid

MINOR = 100
"""Minor units in a major one: every currency of the cases has two decimals."""


class Outcome(Struct):
    """What came of a step. `nothing` is why a receipt was kept without an account."""

    refused: str = ""
    nothing: str = ""
    decision: Decision | None = None
    standing: Standing | None = None
    receipt: Receipt | None = None


class World:
    """Somewhere a case can happen: a method `do_…` for each action, and a count of the steps."""

    programme: Programme

    def __init__(self) -> None:
        """Begin before the first step."""
        self.now = datetime.min.replace(tzinfo=UTC)
        self.count = 0
        self.warrant = Warrant("cases")

    def telling(self, case: Case) -> AbstractContextManager[None]:  # noqa: ARG002
        """Make a place for one case, which is gone afterwards."""
        return nullcontext()

    def do(self, step: Step, at: datetime) -> Outcome:
        """Let a step happen at an instant; a late one finds its place among the earlier.

        :raises Refusal: if the programme says no
        """
        self.now = max(self.now, at)
        self.count += 1
        self.warrant = Warrant("cases", step.why, step.approved_by)
        outcome: Outcome = getattr(self, f"do_{step.action}")(step, at)
        return outcome

    def contradictions(self) -> Iterator[str]:
        """Give what is wrong with this world itself, after the last step."""
        return iter(())

    @property
    def key(self) -> str:
        """Give the key of what happens in this step."""
        return f"step-{self.count:04d}"


# --- from a case's words to the engine's types ---------------------------------------------


def whole(terms: Terms, unit: str, amount: Amount) -> int:
    """Give an amount of a unit as a whole number: points as they are, money in minor units."""
    is_money = any(u.name == unit and u.kind == "money" for u in terms.unit)
    return int(amount * MINOR) if is_money else int(amount)


def instant_of(step: Step, programme: Programme) -> datetime:
    """Give the instant of a step, whose time is local unless it has an offset."""
    at = step.at if step.at.tzinfo else step.at.replace(tzinfo=programme.zone)
    return at.astimezone(UTC)


def receipt_of(
    step: Step, at: datetime, programme: Programme, *, store: str, number: str, card: str
) -> Receipt:
    """Give the receipt that a step's `buy` stands for; `number` is for one without a name."""
    buy = step.buy
    assert buy is not None, "the step buys something"
    units = programme.on(programme.day(at)).units
    items = buy.items or (Item(buy.amount),)
    lines = tuple(
        Line(
            int(item.amount * MINOR),
            item.category,
            item.product,
            quantity_milli=item.pieces * 1000,
            own_brand=item.own_brand,
            reduced=item.reduced,
            fee=item.fee,
        )
        for item in items
    )
    return Receipt(
        store=store,
        till="1",
        business_day=programme.day(at),
        number=buy.receipt or number,
        at=at,
        currency=buy.currency or programme.terms_at(at).currency,
        total_minor=sum(line.amount_minor for line in lines),
        lines=lines,
        tenders=tuple(
            Tender(kind, int(amount * MINOR), buy.hold if kind in units else "")
            for kind, amount in buy.paid_with.items()
        ),
        card=card,
        proof=buy.proof,
        training=buy.training,
    )


def return_of(
    step: Step,
    at: datetime,
    programme: Programme,
    *,
    sale: Receipt,
    returned: Mapping[int, int],
    number: str,
) -> Return:
    """Give the return that a step stands for; without lines, all that is left of the sale."""
    assert step.back is not None, "the step brings something back"
    lines = tuple(ReturnLine(b.line, int(b.amount * MINOR)) for b in step.back.lines) or tuple(
        ReturnLine(line_no, line.amount_minor - returned.get(line_no, 0))
        for line_no, line in enumerate(sale.lines, start=1)
        if line.amount_minor > returned.get(line_no, 0)
    )
    return Return(
        store=sale.store,
        till=sale.till,
        business_day=programme.day(at),
        number=number,
        at=at,
        sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
        lines=lines,
    )


def applicant_of(join: Join) -> Applicant:
    """Give who applies in a step."""
    return Applicant(
        born_on=join.born_on, organization_number=join.organization_number, trade=join.trade
    )


def opening_of(open_: Open, *, terms: Terms, at: datetime, key: str) -> Opened:
    """Give the opening event that a step stands for."""
    return Opened(
        at=at,
        key=key,
        lots=tuple(
            OpeningLot(lot.unit, whole(terms, lot.unit, lot.amount), lot.earned_on, lot.valid_until)
            for lot in open_.lots
        ),
        tier=open_.tier,
        tier_until=open_.tier_until,
        sums={month: int(amount * MINOR) for month, amount in open_.sums.items()},
        fees_charged=open_.fees_charged,
    )


# --- the pure world ------------------------------------------------------------------------


class PureWorld(World):
    """A case without a database: lists of events, folded anew after every step."""

    def __init__(self, programme: Programme) -> None:
        """Begin with nobody."""
        super().__init__()
        self.programme = programme
        self.histories: dict[str, list[AnyEvent]] = {}
        self.cards: dict[str, Card] = {}
        self.strays: dict[str, Sale] = {}
        self.waiting: list[tuple[Step, datetime]] = []

    def do_join(self, step: Step, at: datetime) -> Outcome:
        join = step.join
        assert join is not None
        terms = self.programme.terms_at(at)
        event = admission.admit_joining(
            self.programme,
            self._standing(step.account, at) if step.account in self.histories else Standing(),
            applicant_of(join),
            at=at,
            key=self.key,
            number_is_valid=number_is_valid(terms, join.organization_number),
        )
        role = terms.membership.roles[0]
        admission.admit_card(self.programme, kind=join.card, role=role, at=at, key="")
        outcome = self._happen(step.account, event)
        self._issue(step.account, step.account, join.card, role, at)
        return outcome

    def do_issue(self, step: Step, at: datetime) -> Outcome:
        issue = step.issue
        assert issue is not None
        self._account_id(step.account)
        event = admission.admit_card(
            self.programme, kind=issue.card, role=issue.role, at=at, key=self.key
        )
        self._issue(issue.name, step.account, issue.card, issue.role, at)
        return self._happen(step.account, event)

    def do_activate(self, step: Step, at: datetime) -> Outcome:
        return self._change_card(step, step.activate, activated_at=at)

    def do_block(self, step: Step, at: datetime) -> Outcome:
        return self._change_card(step, step.block, blocked_at=at)

    def do_replace(self, step: Step, at: datetime) -> Outcome:
        assert step.replace is not None
        old = self._card(step.replace.old)
        self._issue(step.replace.new, step.account, old.kind, old.role, at)
        return self._change_card(step, old.number, blocked_at=old.blocked_at or at)

    def do_pool(self, step: Step, at: datetime) -> Outcome:
        assert step.pool is not None
        admission.check_pooling(self.programme, at=at)
        card = self._card(step.pool.card)
        links = (*card.links, CardLink(self._account_id(step.pool.onto), at))
        return self._change_card(step, card.number, links=links)

    def do_open(self, step: Step, at: datetime) -> Outcome:
        assert step.open is not None
        terms = self.programme.terms_at(at)
        opening = opening_of(step.open, terms=terms, at=at, key=self.key)
        standing = self._standing(step.account, at)
        return self._happen(
            step.account,
            admission.admit_opening(self.programme, standing, opening, self.warrant),
        )

    def do_grant(self, step: Step, at: datetime) -> Outcome:
        return self._change_status(step, at, step.grant, granted=True)

    def do_withdraw(self, step: Step, at: datetime) -> Outcome:
        return self._change_status(step, at, step.withdraw, granted=False)

    def do_leave(self, step: Step, at: datetime) -> Outcome:
        assert step.leave is not None
        left = Left(at=at, key=self.key, cause=step.leave.cause)
        standing = self._standing(step.account, at)
        return self._happen(
            step.account, admission.admit_leaving(self.programme, standing, left, self.warrant)
        )

    def do_suspend(self, step: Step, at: datetime) -> Outcome:
        assert step.suspend is not None
        period = admission.admit_suspension(
            self.programme,
            Period(step.suspend.start, step.suspend.end),
            now=at,
            warrant=self.warrant,
        )
        self.programme = Programme(
            (version.terms for version in self.programme.versions),
            (*self.programme.suspensions, period),
        )
        return self._as_it_stands(step.account)

    def do_look(self, step: Step, at: datetime) -> Outcome:
        self._account_id(step.account)
        standing, decision = caught_up(self.programme, self._fold(step.account).standing, at=at)
        return Outcome(decision=decision, standing=standing)

    def do_buy(self, step: Step, at: datetime) -> Outcome:
        assert step.buy is not None
        number = step.account if step.buy.card is None else step.buy.card
        receipt = receipt_of(
            step, at, self.programme, store=f"store-{step.buy.chain}", number=self.key, card=number
        )
        admission.check_receipt(self.programme, receipt, now=self.now)
        account, nothing = self._account_of(number, at)
        sale = Sale(at=at, key=key_of("case", receipt), receipt=receipt, chain=step.buy.chain)
        if account is None:
            spending.check_unpaid(self.programme, receipt, nothing)
            self.strays[sale.key] = sale
            return Outcome(nothing=nothing, receipt=receipt)
        standing = self._standing(account, self.now)
        outcome = self._happen(
            account, spending.admit_payments(self.programme, standing, sale, then=standing)
        )
        outcome.receipt = receipt
        for waiting, when in [w for w in self.waiting if w[0].back is not None]:
            if self._find_sale(waiting) is not None:
                self.waiting.remove((waiting, when))
                self.do_back(waiting, when)
                outcome.standing = self._standing(account, self.now)
        return outcome

    def do_back(self, step: Step, at: datetime) -> Outcome:
        assert step.back is not None
        found = self._find_sale(step)
        if found is None:
            self.waiting.append((step, at))
            if any(key.endswith(f"/{step.back.receipt}") for key in self.strays):
                return Outcome(nothing="sale-without-card")
            return Outcome(nothing="sale-awaited")
        account, past = found
        document = return_of(
            step,
            at,
            self.programme,
            sale=past.sale.receipt,
            returned=past.returned,
            number=f"back-{self.key}",
        )
        returned = Returned(at=at, key=key_of("case", document), document=document, past=past)
        admission.admit_return(self.programme, returned, now=self.now)
        return self._happen(account, msgspec.structs.replace(returned, past=None))

    def do_claim(self, step: Step, at: datetime) -> Outcome:
        admission.check_claim(self.programme, at=at)
        named = (key for key in self.strays if key.endswith(f"/{step.claim}"))
        key = next((key for key in named if not self.strays[key].receipt.card), None)
        if key is None:
            raise SaleUnknown(sale=step.claim)
        self._account_id(step.account)
        return self._happen(step.account, self.strays.pop(key))

    def do_hold(self, step: Step, at: datetime) -> Outcome:
        assert step.hold is not None
        amount = whole(self.programme.terms_at(at), step.hold.unit, step.hold.amount)
        held = Held(
            at=at,
            key=self.key,
            hold_id=step.hold.name,
            unit=step.hold.unit,
            amount=amount,
            until_at=at,
        )
        standing = self._standing(step.account, at)
        admitted = spending.admit_hold(self.programme, standing, held, proof=step.hold.proof)
        return self._happen(step.account, admitted)

    def do_release(self, step: Step, at: datetime) -> Outcome:
        released = Released(at=at, key=self.key, hold_id=step.release)
        standing = self._standing(step.account, at)
        return self._happen(step.account, spending.admit_release(standing, released))

    def _account_id(self, account: str) -> int:
        if account not in self.histories:
            raise AccountUnknown(account=account)
        return list(self.histories).index(account)

    def _card(self, name: str) -> Card:
        if name not in self.cards:
            raise CardUnknown(card=name)
        return self.cards[name]

    def _happen(self, account: str, event: AnyEvent) -> Outcome:
        insort(self.histories.setdefault(account, []), event, key=order_of)
        fold = Fold(self.programme)
        decision = None
        for past in self.histories[account]:
            decided = fold.take(past)
            if past is event:
                decision = decided
        standing, _ = caught_up(self.programme, fold.standing, at=max(self.now, event.at))
        return Outcome(decision=decision, standing=standing)

    def _fold(self, account: str) -> Fold:
        fold = Fold(self.programme)
        for event in self.histories.get(account, ()):
            fold.take(event)
        return fold

    def _standing(self, account: str, at: datetime) -> Standing:
        self._account_id(account)
        return caught_up(self.programme, self._fold(account).standing, at=at)[0]

    def _as_it_stands(self, account: str) -> Outcome:
        known = account in self.histories
        return Outcome(standing=self._standing(account, self.now) if known else None)

    def _issue(self, name: str, account: str, kind: str, role: str, at: datetime) -> None:
        link = CardLink(self._account_id(account), at)
        self.cards[name] = Card(number=name, kind=kind, role=role, issued_at=at, links=(link,))

    def _change_card(self, step: Step, name: str, **changes: object) -> Outcome:
        self.cards[name] = msgspec.structs.replace(self._card(name), **changes)
        return self._as_it_stands(step.account)

    def _change_status(self, step: Step, at: datetime, status: str, *, granted: bool) -> Outcome:
        change = StatusChanged(at=at, key=self.key, status=status, granted=granted)
        self._account_id(step.account)
        return self._happen(
            step.account, admission.admit_status(self.programme, change, self.warrant)
        )

    def _account_of(self, number: str, at: datetime) -> tuple[str | None, str]:
        """Give the account that a card read stands for, or why there is none."""
        if not number:
            return None, "no-card"
        card = self.cards.get(number)
        if card is None:
            return None, "card-unknown"
        if nothing := why_not_usable(self.programme.terms_at(at), card, at=at):
            return None, nothing
        account = account_at(card, at=at)
        return (None, "card-unknown") if account is None else (list(self.histories)[account], "")

    def _find_sale(self, step: Step) -> tuple[str, PastSale] | None:
        assert step.back is not None
        for account in self.histories:
            fold = self._fold(account)
            for key, past in fold.sales.items():
                if key.endswith(f"/{step.back.receipt}"):
                    return account, past
        return None


# --- comparing -----------------------------------------------------------------------------


def run(case: Case, world: World) -> list[str]:
    """Let a case happen in a world; give what came out otherwise than it expects."""
    found = []
    with world.telling(case):
        for number, step in enumerate(case.step, start=1):
            at = instant_of(step, world.programme)
            try:
                outcome = world.do(step, at)
            except Refusal as refusal:
                outcome = Outcome(refused=refusal.code)
            comparison = _Comparison(step.expect, outcome, world.programme, at)
            found += [f"step {number} ({step.action}): {what}" for what in comparison.mismatches()]
        found += world.contradictions()
    return found


class _Comparison:
    """What came of a step beside what is expected of it."""

    def __init__(
        self, expect: Expect, outcome: Outcome, programme: Programme, at: datetime
    ) -> None:
        self.expect = expect
        self.outcome = outcome
        self.programme = programme
        self.at = at
        self.day = programme.day(at)

    @cached_property
    def terms(self) -> Terms:
        """Give the terms of the step's day; a step before the first ones can only be refused."""
        return self.programme.terms_at(self.at)

    def mismatches(self) -> Iterator[str]:
        expected, refused = self.expect.refused or "no", self.outcome.refused or "no"
        if expected != refused:
            yield f"refused: expected {expected}, got {refused}"
        if expected != refused or self.outcome.refused:
            return
        for name, wanted, got in self._all():
            if wanted is not None and wanted != got:
                yield f"{name}: expected {wanted}, got {got}"

    def _all(self) -> Iterator[tuple[str, object, object]]:
        decision = self.outcome.decision
        reasons = [reason.code for reason in decision.reasons] if decision else []
        yield "reason", self.expect.reason, self.outcome.nothing or ", ".join(reasons)
        yield from self._of_decision(decision or Decision(self.terms.valid_from))
        if self.outcome.standing is not None:
            yield from self._of_standing(self.outcome.standing)

    def _of_decision(self, decision: Decision) -> Iterator[tuple[str, object, object]]:
        first = self.terms.unit[0].name
        earned: dict[str, int] = {}
        by: dict[str, int] = {}
        for one in decision.earned:
            earned[one.unit] = earned.get(one.unit, 0) + one.amount
            by[one.clause] = by.get(one.clause, 0) + one.amount
        yield "earned", self._amounts(self.expect.earned), earned
        yield "by", self._amounts(self.expect.by, unit=first), by
        fee = None if self.expect.fee is None else int(self.expect.fee * MINOR)
        yield "fee", fee, sum(due.amount_minor for due in decision.fees)
        orders = tuple(f"{due.card} {due.role}" for due in decision.cards)
        yield "orders", self.expect.orders, orders
        if self.expect.lines is not None and self.outcome.receipt is not None:
            wanted = [whole(self.terms, first, amount) for amount in self.expect.lines]
            lines = explain(self.programme, self.outcome.receipt, decision)
            yield "lines", wanted, [sum(s.amount for s in line.earned) for line in lines]

    def _of_standing(self, standing: Standing) -> Iterator[tuple[str, object, object]]:
        yield "tier", self.expect.tier, standing.tier
        yield "tier_until", self.expect.tier_until, standing.tier_until
        yield "roles", self.expect.roles, standing.roles
        for name, figure in (
            ("balance", standing.balance),
            ("usable", lambda unit: standing.usable(unit, self.day)),
            ("debt", lambda unit: standing.debts.get(unit, 0)),
        ):
            wanted = self._amounts(getattr(self.expect, name))
            yield name, wanted, {unit: figure(unit) for unit in wanted or ()}
        if self.expect.expires is not None:
            unit = next((e.unit for e in self.terms.expiry), self.terms.unit[0].name)
            wanted = self._amounts(self.expect.expires, unit=unit)
            yield "expires", wanted, self._expiries(standing, unit)

    def _expiries(self, standing: Standing, unit: str) -> dict[str, int]:
        """Give how much of a unit expires on which day."""
        found: dict[str, int] = {}
        for lot in standing.lots.get(unit, ()):
            on = self.programme.expires_on(unit, lot.key)
            if on != NEVER:
                found[on.isoformat()] = found.get(on.isoformat(), 0) + lot.amount
        return found

    def _amounts(
        self, wanted: dict[str, Amount] | None, unit: str | None = None
    ) -> dict[str, int] | None:
        """Give expected amounts as whole numbers; the keys are units unless one is named."""
        if wanted is None:
            return None
        return {key: whole(self.terms, unit or key, amount) for key, amount in wanted.items()}
