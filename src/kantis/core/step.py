"""The one function that moves an account on: `step(programme, standing, event)`."""

from datetime import date, datetime

from kantis.core import tiers
from kantis.core.bookkeeping import Books, lot_key
from kantis.core.earning import selects_store
from kantis.core.events import (
    AnyEvent,
    Held,
    Joined,
    Left,
    Opened,
    PastSale,
    Released,
    Returned,
    RoleTaken,
    Sale,
    StatusChanged,
    order_of,
)
from kantis.core.periods import NEVER, month_of, read_month
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt
from kantis.core.standing import Decision, FeeDue, Hold, LotKey, Part, Reason, Standing, Transfer
from kantis.core.terms import Terms
from kantis.core.upkeep import catch_up, end_holds, expire


def step(programme: Programme, standing: Standing, event: AnyEvent) -> tuple[Standing, Decision]:
    """Give where an account stands after an event, and what was decided on the way.

    Follows the calendar up to the event's local day first. Neither reads nor keeps
    anything else, and leaves `standing` as it was.

    :raises TermsNotInForce: when the event lies before the first version of the terms
    """
    after = standing.copy()
    day = programme.day(event.at)
    decision = Decision(programme.on(day).terms.valid_from)
    decision.calendar = catch_up(programme, after, through=day)
    _Step(programme, after, decision, event.at, day).take(event)
    after.last = order_of(event)
    decision.tier = after.tier
    return after, decision


def is_late(programme: Programme, standing: Standing, event: AnyEvent) -> bool:
    """Tell whether an event belongs before what the account has lived through already.

    That is an event that comes after it in the total order, or a day whose calendar has
    been followed: the tick of a day comes before all else on it.
    """
    behind_events = standing.last is not None and order_of(event) <= standing.last
    return behind_events or programme.day(event.at) < standing.through_on


def caught_up(
    programme: Programme, standing: Standing, *, at: datetime
) -> tuple[Standing, Decision]:
    """Give where an account stands at an instant at which nothing happens to it."""
    after = standing.copy()
    day = programme.day(at)
    decision = catch_up(programme, after, through=day) or Decision(
        programme.on(day).terms.valid_from
    )
    end_holds(programme, Books(after, decision.transfers), at=at)
    decision.tier = after.tier
    return after, decision


