import pytest
from hypothesis import given
from hypothesis import strategies as st

from kantis.core.numbers import ONE, Ratio, Rounding, scale, split

amounts = st.integers(-(10**12), 10**12)
ratios = st.builds(Ratio.of, st.integers(-(10**6), 10**6), st.integers(1, 10**6))
weights = st.lists(st.integers(-1000, 1000), min_size=1, max_size=30)


@given(amounts, ratios)
def test_rounding_down_and_up_enclose_the_exact_value(amount: int, ratio: Ratio) -> None:
    exact_num = amount * ratio.num
    down, up = scale(amount, ratio), scale(amount, ratio, Rounding.UP)
    assert down * ratio.den <= exact_num <= up * ratio.den
    assert up - down == (exact_num % ratio.den != 0)


@given(amounts, ratios)
def test_half_up_is_never_further_than_half_a_unit_away(amount: int, ratio: Ratio) -> None:
    twice_off = 2 * (scale(amount, ratio, Rounding.HALF_UP) * ratio.den - amount * ratio.num)
    assert -ratio.den < twice_off <= ratio.den


@given(amounts, amounts, ratios, st.sampled_from(Rounding))
def test_who_buys_more_never_earns_less(
    one: int, other: int, ratio: Ratio, rounding: Rounding
) -> None:
    rate = Ratio(abs(ratio.num), ratio.den)
    low, high = sorted((one, other))
    assert scale(low, rate, rounding) <= scale(high, rate, rounding)


@given(amounts)
def test_the_whole_of_an_amount_is_the_amount(amount: int) -> None:
    assert {scale(amount, ONE, rounding) for rounding in Rounding} == {amount}


@given(ratios, ratios)
def test_a_product_of_ratios_is_in_lowest_terms(one: Ratio, other: Ratio) -> None:
    product = one.times(other)
    assert product.num * one.den * other.den == one.num * other.num * product.den
    assert product == Ratio.of(*product)


@pytest.mark.parametrize("den", [0, -1])
def test_a_ratio_needs_a_positive_denominator(den: int) -> None:
    with pytest.raises(ValueError, match="positive denominator"):
        Ratio.of(1, den)


@given(amounts, weights.filter(sum))
def test_parts_add_up_whatever_the_signs_of_the_weights(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    assert len(parts) == len(weights)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 1000), min_size=1).filter(sum))
def test_parts_are_within_one_of_their_exact_share(total: int, weights: list[int]) -> None:
    whole = sum(weights)
    for part, weight in zip(split(total, weights), weights, strict=True):
        assert part >= 0
        assert abs(part * whole - total * weight) < whole


@given(st.integers(0, 10**9), weights.filter(lambda weights: sum(weights) > 0))
def test_a_weight_of_nothing_gets_nothing(total: int, weights: list[int]) -> None:
    parts = split(total, [*weights, 0])
    assert parts[-1] == 0


def test_nothing_can_be_shared_out_over_nothing() -> None:
    assert split(0, [5, -5]) == [0, 0]
    with pytest.raises(ValueError, match="cannot be shared out"):
        split(1, [5, -5])
