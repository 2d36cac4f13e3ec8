"""Figures as tables for people: ratios first, then what they are made of, then the machine."""

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench.bounds import Figures, Judged, judge
from bench.floor import BATCH, Floor
from bench.growth import Grown
from bench.levels import Level, Memory
from bench.machine import Machine

_ROUND_FROM = 100
"""From here on a figure's decimals say nothing."""


def show(console: Console, figures: Figures) -> None:
    """Print all that was measured."""
    if judged := judge(figures):
        console.print(_ratios(judged, is_short=figures.is_short))
    if figures.floor is not None:
        console.print(_floor(figures.floor, figures.floor_again))
    quotes = figures.quotes
    for title, levels in (
        ("Receipts of 10 lines, K-Plussa's full terms", figures.receipts),
        ("The plain handler, one by one", figures.plain),
        ("Quotes: arriving by chance", [quotes.arriving] if quotes else []),
        ("Quotes: as many as can be had", [quotes.most] if quotes else []),
    ):
        if levels:
            console.print(_levels(title, levels))
    if figures.growth:
        console.print(_growth(figures.growth))
    if figures.memory is not None:
        console.print(_memory(figures.memory))
    if figures.imported or figures.replayed or figures.reviews:
        console.print(_year(figures))
    console.print(_machine(figures.machine))


def number(value: float) -> str:
    """Write a figure with as many digits as say something."""
    return f"{value:,.0f}" if abs(value) >= _ROUND_FROM else f"{value:,.2f}"


def _table(title: str, *columns: str) -> Table:
    """Make a table whose columns but the first are figures."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        min_width=len(title),
    )
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", min_width=5)
    return table


def _ratios(judged: Sequence[Judged], *, is_short: bool) -> Table:
    title = (
        "What it shows (a short run: only to see that it works)" if is_short else "What it shows"
    )
    table = _table(title, "", "measured", "must be", "")
    for one in judged:
        table.add_row(
            one.name,
            f"{number(one.value)} {one.unit}",
            f"{one.must} {one.bound:,} {one.unit}",
            "[green]yes[/green]" if one.holds else "[red]no[/red]",
        )
    return table


def _floor(floor: Floor, again: float | None) -> Table:
    table = _table("pgbench's floor, the same rows", "", "receipts/s")
    table.add_row("one statement each, 1 client", number(floor.one_client))
    table.add_row("one statement each, 8 clients", number(floor.eight_clients))
    if again is not None:
        table.add_row("  again, after the receipts", number(again))
    table.add_row(f"{BATCH} in one statement, 1 client", number(floor.batched))
    return table


def _levels(title: str, levels: Sequence[Level]) -> Table:
    table = _table(
        f"{title} (ms; µs of a core)",
        *("connections", "a second", "p50", "p99", "p99.9", "answered", "not 200"),
        *("server µs", "database µs", "load µs"),
    )
    for level in levels:
        cost = level.cost
        used = (cost.server_us, cost.database_us, cost.load_us) if cost else ()
        table.add_row(
            str(level.connections),
            number(level.per_second),
            *map(number, (level.p50_ms, level.p99_ms, level.p999_ms)),
            f"{level.acknowledged:,}",
            f"{sum(level.refused.values()):,}",
            *map(number, used),
        )
    return table


def _growth(growth: Sequence[Grown]) -> Table:
    table = _table(
        "A receipt as households grow: alone on one connection, together on many",
        "households",
        *(f"{grown.households:,}" for grown in growth),
    )
    rows: dict[str, Callable[[Grown], float]] = {
        "database, MiB": lambda grown: grown.database_mib,
        "statements, alone": lambda grown: grown.alone.statements,
        "statements, together": lambda grown: grown.together.statements,
        "receipts a commit, together": lambda grown: 1 / grown.together.transactions,
        "buffers, alone": lambda grown: grown.alone.buffers,
        "buffers, together": lambda grown: grown.together.buffers,
        "  of them read, together": lambda grown: grown.together.buffers_read,
        "bytes of WAL, together": lambda grown: grown.together.wal_bytes,
        "µs in statements, together": lambda grown: grown.together.execution_us,
        "µs, together": lambda grown: 10**6 / grown.level.per_second,
        "p99 ms, together": lambda grown: grown.level.p99_ms,
    }
    for name, figure in rows.items():
        table.add_row(name, *(number(figure(grown)) for grown in growth))
    return table


def _memory(memory: Memory) -> Table:
    table = _table(f"The server's memory over {memory.receipts:,} receipts", "", "MiB")
    table.add_row(f"first third of {memory.seconds:.0f} s", number(memory.first_third_mib))
    table.add_row("last third", number(memory.last_third_mib))
    table.add_row("most", number(memory.most_mib))
    return table


def _year(figures: Figures) -> Table:
    table = _table("In bulk", "", "seconds", "a second")
    if (imported := figures.imported) is not None:
        name = f"import of {imported.receipts:,} receipts, {imported.households:,} households"
        table.add_row(name, number(imported.seconds), number(imported.receipts / imported.seconds))
    if (replayed := figures.replayed) is not None:
        name = f"replay of {replayed.receipts:,} receipts"
        table.add_row(name, number(replayed.seconds), number(replayed.receipts / replayed.seconds))
    for review in figures.reviews:
        name = f"review of {review.households:,} households, {review.due:,} due"
        table.add_row(name, number(review.seconds), number(review.due / review.seconds))
    return table


def _machine(machine: Machine) -> Table:
    table = Table(title="Measured on", title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_row("machine", f"{machine.cores} cores, {machine.memory_gib} GiB")
    table.add_row("processor", machine.processor)
    table.add_row("system", f"{machine.system}, {machine.file_system}")
    table.add_row("a synced write of 8 KiB", f"{machine.sync_us:,.0f} µs")
    table.add_row("versions", f"Python {machine.python}, PostgreSQL {machine.postgresql}")
    settings = (f"{name} = {value}" for name, value in machine.settings.items())
    table.add_row("settings", "\n".join(settings))
    table.add_row("commit", f"{machine.commit}, {machine.measured_at.isoformat()}")
    return table