class _Step:
    """One event under way, on a standing of its own."""

    def __init__(
        self,
        programme: Programme,
        standing: Standing,
        decision: Decision,
        at: datetime,
        day: date,
    ) -> None:
        self.programme = programme
        self.version = programme.on(day)
        self.terms: Terms = self.version.terms
        self.standing = standing
        self.decision = decision
        self.at = at
        self.day = day
        self.books = Books(standing, decision.transfers)
        if standing.holds:
            end_holds(programme, self.books, at=at)

    def take(self, event: AnyEvent) -> None:
        match event:
            case Sale():
                self.sale(event)
            case Returned():
                assert event.past is not None, "whoever loads a return looks its sale up"
                self.returned(event, event.past)
            case Joined():
                self.joined()
            case Opened():
                self.opened(event)
            case RoleTaken(role=role):
                if role not in self.standing.roles:
                    self.standing.roles += (role,)
            case StatusChanged():
                others = tuple(s for s in self.standing.statuses if s != event.status)
                self.standing.statuses = (*others, event.status) if event.granted else others
            case Held():
                hold = Hold(event.hold_id, event.unit, event.at, event.until_at, ())
                self.books.hold(hold, event.amount, on=self.day)
            case Released(hold_id=hold_id):
                for hold in self.standing.holds:
                    if hold.hold_id == hold_id:
                        self.books.release(hold)
                expire(self.programme, self.books, self.day)
            case Left(cause=cause):
                self.left(cause)

    # --- membership ------------------------------------------------------------------------

    def joined(self) -> None:
        self.standing.joined_at, self.standing.left_at = self.at, None
        self.standing.through_on = self.day
        self.standing.roles, self.standing.statuses = (self.terms.membership.roles[0],), ()
        start = tiers.starting_tier(self.terms)
        tiers.change_tier(self.standing, self.decision, start, "", on=self.day)

    def opened(self, event: Opened) -> None:
        for lot in event.lots:
            key = lot_key(self.terms, lot.unit, earned_on=lot.earned_on, valid_from=lot.earned_on)
            if lot.valid_until is not None:
                key = LotKey(lot.valid_until, lot.earned_on, lot.earned_on)
            entity = self.terms.entity
            self.books.add("opened", "", lot.unit, lot.amount, key, entity=entity, on=self.day)
        for label, amount in event.sums.items():
            month = read_month(label)
            assert month is not None, "admission has read the months"
            self.standing.sums[month] = self.standing.sums.get(month, 0) + amount
        self.standing.fees_charged += event.fees_charged
        self.standing.is_opened = True
        if event.tier:
            until = event.tier_until or NEVER
            tiers.change_tier(
                self.standing, self.decision, event.tier, "", on=self.day, until=until
            )

    def left(self, cause: str) -> None:
        clause = next((b.clause for b in self.terms.leaving if b.cause == cause), "")
        for hold in self.standing.holds:
            self.books.release(hold)
        self.lapse(clause)
        self.standing.left_at = self.at
        self.standing.next_tier, self.standing.next_tier_on = "", NEVER

    def lapse(self, clause: str) -> None:
        for unit, lots in self.standing.lots.items():
            for lot in list(lots):
                self.books.end_lot(
                    "lapsed", clause, unit, lot, entity=self.terms.entity, on=self.day
                )

    # --- sales -----------------------------------------------------------------------------

    def sale(self, event: Sale) -> None:
        receipt = event.receipt
        entity = event.entity or self.terms.entity
        if receipt.training:
            return self.nothing("training")
        self.pay(receipt, entity)
        if self.standing.joined_at is None:
            return self.nothing("not-a-member")
        if self.standing.left_at is not None:
            return self.nothing("membership-ended")
        self.charge_fees(receipt)
        start = self.terms.earning_start
        if (
            start is not None
            and start.begins == "day_after_joining"
            and self.day <= self.programme.day(self.standing.joined_at)
        ):
            self.nothing("earning-not-begun", start.clause)
        else:
            self.earn(receipt, event.chain, entity)
        if self.counts(event.chain):
            bought = receipt.total_minor - self.fees_in(receipt)
            tiers.count_purchase(self.terms, self.standing, bought, on=self.day)
        return None

    def nothing(self, code: str, clause: str = "") -> None:
        self.decision.reasons.append(Reason(code, clause))

    def fees_in(self, receipt: Receipt) -> int:
        """Give what the fees among a receipt's lines come to: a fee is no purchase."""
        fees = self.version.earner.fees
        return sum([line.amount_minor for line in receipt.lines if line.fee in fees]) if fees else 0

    def counts(self, chain: str) -> bool:
        counting = self.terms.counting
        return counting is None or selects_store(counting.stores, chain)

    def pay(self, receipt: Receipt, entity: str) -> None:
        """Spend what was paid with a unit; a captured hold's lots go first."""
        for redemption in self.terms.redemption:
            for tender in receipt.tenders:
                if tender.kind != redemption.unit or tender.amount_minor <= 0:
                    continue
                hold = next((h for h in self.standing.holds if h.hold_id == tender.hold), None)
                amount, clause = tender.amount_minor, redemption.clause
                if tender.hold and hold is not None:
                    self.books.capture(hold, clause, amount, entity=entity, on=self.day)
                else:
                    self.books.spend(clause, redemption.unit, amount, entity=entity, on=self.day)

    def charge_fees(self, receipt: Receipt) -> None:
        if receipt.total_minor <= 0:
            return
        for fee in self.terms.fee:
            if fee.name not in self.standing.fees_charged:
                self.standing.fees_charged += (fee.name,)
                self.decision.fees.append(
                    FeeDue(fee.name, fee.clause, fee.gross_minor, fee.vat_percent)
                )

    def earn(self, receipt: Receipt, chain: str, entity: str) -> None:
        earned, reasons = self.version.earner.earn(
            receipt, standing=self.standing, chain=chain, on=self.day
        )
        self.decision.earned += earned
        self.decision.reasons += reasons
        for one in earned:
            key = lot_key(self.terms, one.unit, earned_on=self.day, valid_from=self.day)
            self.books.add(
                "earned", one.clause, one.unit, one.amount, key, entity=entity, on=self.day
            )

    # --- returns ---------------------------------------------------------------------------

    def returned(self, event: Returned, past: PastSale) -> None:
        """Take back exactly what the lines earned, give back what was paid with a unit for them."""
        entity = past.sale.entity or self.terms.entity
        self.give_back(event, past, entity)
        self.take_back(event, past, entity)
        if self.standing.left_at is not None:
            self.lapse("")
        if self.counts(past.sale.chain) and _was_counted(past.decision):
            sold_on = self.programme.day(past.sale.at)
            oldest = month_of(self.day) - tiers.months_looked_at(self.terms) - 1
            fee_lines = {
                number
                for number, line in enumerate(past.sale.receipt.lines, start=1)
                if line.fee in self.version.earner.fees
            }
            amount = sum(
                back.amount_minor for back in event.document.lines if back.line not in fee_lines
            )
            if month_of(sold_on) >= oldest:
                tiers.count_purchase(self.terms, self.standing, -amount, on=sold_on)

    def take_back(self, event: Returned, past: PastSale, entity: str) -> None:
        receipt = past.sale.receipt
        earner = self.programme.version(past.decision.terms).earner
        for earned in past.decision.earned:
            by_line = earner.by_line(receipt, earned)
            amount = 0
            returned = dict(past.returned)
            for back in event.document.lines:
                before = returned.get(back.line, 0)
                after = returned[back.line] = before + back.amount_minor
                whole = receipt.lines[back.line - 1].amount_minor
                gave = by_line[back.line - 1]
                amount += gave * after // whole - gave * before // whole
            if amount:
                self.books.remove(
                    "taken-back",
                    earned.clause,
                    earned.unit,
                    amount,
                    entity=entity,
                    on=self.day,
                    first=_lots_of(past.decision.transfers, "earned", earned.unit),
                )

    def give_back(self, event: Returned, past: PastSale, entity: str) -> None:
        """Put the returned goods' share of the payment back, last spent first."""
        total = past.sale.receipt.total_minor
        before = sum(past.returned.values())
        after = before + sum(back.amount_minor for back in event.document.lines)
        for transfer in past.decision.transfers:
            if transfer.kind == "redeemed" and total > 0:
                paid = -transfer.amount
                parts = _slice(transfer.parts, paid * before // total, paid * after // total)
                fresh = lot_key(self.terms, transfer.unit, earned_on=self.day, valid_from=self.day)
                self.books.give_back(
                    transfer.clause,
                    transfer.unit,
                    parts,
                    fresh=fresh,
                    entity=entity,
                    on=self.day,
                )


def _was_counted(decision: Decision) -> bool:
    """Tell whether a sale went into the purchase sums, from which its return is taken."""
    return not any(
        reason.code in {"training", "not-a-member", "membership-ended"}
        for reason in decision.reasons
    )


def _lots_of(transfers: list[Transfer], kind: str, unit: str) -> list[LotKey]:
    return [
        part.lot
        for transfer in transfers
        if transfer.kind == kind and transfer.unit == unit
        for part in transfer.parts
        if part.lot is not None
    ]


def _slice(parts: tuple[Part, ...], start: int, end: int) -> list[Part]:
    """Give what of a payment lies between two amounts, counted from what was spent last."""
    found = []
    passed = 0
    for part in reversed(parts):
        size = -part.amount
        share = min(end, passed + size) - max(start, passed)
        if share > 0:
            found.append(Part(part.lot, share))
        passed += size
    return found
