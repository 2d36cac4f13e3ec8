"""Corners of the rules that no public programme comes to: each was once free for a mistake."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from kantis.core.answers import Balance, answer_of, balances_of
from kantis.core.events import Sale
from kantis.core.numbers import Ratio
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt
from kantis.core.refusals import HoldUnknown
from kantis.core.spending import authorize_capture
from kantis.core.standing import Decision, Earned, Hold, Lot, LotKey, Part, Standing
from kantis.core.step import caught_up, step
from kantis.core.terms import Terms, Transition
from kantis.core.terms_text import read_terms

PROGRAMMES = Path(__file__).parents[2] / "programmes"
AT = datetime(2024, 3, 4, 10, tzinfo=UTC)
TODAY = AT.date()
SUMMER = LotKey(date(2026, 7, 1), TODAY, TODAY)


def terms_of(name: str) -> Terms:
    return read_terms((PROGRAMMES / name / "2016-01-01.toml").read_text("utf-8"))


def member(**lots: Lot) -> Standing:
    return Standing(
        joined_at=AT, through_on=TODAY, lots={unit: [lot] for unit, lot in lots.items()}
    )


def held(amount: int, unit: str) -> Hold:
    until_at = datetime(2024, 6, 1, tzinfo=UTC)
    return Hold("held", unit, AT, until_at, (Part(SUMMER, amount),))


def test_a_hold_pays_only_in_its_own_unit() -> None:
    terms = terms_of("alltid")
    (bonus,), (redemption,) = terms.unit, terms.redemption
    terms = replace(
        terms,
        unit=(bonus, replace(bonus, name="coins")),
        redemption=(redemption, replace(redemption, unit="coins")),
    )
    standing = member(bonus=Lot(SUMMER, 100, 100), coins=Lot(SUMMER, 100))
    standing.holds = (held(100, "bonus"),)
    programme = Programme([terms])
    authorize_capture(programme, standing, hold_id="held", unit="bonus", amount=100, at=AT)
    with pytest.raises(HoldUnknown):
        authorize_capture(programme, standing, hold_id="held", unit="coins", amount=100, at=AT)


def test_what_is_held_is_not_converted() -> None:
    standing = member(points=Lot(SUMMER, 2500, 600))
    standing.holds = (held(600, "points"),)
    after, _ = caught_up(
        Programme([terms_of("kplussa")]), standing, at=datetime(2024, 4, 2, tzinfo=UTC)
    )
    assert [(lot.amount, lot.pinned) for lot in after.lots["points"]] == [(1500, 600)]
    assert after.balance("plussa-money") == 500


def test_a_unit_that_is_dropped_is_carried_over_at_its_rate_and_debts_too() -> None:
    old = terms_of("alltid")
    (bonus,), (redemption,), (expiry,) = old.unit, old.redemption, old.expiry
    new = replace(
        old,
        valid_from=date(2024, 4, 1),
        unit=(replace(bonus, name="coins"),),
        redemption=(replace(redemption, unit="coins"),),
        expiry=(replace(expiry, unit="coins"),),
        earn=tuple(replace(rule, unit="coins") for rule in old.earn),
        suspension=None,
        transition=(
            Transition(clause="X", what="unit", old="bonus", new="coins", ratio=Ratio(1, 4)),
        ),
    )
    programme = Programme([old, new])
    at = datetime(2024, 4, 2, tzinfo=UTC)
    after, decision = caught_up(programme, member(bonus=Lot(SUMMER, 100)), at=at)
    assert (after.balance("bonus"), after.lots["coins"]) == (0, [Lot(SUMMER, 25)])
    assert [(one.unit, one.amount) for one in decision.transfers] == [
        ("bonus", -100),
        ("coins", 25),
    ]
    standing = member(bonus=Lot(SUMMER, 100, 60))
    standing.holds = (held(60, "bonus"),)
    after, _ = caught_up(programme, standing, at=at)
    assert (after.holds, after.lots["coins"]) == ((), [Lot(SUMMER, 25)])
    owing = Standing(joined_at=AT, through_on=TODAY, debts={"bonus": 100})
    after, _ = caught_up(programme, owing, at=at)
    assert after.debts == {"coins": 25}


def test_a_balance_tells_what_can_be_used_what_is_held_and_what_is_still_to_come() -> None:
    tomorrow = date(2024, 3, 5)
    standing = member(bonus=Lot(SUMMER, 100, 60))
    standing.lots["bonus"].append(Lot(LotKey(date(2026, 8, 1), TODAY, tomorrow), 7))
    standing.debts = {"coins": 30}
    assert balances_of(standing) == {
        "bonus": Balance(balance=107, usable=40, pending=7, held=60),
        "coins": Balance(balance=-30, usable=0, debt=30),
    }


def test_what_several_clauses_gave_is_told_together_and_apart() -> None:
    decision = Decision(TODAY)
    decision.earned = [Earned("S-4", "bonus", 8, 100, 0), Earned("S-5", "bonus", 1, 100, 1)]
    answer = answer_of("key", decision, Standing())
    assert answer.earned == {"bonus": 9}
    assert [(given.clause, given.amount) for given in answer.by_clause] == [("S-4", 8), ("S-5", 1)]


def test_a_purchase_from_before_joining_earns_nothing_and_does_not_count() -> None:
    receipt = Receipt(
        store="north",
        till="1",
        business_day=TODAY,
        number="1",
        at=AT,
        currency="NOK",
        total_minor=100000,
        lines=(Line(100000),),
    )
    sale = Sale(at=AT, key="key", receipt=receipt)
    after, decision = step(Programme([terms_of("alltid")]), Standing(), sale)
    assert [reason.code for reason in decision.reasons] == ["not-a-member"]
    assert (decision.transfers, after.sums, after.joined_at) == ([], {}, None)
