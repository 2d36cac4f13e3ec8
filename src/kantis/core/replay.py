"""The same function in another setting: fold a whole history, count what it comes to."""

from collections.abc import Iterable
from datetime import date

import msgspec
from msgspec import Struct

from kantis.core.bookkeeping import BOOK_OF
from kantis.core.events import AnyEvent, PastSale, Returned, Sale, order_of, sale_key_of
from kantis.core.periods import day_start
from kantis.core.programme import Programme
from kantis.core.standing import Decision, LotKey, Part, Standing, Transfer, month_begun
from kantis.core.step import caught_up, step
from kantis.core.totals import Totals


class Fold:
    """One account's history being folded; events come in their total order.

    `snapshots` says where the account stood before each month in which it moved.
    """

    def __init__(self, programme: Programme, standing: Standing | None = None) -> None:
        """Begin with a new account, or go on from `standing`."""
        self.programme = programme
        self.standing = standing if standing is not None else Standing()
        self.sales: dict[str, PastSale] = {}
        self.snapshots: dict[date, Standing] = {}

    def take(self, event: AnyEvent) -> Decision:
        """Move the account on by one event; a return finds its sale among those folded."""
        if isinstance(event, Returned) and event.past is None:
            event = self._with_sale(event)
        before = self.standing
        self.standing, decision = step(self.programme, before, event)
        self._keep_snapshot(before)
        if isinstance(event, Sale):
            self.sales[event.key] = PastSale(event, decision, {})
        return decision

    def follow_calendar(self, *, through: date) -> Decision:
        """Move the account on to the start of a day on which nothing else happens."""
        before = self.standing
        at = day_start(through, self.programme.zone)
        self.standing, decision = caught_up(self.programme, before, at=at)
        self._keep_snapshot(before)
        return decision

    def _keep_snapshot(self, before: Standing) -> None:
        if (month_on := month_begun(before, self.standing)) is not None:
            self.snapshots[month_on] = before

    def _with_sale(self, event: Returned) -> Returned:
        """Attach the sale with what came back before, and remember what comes back now."""
        key = sale_key_of(event)
        past = self.sales[key]
        returned = dict(past.returned)
        for line in event.document.lines:
            returned[line.line] = returned.get(line.line, 0) + line.amount_minor
        self.sales[key] = PastSale(past.sale, past.decision, returned)
        return msgspec.structs.replace(event, past=past)


class Course(Struct, frozen=True):
    """What became of an account: its events in their order, each decided, then the calendar."""

    standing: Standing
    decided: list[tuple[AnyEvent, Decision]]
    calendar: Decision
    snapshots: dict[date, Standing]

    def parts(self) -> list[Decision]:
        """Give all decisions, those of the calendar among them, in order."""
        return [part for _, one in self.decided for part in one.parts()] + [self.calendar]

    def transfers(self) -> list[Transfer]:
        """Give all that moved."""
        return [transfer for part in self.parts() for transfer in part.transfers]


def refold(fold: Fold, history: Iterable[AnyEvent], *, through: date) -> Course:
    """Fold events anew, whatever order they came in, and the calendar through a day at least."""
    decided = [(event, fold.take(event)) for event in sorted(history, key=order_of)]
    calendar = fold.follow_calendar(through=max(through, fold.standing.through_on))
    return Course(fold.standing, decided, calendar, fold.snapshots)


def corrections(posted: Iterable[Transfer], right: Iterable[Transfer]) -> list[Transfer]:
    """Give the transfers that turn what was posted into what is right; empty if it is right.

    Compared by what a transfer is about (kind, clause, unit, entity, value day) and by lot,
    so that nothing moves that need not.
    """
    amounts: dict[tuple[str, str, str, str, date], dict[LotKey | None, int]] = {}
    for transfers, sign in ((right, 1), (posted, -1)):
        for one in transfers:
            about = (one.kind, one.clause, one.unit, one.entity, one.value_on)
            parts = amounts.setdefault(about, {})
            for part in one.parts:
                parts[part.lot] = parts.get(part.lot, 0) + sign * part.amount
    found = []
    for (kind, clause, unit, entity, value_on), parts in amounts.items():
        differing = tuple(Part(lot, amount) for lot, amount in parts.items() if amount)
        if differing:
            found.append(Transfer(kind, clause, unit, BOOK_OF[kind], entity, value_on, differing))
    return found


def replay(programme: Programme, histories: Iterable[Iterable[AnyEvent]], *, until: date) -> Totals:
    """Fold each account's history and its calendar to the start of the day `until`."""
    totals = Totals()
    for history in histories:
        fold = Fold(programme)
        for event in history:
            decision = fold.take(event)
            if isinstance(event, Sale):
                totals.count_sale(len(event.receipt.lines), earns=bool(decision.earned))
            for part in decision.parts():
                totals.count(part)
        totals.count(fold.follow_calendar(through=max(until, fold.standing.through_on)))
        totals.count_account(fold.standing, on=until)
    return totals
