"""What the calendar does to an account: holds end, lots expire, points convert, tiers change.

Ticks are lazy. `catch_up` visits only the days on which something can change, in order;
the tick of a day comes before all else on that day.
"""

from collections.abc import Iterator
from datetime import date, datetime

from kantis.core import tiers
from kantis.core.bookkeeping import Books, lot_key
from kantis.core.numbers import scale
from kantis.core.periods import NEVER, ONE_DAY, day_start, next_month_start
from kantis.core.programme import Programme
from kantis.core.standing import Decision, Standing
from kantis.core.terms import Conversion, Terms


def next_due(programme: Programme, standing: Standing, *, horizon: date = NEVER) -> date:
    """Give the first day after `through_on` whose calendar may change the account.

    `NEVER` if there is none; days after `horizon` need not be looked at.
    """
    if standing.joined_at is None:
        return NEVER
    after = standing.through_on
    due = min(_expiries(programme, standing), default=NEVER)
    for hold in standing.holds:
        due = min(due, programme.day(hold.until_at) + ONE_DAY)
    if standing.left_at is None:
        due = min(due, standing.next_tier_on, programme.next_start(after))
        if standing.tier_until > after:
            due = min(due, standing.tier_until)
        first = next_month_start(after)
        if (
            first <= horizon
            and first < due
            and _is_month_end_due(programme.on(first).terms, standing, first)
        ):
            due = first
    return max(due, after + ONE_DAY) if due != NEVER else NEVER


def catch_up(programme: Programme, standing: Standing, *, through: date) -> Decision | None:
    """Follow the calendar up to and including the start of the day `through`.

    Gives what was decided, None if nothing was due.
    """
    decision = None
    while (due := next_due(programme, standing, horizon=through)) <= through:
        decision = decision or Decision(programme.on(through).terms.valid_from)
        _tick(programme, standing, decision, due)
        standing.through_on = due
    standing.through_on = max(standing.through_on, through)
    return decision


def end_holds(books: Books, *, at: datetime) -> None:
    """Release every hold that has run out."""
    for hold in books.standing.holds:
        if hold.until_at <= at:
            books.release(hold)


def _tick(programme: Programme, standing: Standing, decision: Decision, day: date) -> None:
    terms = programme.on(day).terms
    books = Books(standing, decision.transfers)
    end_holds(books, at=day_start(day, programme.zone))
    if day == terms.valid_from:
        _carry_over(terms, books, decision, day)
    _expire(programme, terms, books, day)
    if day.day == 1:
        for conversion in terms.conversion:
            _convert(terms, conversion, books, day)
    if standing.left_at is not None:
        return
    if standing.next_tier_on <= day and terms.ladder is not None:
        tiers.take_effect(standing, decision, terms.ladder.clause)
    if day.day == 1:
        tiers.review(terms, standing, decision, on=day)


def _is_month_end_due(terms: Terms, standing: Standing, first: date) -> bool:
    return tiers.is_review_due(terms, standing, on=first) or any(
        _held(standing, conversion.unit) >= conversion.each for conversion in terms.conversion
    )


def _held(standing: Standing, unit: str) -> int:
    return sum(lot.amount - lot.pinned for lot in standing.lots.get(unit, ()))


def _expiries(programme: Programme, standing: Standing) -> Iterator[date]:
    """Give when the lots expire of which something is not pinned.

    Lots are kept in order of expiry, so without suspensions the first of a unit will do.
    """
    for unit, lots in standing.lots.items():
        for lot in lots:
            if lot.key.valid_until != NEVER and lot.amount > lot.pinned:
                yield programme.expires_on(unit, lot.key)
                if not programme.suspensions:
                    break


def _expire(programme: Programme, terms: Terms, books: Books, day: date) -> None:
    clauses = {expiry.unit: expiry.clause for expiry in terms.expiry}
    for unit, lots in books.standing.lots.items():
        for lot in [lot for lot in lots if programme.expires_on(unit, lot.key) <= day]:
            books.end_lot("expired", clauses.get(unit, ""), unit, lot, entity=terms.entity, on=day)


def _convert(terms: Terms, conversion: Conversion, books: Books, day: date) -> None:
    """Turn every full `each` of what the month left over into a lot of the other unit."""
    times = _held(books.standing, conversion.unit) // conversion.each
    if not times:
        return
    books.remove(
        "converted",
        conversion.clause,
        conversion.unit,
        times * conversion.each,
        entity=terms.entity,
        on=day,
    )
    credited_on = day.replace(day=conversion.credited_day)
    books.add(
        "converted",
        conversion.clause,
        conversion.to,
        times * conversion.gives,
        lot_key(terms, conversion.to, earned_on=day, valid_from=credited_on),
        entity=terms.entity,
        on=credited_on,
    )


def _carry_over(terms: Terms, books: Books, decision: Decision, day: date) -> None:
    """Do what a new version says about tiers and units that it drops."""
    for move in terms.transition:
        if move.what == "tier" and books.standing.tier == move.old:
            until = books.standing.tier_until
            tiers.change_tier(books.standing, decision, move.new, move.clause, on=day, until=until)
        elif move.what == "unit":
            for lot in list(books.standing.lots.get(move.old, ())):
                free = lot.amount - lot.pinned
                books.end_lot("converted", move.clause, move.old, lot, entity=terms.entity, on=day)
                books.add(
                    "converted",
                    move.clause,
                    move.new,
                    scale(free, move.ratio),
                    lot.key,
                    entity=terms.entity,
                    on=day,
                )
