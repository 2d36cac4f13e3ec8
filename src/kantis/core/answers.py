"""What a till is told: earned, balance, tier, fees to add, and why if nothing was earned."""

from datetime import date

from msgspec import Struct

from kantis.core.periods import NEVER
from kantis.core.standing import Decision, Earned, FeeDue, Standing


class Balance(Struct, frozen=True, omit_defaults=True):
    """One unit of an account: all of it less debt, what can be spent today, what comes later."""

    balance: int
    usable: int
    pending: int = 0
    held: int = 0
    debt: int = 0


class Given(Struct, frozen=True):
    """What one clause gave."""

    clause: str
    unit: str
    amount: int


class Answer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to a receipt, a return or a quote; the first one is kept for ever.

    `nothing` is the code of why nothing was earned, `clause` the one that says so. Amounts
    are whole units; money is in minor units.
    """

    key: str
    earned: dict[str, int] = {}
    by_clause: tuple[Given, ...] = ()
    nothing: str = ""
    clause: str = ""
    redeemed: dict[str, int] = {}
    taken_back: dict[str, int] = {}
    given_back: dict[str, int] = {}
    tier: str = ""
    tier_until: date | None = None
    next_tier: str = ""
    next_tier_on: date | None = None
    balances: dict[str, Balance] = {}
    fees: tuple[FeeDue, ...] = ()
    terms: date | None = None


def answer_of(key: str, decision: Decision, standing: Standing) -> Answer:
    """Give what a till is told about an event after which the account stands like this."""
    reason = decision.reasons[0] if decision.reasons else None
    return Answer(
        key=key,
        earned=_by_unit(decision.earned),
        by_clause=tuple(Given(one.clause, one.unit, one.amount) for one in decision.earned),
        nothing=reason.code if reason else "",
        clause=reason.clause if reason else "",
        redeemed=_moved(decision, "redeemed", -1),
        taken_back=_moved(decision, "taken-back", -1),
        given_back=_moved(decision, "given-back", 1),
        tier=standing.tier,
        tier_until=None if standing.tier_until == NEVER else standing.tier_until,
        next_tier=standing.next_tier,
        next_tier_on=None if standing.next_tier_on == NEVER else standing.next_tier_on,
        balances=balances_of(standing),
        fees=tuple(decision.fees),
        terms=decision.terms,
    )


def balances_of(standing: Standing) -> dict[str, Balance]:
    """Give an account's balance in each unit that it has or owes, as of `through_on`."""
    return {unit: _balance(standing, unit) for unit in sorted({*standing.lots, *standing.debts})}


def _balance(standing: Standing, unit: str) -> Balance:
    lots = standing.lots.get(unit, ())
    today = standing.through_on
    return Balance(
        balance=standing.balance(unit),
        usable=standing.usable(unit, today),
        pending=sum([lot.amount for lot in lots if lot.key.valid_from > today]),
        held=sum([lot.pinned for lot in lots]),
        debt=standing.debts.get(unit, 0),
    )


def _by_unit(earned: list[Earned]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for one in earned:
        totals[one.unit] = totals.get(one.unit, 0) + one.amount
    return totals


def _moved(decision: Decision, kind: str, sign: int) -> dict[str, int]:
    totals: dict[str, int] = {}
    for transfer in decision.transfers:
        if transfer.kind == kind:
            totals[transfer.unit] = totals.get(transfer.unit, 0) + sign * transfer.amount
    return totals
