"""What the figures are to show: ratios from one run, each with its bound and whether it holds.

A bound that is missed fails nothing: other machines, other ratios. What does fail the run is a
receipt that was lost or doubled, or a server that may forget.
"""

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from bench.floor import Floor
from bench.growth import Grown
from bench.levels import QUOTES_A_SECOND, USUAL, Level, Memory, Quotes
from bench.machine import Machine
from bench.reviews import Reviewed
from bench.year import Imported, Replayed

RATIO = "×"

RECEIPTS_AIM = 6_000
RECEIPTS_LEAST = 4_000
FLOOR_SHARE = 0.45
PLAIN_TIMES = 10
RECEIPT_P99_MS = 30
QUOTE_P99_MS = 5
BUFFERS_TIMES = 1.2
TIME_TIMES = 2
SAME_TIMES = 1.02
"""What counts as the same: a connection that is looked after now and then is a statement too."""
MEMORY_TIMES = 1.05
IMPORT_SECONDS = 40
REPLAY_SECONDS = 10
REVIEW_SECONDS = 30


class Figures(Struct):
    """All that was measured in one run; what was left out is None or empty."""

    machine: Machine
    is_short: bool
    floor: Floor | None = None
    floor_again: float | None = None
    receipts: list[Level] = []
    quotes: Quotes | None = None
    plain: list[Level] = []
    memory: Memory | None = None
    imported: Imported | None = None
    replayed: Replayed | None = None
    reviews: list[Reviewed] = []
    growth: list[Grown] = []


class Judged(Struct, frozen=True):
    """A figure beside its bound."""

    name: str
    value: float
    must: Literal["≥", "≤"]
    bound: float
    unit: str
    holds: bool


def judge(figures: Figures) -> list[Judged]:
    """Give what was measured beside what it must be, ratios first."""
    judged = [
        *_of_receipts(figures),
        *_of_growth(figures.growth),
        *_of_memory(figures.memory),
        *_of_quotes(figures.quotes),
        *_of_the_year(figures),
    ]
    return sorted(judged, key=lambda one: one.unit != RATIO)


def at_least(name: str, value: float, bound: float, unit: str = RATIO) -> Judged:
    """Judge a figure that must not be less than its bound."""
    return Judged(name, value, "≥", bound, unit, value >= bound)


def at_most(name: str, value: float, bound: float, unit: str = RATIO) -> Judged:
    """Judge a figure that must not be more than its bound."""
    return Judged(name, value, "≤", bound, unit, value <= bound)


def floor_of(figures: Figures) -> float | None:
    """Give the floor that Kantis is compared with: before its load and after, on average."""
    if figures.floor is None:
        return None
    before = figures.floor.eight_clients
    return (before + (figures.floor_again or before)) / 2


def _of_receipts(figures: Figures) -> Iterator[Judged]:
    usual = next((level for level in figures.receipts if level.connections == USUAL), None)
    if usual is None:
        return
    rate = usual.per_second
    if floor := floor_of(figures):
        yield at_least("receipts/s ÷ pgbench one by one, 8 clients", rate / floor, FLOOR_SHARE)
    if figures.plain:
        best = max(level.per_second for level in figures.plain)
        yield at_least("receipts/s ÷ plain FastAPI and SQLAlchemy", rate / best, PLAIN_TIMES)
    named = f"{USUAL} connections"
    yield at_least(f"receipts/s, {named}: the aim", rate, RECEIPTS_AIM, "/s")
    yield at_least(f"receipts/s, {named}: never below", rate, RECEIPTS_LEAST, "/s")
    yield at_most(f"receipt p99, {named}", usual.p99_ms, RECEIPT_P99_MS, "ms")


def _of_quotes(quotes: Quotes | None) -> Iterator[Judged]:
    if quotes is not None:
        name = f"quote p99, {QUOTES_A_SECOND}/s arriving by chance"
        yield at_most(name, quotes.arriving.p99_ms, QUOTE_P99_MS, "ms")


def _of_growth(growth: list[Grown]) -> Iterator[Judged]:
    if len(growth) < 1 + 1:
        return
    few, many = growth[0], growth[-1]
    named = f"{many.households:,} households ÷ {few.households:,}"
    for name, before, after in (
        ("alone", few.alone, many.alone),
        ("together", few.together, many.together),
    ):
        buffers = after.buffers / before.buffers
        yield at_most(f"buffers a receipt, {name}: {named}", buffers, BUFFERS_TIMES)
    statements = many.alone.statements / few.alone.statements
    yield at_most(f"statements a receipt, alone: {named}", statements, SAME_TIMES)
    time = few.level.per_second / many.level.per_second
    yield at_most(f"time a receipt, {USUAL} connections: {named}", time, TIME_TIMES)


def _of_memory(memory: Memory | None) -> Iterator[Judged]:
    if memory is not None:
        name = f"memory, last third of {memory.seconds:.0f} s ÷ first"
        yield at_most(name, memory.growth, MEMORY_TIMES)


def _of_the_year(figures: Figures) -> Iterator[Judged]:
    if (imported := figures.imported) is not None:
        name = f"import of {imported.receipts:,} receipts"
        yield at_most(name, imported.seconds, IMPORT_SECONDS, "s")
    if (replayed := figures.replayed) is not None:
        name = f"replay of {replayed.receipts:,} receipts"
        yield at_most(name, replayed.seconds, REPLAY_SECONDS, "s")
    if figures.reviews:
        most = figures.reviews[-1]
        name = f"review of {most.households:,} households"
        yield at_most(name, most.seconds, REVIEW_SECONDS, "s")
