"""Where an account stands on the ladder, when it rises and when it falls."""

from datetime import date

from kantis.core.periods import NEVER, ONE_DAY, month_of, month_start
from kantis.core.standing import CardsDue, Decision, Standing, TierChange
from kantis.core.terms import MonthLadder, ReviewLadder, Terms


def highest_reached(terms: Terms, sum_minor: int) -> str:
    """Name the highest tier that purchases of this much reach; empty if none.

    Who brought back more than they bought stands like one who bought nothing.
    """
    bought_minor = max(0, sum_minor)
    return next((t.name for t in reversed(terms.tier) if t.is_reached_by(bought_minor)), "")


def rank(terms: Terms, tier: str) -> int:
    """Give a tier's place from below, −1 for none."""
    return next((i for i, t in enumerate(terms.tier) if t.name == tier), -1)


def starting_tier(terms: Terms) -> str:
    """Name the tier that a new member has."""
    return highest_reached(terms, 0)


def months_looked_at(terms: Terms) -> int:
    """Give for how many whole months back purchase sums are needed."""
    match terms.ladder:
        case MonthLadder(months_kept=months) | ReviewLadder(months=months):
            return months
        case None:
            return 0


def count_purchase(terms: Terms, standing: Standing, amount_minor: int, *, on: date) -> None:
    """Add a purchase (or, negative, a return of one) to its month; a month ladder may rise.

    A return never changes a tier here: that is left to the 1st of a month.
    """
    if terms.ladder is None or amount_minor == 0:
        return
    month = month_of(on)
    standing.sums[month] = standing.sums.get(month, 0) + amount_minor
    if amount_minor > 0 and isinstance(terms.ladder, MonthLadder):
        reached = highest_reached(terms, standing.sums[month])
        at_best = max(rank(terms, standing.tier), rank(terms, standing.next_tier))
        if rank(terms, reached) > at_best:
            standing.next_tier = reached
            standing.next_tier_on = on + ONE_DAY


def take_effect(standing: Standing, decision: Decision, clause: str) -> None:
    """Let the tier that was reached the day before begin."""
    change_tier(standing, decision, standing.next_tier, clause, on=standing.next_tier_on)


def review(terms: Terms, standing: Standing, decision: Decision, *, on: date) -> None:
    """Judge the tier on the 1st of a month by the months before it."""
    month = month_of(on)
    match terms.ladder:
        case MonthLadder() as ladder:
            sums = (standing.sums.get(month - n, 0) for n in range(1, ladder.months_kept + 1))
            change_tier(standing, decision, highest_reached(terms, max(sums)), ladder.clause, on=on)
        case ReviewLadder() as ladder:
            _review_window(terms, ladder, standing, decision, on=on)
        case None:
            return
    _forget_before(standing, month - months_looked_at(terms) - 1)


def is_review_due(terms: Terms, standing: Standing, *, on: date) -> bool:
    """Tell whether the review on `on` could change anything: idle accounts are left alone.

    A month below nothing raises the sum when it leaves the window, so it is waited for.
    """
    match terms.ladder:
        case MonthLadder():
            return bool(standing.sums) or standing.tier != starting_tier(terms)
        case ReviewLadder() as ladder:
            return (
                standing.tier_until <= on
                or min(standing.sums.values(), default=0) < 0
                or bool(highest_reached(terms, _window_sum(ladder, standing, on=on)))
            )
        case None:
            return False


def _window_sum(ladder: ReviewLadder, standing: Standing, *, on: date) -> int:
    last = month_of(on) - 1
    return sum([standing.sums.get(last - n, 0) for n in range(ladder.months)])


def _review_window(
    terms: Terms, ladder: ReviewLadder, standing: Standing, decision: Decision, *, on: date
) -> None:
    reviewed = month_start(month_of(on) - 1)
    found = highest_reached(terms, _window_sum(ladder, standing, on=on))
    if found:
        decision.reviews.append((reviewed, found))
    ends = standing.tier_until <= on
    current = "" if ends else standing.tier
    rises = rank(terms, found) > rank(terms, standing.tier)
    renews = reviewed.month == ladder.renewal_month and found == current
    if found and (renews or rank(terms, found) > rank(terms, current)):
        until = date(reviewed.year + ladder.years_after + 1, 1, 1)
        change_tier(standing, decision, found, ladder.clause, on=on, until=until)
        if rises:
            _order_cards(terms, standing, decision, on=on)
    elif ends:
        change_tier(standing, decision, "", ladder.clause, on=on)


def change_tier(
    standing: Standing,
    decision: Decision,
    new: str,
    clause: str,
    *,
    on: date,
    until: date = NEVER,
) -> None:
    """Put the account on a tier from `on`; nothing is said if nothing changes."""
    if new != standing.tier or until != standing.tier_until:
        decision.tier_changes.append(TierChange(standing.tier, new, on, clause, until))
    standing.tier, standing.tier_until = new, until
    standing.next_tier, standing.next_tier_on = "", NEVER


def _order_cards(terms: Terms, standing: Standing, decision: Decision, *, on: date) -> None:
    decision.cards.extend(
        CardsDue(order.card, order.role, order.count, order.clause, on)
        for order in terms.card_order
        if order.tier == standing.tier and order.role in standing.roles
    )


def _forget_before(standing: Standing, month: int) -> None:
    """Drop sums that no review looks at any more."""
    for old in [m for m in standing.sums if m < month]:
        del standing.sums[old]
