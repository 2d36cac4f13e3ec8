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
from kantis.core.standing import Decision, LotKey, Standing
from kantis.core.terms import Conversion, Terms, Transition


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
    if through <= standing.through_on:
        return decision  # what is due next comes after the days that have been lived through
    while (due := next_due(programme, standing, horizon=through)) <= through:
        decision = decision or Decision(programme.on(through).terms.valid_from)
        _tick(programme, standing, decision, due)
        standing.through_on = due
    standing.through_on = max(standing.through_on, through)
    return decision


def end_holds(programme: Programme, books: Books, *, at: datetime) -> None:
    """Release every hold that has run out; what it kept past its end expires at once."""
    over = [hold for hold in books.standing.holds if hold.until_at <= at]
    for hold in over:
        books.release(hold)
    if over:
        expire(programme, books, programme.day(at))


def _tick(programme: Programme, standing: Standing, decision: Decision, day: date) -> None:
    terms = programme.on(day).terms
    books = Books(standing, decision.transfers)
    if standing.holds:
        end_holds(programme, books, at=day_start(day, programme.zone))
    if day == terms.valid_from:
        _carry_over(terms, books, decision, day)
    expire(programme, books, day)
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
    return any(
        _held(standing, conversion.unit) >= conversion.each for conversion in terms.conversion
    ) or tiers.is_review_due(terms, standing, on=first)


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


def expire(programme: Programme, books: Books, day: date) -> None:
    """Let the lots go whose validity is over by a day, but for what is held of them."""
    terms = programme.on(day).terms
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
    standing = books.standing
    for move in terms.transition:
        if move.what == "tier":
            rising, rising_on = standing.next_tier, standing.next_tier_on
            if standing.tier == move.old:
                until = standing.tier_until
                tiers.change_tier(standing, decision, move.new, move.clause, on=day, until=until)
            if rising:
                standing.next_tier = move.new if rising == move.old else rising
                standing.next_tier_on = rising_on
        else:
            _carry_unit_over(terms, move, books, day)


def _carry_unit_over(terms: Terms, move: Transition, books: Books, day: date) -> None:
    """Turn all of a unit into another, debts too; what was held is let go first."""
    standing, entity = books.standing, terms.entity
    for hold in [hold for hold in standing.holds if hold.unit == move.old]:
        books.release(hold)
    for lot in list(standing.lots.get(move.old, ())):
        amount = scale(lot.amount, move.ratio)
        books.end_lot("converted", move.clause, move.old, lot, entity=entity, on=day)
        books.add("converted", move.clause, move.new, amount, lot.key, entity=entity, on=day)
    if debt := standing.debts.get(move.old, 0):
        owed = scale(debt, move.ratio)
        nowhere = LotKey(NEVER, date.min, date.min)  # a debt takes it all
        books.add("converted", move.clause, move.old, debt, nowhere, entity=entity, on=day)
        books.remove("converted", move.clause, move.new, owed, entity=entity, on=day)
