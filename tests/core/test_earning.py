from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kantis.core.earning import Earner
from kantis.core.receipt import Line, Receipt, Tender
from kantis.core.standing import Earned, Standing
from kantis.core.terms_text import read_terms

ROOT = Path(__file__).parents[2] / "programmes"
EARNERS = {
    str(file.relative_to(ROOT)): Earner(read_terms(file.read_text(encoding="utf-8")))
    for file in sorted(ROOT.glob("*/*.toml"))
}
KPLUSSA = EARNERS["kplussa/2016-01-01.toml"]
ALLTID = EARNERS["alltid/2016-01-01.toml"]
COOP, COOP_EURO = EARNERS["coop/2016-01-01.toml"], EARNERS["coop/2026-01-01.toml"]


def receipt(*lines: Line, tenders: tuple[Tender, ...] = ()) -> Receipt:
    return Receipt(
        store="s1",
        till="1",
        business_day=date(2017, 5, 2),
        number="1",
        at=datetime(2017, 5, 2, 10, tzinfo=UTC),
        currency="EUR",
        total_minor=sum(line.amount_minor for line in lines),
        lines=lines,
        tenders=tenders,
    )


def earned(
    earner: Earner,
    bought: Receipt,
    standing: Standing | None = None,
    *,
    chain: str = "food",
    on: date = date(2017, 5, 2),
) -> list[tuple[str, int]]:
    found, _ = earner.earn(bought, standing=standing or Standing(), chain=chain, on=on)
    return [(one.clause, one.amount) for one in found]


def test_each_full_euro_of_the_whole_receipt_earns_a_point() -> None:
    assert earned(KPLUSSA, receipt(Line(150), Line(150))) == [("K-1.1", 3)]
    assert earned(KPLUSSA, receipt(Line(99))) == []


@pytest.mark.parametrize(
    "category", ["deposit", "tobacco", "alcohol", "alcohol/wine/red", "tobacco/cigars"]
)
def test_excluded_goods_and_all_below_them_earn_nothing(category: str) -> None:
    assert earned(KPLUSSA, receipt(Line(5000, category))) == []
    assert KPLUSSA.exclusion_of(Line(5000, category)) == "K-1.3"


def test_a_category_is_more_than_the_beginning_of_a_word() -> None:
    assert earned(KPLUSSA, receipt(Line(500, "alcohol-free/cider"))) == [("K-1.1", 5)]


def test_a_fee_line_earns_nothing_and_no_clause_excludes_it() -> None:
    fee = Line(62_500, fee="membership")
    assert earned(ALLTID, receipt(fee, Line(10_000)), Standing(tier="level-1")) == [("S-5", 100)]
    assert ALLTID.exclusion_of(fee) == ""


def test_the_paid_part_is_taken_off_in_proportion() -> None:
    paid = (Tender("plussa-money", 500), Tender("cash", 1500))
    assert earned(KPLUSSA, receipt(Line(2000), tenders=paid)) == [("K-1.1", 15)]
    half_excluded = receipt(Line(1000), Line(1000, "tobacco"), tenders=paid)
    assert earned(KPLUSSA, half_excluded) == [("K-1.1", 7)]


def test_a_card_doubles_its_share_of_what_was_paid_otherwise() -> None:
    paid = (Tender("mastercard", 500), Tender("cash", 1500))
    bought = receipt(Line(2000), tenders=paid)
    assert earned(KPLUSSA, bought) == [("K-1.1", 20), ("K-1.5", 5)]
    assert earned(KPLUSSA, bought, chain="partner") == [("K-1.1", 20)]


def test_a_campaign_holds_on_its_last_day_and_not_after() -> None:
    bought = receipt(Line(2000), tenders=(Tender("mastercard", 2000),))
    assert earned(KPLUSSA, bought, on=date(2019, 3, 31)) == [("K-1.1", 20), ("K-1.5", 20)]
    assert earned(KPLUSSA, bought, on=date(2019, 4, 1)) == [("K-1.1", 20)]


def test_points_for_pieces_are_counted_by_piece_and_only_on_their_tier() -> None:
    bookings = receipt(Line(50_000, "travel/package", quantity_milli=2000))
    best = Standing(tier="best")
    assert earned(KPLUSSA, bookings, best) == [("K-1.1", 500), ("K-1.6", 4000)]
    assert earned(KPLUSSA, bookings) == [("K-1.1", 500)]


def test_own_brand_is_rounded_apart_and_members_of_the_cooperative_get_two_not_four() -> None:
    bought = receipt(Line(79, own_brand=True), Line(79))
    assert earned(COOP, bought) == [("C-1", 1), ("C-1", 2)]
    assert earned(COOP, bought, Standing(statuses=("cooperative-member",))) == [("C-1", 6)]


@given(st.integers(0, 10**9))
def test_the_euro_is_reckoned_by_its_exact_rate(cents: int) -> None:
    points = cents * 195_583 // 5_000_000
    assert earned(COOP_EURO, receipt(Line(cents))) == ([("C-1", points)] if points else [])


lines = st.builds(
    Line,
    st.integers(-50_000, 500_000),
    st.sampled_from(["", "food/dairy", "deposit", "mineral-water/still", "travel/package"]),
    quantity_milli=st.sampled_from([1000, 2000, 0, 750, -1000]),
    own_brand=st.booleans(),
    reduced=st.booleans(),
    fee=st.sampled_from(["", "", "", "membership"]),
)


@pytest.mark.parametrize("name", EARNERS)
@settings(max_examples=25)
@given(
    bought=st.lists(lines, max_size=12),
    by_unit=st.integers(0, 20_000),
    tier=st.sampled_from(["", "best", "level-1", "level-4"]),
)
def test_what_the_lines_earned_adds_up_to_what_the_receipt_earned(
    name: str, bought: list[Line], by_unit: int, tier: str
) -> None:
    earner = EARNERS[name]
    total = sum(line.amount_minor for line in bought)
    unit = "bonus" if "alltid" in name else "plussa-money"
    tenders = (Tender(unit, by_unit), Tender("mastercard", total - by_unit))
    whole = receipt(*bought, tenders=tenders)
    found, reasons = earner.earn(
        whole, standing=Standing(tier=tier), chain="food", on=date(2017, 5, 2)
    )
    assert bool(found) != bool(reasons)
    for one in found:
        assert one.amount > 0
        parts = earner.by_line(whole, one)
        assert sum(parts) == one.amount
        assert_nothing_on_lines_without_the_clause(earner, whole, one, parts)


def assert_nothing_on_lines_without_the_clause(
    earner: Earner, whole: Receipt, one: Earned, parts: list[int]
) -> None:
    for line, part in zip(whole.lines, parts, strict=True):
        is_fee = line.fee in earner.fees
        if is_fee or earner.exclusion_of(line) or one.rule not in earner.rules_for(line):
            assert part == 0
