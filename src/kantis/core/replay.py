"""The same function in another setting: fold a whole history, count what it comes to."""

from collections.abc import Iterable
from datetime import date

import msgspec

from kantis.core.bookkeeping import BOOK_OF
from kantis.core.events import AnyEvent, PastSale, Returned, Sale, order_of, sale_key_of
from kantis.core.periods import day_start
from kantis.core.programme import Programme
from kantis.core.standing import Decision, LotKey, Part, Standing, Transfer
from kantis.core.step import caught_up, step
from kantis.core.totals import Totals


class Fold:
    """One account's history being folded; events come in their total order."""

    def __init__(self, programme: Programme, standing: Standing | None = None) -> None:
        """Begin with a new account, or go on from `standing`."""
        self.programme = programme
        self.standing = standing if standing is not None else Standing()
        self.sales: dict[str, PastSale] = {}

    def take(self, event: AnyEvent) -> Decision:
        """Move the account on by one event; a return finds its sale among those folded."""
        if isinstance(event, Returned) and event.past is None:
            event = self._with_sale(event)
        self.standing, decision = step(self.programme, self.standing, event)
        if isinstance(event, Sale):
            self.sales[event.key] = PastSale(event, decision, {})
        return decision

    def know(self, key: str, past: PastSale) -> None:
        """Make known a sale that lies before the standing this fold began with."""
        self.sales[key] = past

    def follow_calendar(self, *, through: date) -> Decision:
        """Move the account on to the start of a day on which nothing else happens."""
        at = day_start(through, self.programme.zone)
        self.standing, decision = caught_up(self.programme, self.standing, at=at)
        return decision

    def _with_sale(self, event: Returned) -> Returned:
        """Attach the sale with what came back before, and remember what comes back now."""
        key = sale_key_of(event)
        past = self.sales[key]
        returned = dict(past.returned)
        for line in event.document.lines:
            returned[line.line] = returned.get(line.line, 0) + line.amount_minor
        self.sales[key] = PastSale(past.sale, past.decision, returned)
        return msgspec.structs.replace(event, past=past)


def refold(
    programme: Programme, history: Iterable[AnyEvent]
) -> tuple[Standing, list[tuple[AnyEvent, Decision]]]:
    """Fold a whole history anew, whatever order its events came in."""
    fold = Fold(programme)
    decided = [(event, fold.take(event)) for event in sorted(history, key=order_of)]
    return fold.standing, decided


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
