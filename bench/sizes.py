"""How much is measured: enough for a figure to be believed, or just enough to see that it runs."""

from msgspec import Struct


class Sizes(Struct, frozen=True, kw_only=True):
    """Seconds measured of each load, and how many households and receipts there are.

    Each `every`-th of the year's households is imported, each `models_every`-th is copied for
    reviews. `reviewed` and `grown` are numbers of households, the fewest first.
    """

    floor_seconds: int
    warm_seconds: float
    level_seconds: float
    quote_seconds: float
    plain_seconds: float
    soak_seconds: float
    single_seconds: float
    households: int
    every: int
    models_every: int
    reviewed: tuple[int, ...]
    grown: tuple[int, ...]


FULL = Sizes(
    floor_seconds=10,
    warm_seconds=3,
    level_seconds=15,
    quote_seconds=20,
    plain_seconds=10,
    soak_seconds=60,
    single_seconds=3,
    households=10_000,
    every=1,
    models_every=10,
    reviewed=(100_000, 1_000_000),
    grown=(10_000, 100_000, 1_000_000),
)

SHORT = Sizes(
    floor_seconds=2,
    warm_seconds=0.5,
    level_seconds=2,
    quote_seconds=2,
    plain_seconds=2,
    soak_seconds=3,
    single_seconds=1,
    households=2_000,
    every=40,
    models_every=40,
    reviewed=(1_000, 4_000),
    grown=(2_000, 10_000),
)
