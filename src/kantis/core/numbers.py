"""Whole-number arithmetic: the only place that rounds."""

from collections.abc import Sequence
from enum import StrEnum
from math import gcd
from typing import NamedTuple


class Rounding(StrEnum):
    """What becomes of a fraction of a unit; `down` is towards minus infinity."""

    DOWN = "down"
    UP = "up"
    HALF_UP = "half_up"


class Ratio(NamedTuple):
    """An exact rate `num / den` with `den > 0`."""

    num: int
    den: int

    @classmethod
    def of(cls, num: int, den: int) -> "Ratio":
        """Give the ratio in lowest terms.

        :raises ValueError: when `den` is not positive
        """
        if den <= 0:
            msg = f"a ratio needs a positive denominator, not {den}"
            raise ValueError(msg)
        divisor = gcd(num, den) or 1
        return cls(num // divisor, den // divisor)

    def times(self, other: "Ratio") -> "Ratio":
        """Give the product of two ratios."""
        return Ratio.of(self.num * other.num, self.den * other.den)


ONE = Ratio(1, 1)


def scale(amount: int, ratio: Ratio, rounding: Rounding = Rounding.DOWN) -> int:
    """Give `amount × ratio` as a whole number.

    >>> scale(180, Ratio(175, 1000), Rounding.HALF_UP)
    32
    """
    num = amount * ratio.num
    match rounding:
        case Rounding.DOWN:
            return num // ratio.den
        case Rounding.UP:
            return -(-num // ratio.den)
        case Rounding.HALF_UP:
            return (2 * num + ratio.den) // (2 * ratio.den)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Share `total` out in proportion to `weights`, so that the parts add up to it.

    Parts are differences of the running share, so a weight may be negative
    (a line taken back on the same receipt) and equal inputs give equal parts.

    >>> split(10, [1, 1, 1])
    [3, 3, 4]

    :raises ValueError: when the weights add up to nothing and `total` does not
    """
    whole = sum(weights)
    if whole == 0:
        if total:
            msg = f"{total} cannot be shared out over weights that add up to 0"
            raise ValueError(msg)
        return [0] * len(weights)
    parts: list[int] = []
    running = given = 0
    for weight in weights:
        running += weight
        upto = total * running // whole
        parts.append(upto - given)
        given = upto
    return parts
