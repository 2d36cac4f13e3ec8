"""`python -m bench`: measure, print and keep the figures; see `--help`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench import against, floor, growth, levels, machine, reviews, year
from bench.bounds import Figures, Judged, judge
from bench.drive import Lost
from bench.place import ROOT, Database, NotDurable, a_cluster, new_database
from bench.show import show
from bench.sizes import FULL, SHORT, Sizes
from kantis.db.cluster import Cluster

PARTS = ("floor", "receipts", "quotes", "plain", "memory", "year", "review", "accounts")

EVIDENCE = ROOT / "evidence" / "bench.json"

WIDTH = 100
"""Characters in a line of a file."""

_progress = Console(stderr=True, highlight=False)


class Kept(msgspec.Struct):
    """What is written for other programs."""

    judged: list[Judged]
    figures: Figures


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for; give the exit status."""
    options = _parser().parse_args(arguments)
    parts = set(options.only or PARTS)
    sizes = SHORT if options.short else FULL
    if options.soak is not None:
        sizes = msgspec.structs.replace(sizes, soak_seconds=options.soak)
    try:
        with a_cluster() as cluster:
            figures = measure(cluster, parts, sizes)
    except (Lost, NotDurable) as fault:
        _progress.print(f"[red]{fault}[/red]")
        return 1
    show(_console(), figures)
    is_whole = parts == set(PARTS) and not options.short
    if path := options.json or (EVIDENCE if is_whole else None):
        path.write_bytes(_as_json(figures))
        _progress.print(f"Kept in {path}")
    return 0


def measure(cluster: Cluster, parts: set[str], sizes: Sizes) -> Figures:
    """Measure each part that was asked for, one after the other.

    :raises Lost: an acknowledged receipt is not in the database, or is in it twice
    :raises NotDurable: the server may forget
    """
    ground = new_database(cluster, "floor")
    figures = Figures(machine.look_at(ground), is_short=sizes is SHORT)
    if "floor" in parts:
        _say("pgbench's floor")
        figures.floor = floor.measure(ground, seconds=sizes.floor_seconds)
    if parts & {"receipts", "quotes", "memory"}:
        _measure_tills(cluster, ground, parts, sizes, figures)
    if "plain" in parts:
        _say("the plain handler")
        figures.plain = list(against.measure(cluster, sizes))
    if "year" in parts:
        _say("import of the year")
        figures.imported = year.import_year(cluster, every=sizes.every)
        _say("replay of the year")
        figures.replayed = year.replay_year(every=sizes.every)
    if "review" in parts:
        _say(f"review of {_listed(sizes.reviewed)} households")
        figures.reviews = list(reviews.measure(cluster, sizes))
    if "accounts" in parts:
        _say(f"a receipt among {_listed(sizes.grown)} households")
        figures.growth = list(growth.measure(cluster, sizes))
    return figures


def _measure_tills(
    cluster: Cluster, ground: Database, parts: set[str], sizes: Sizes, figures: Figures
) -> None:
    _say(f"opening stores for {sizes.households:,} households")
    with levels.open_tills(cluster, "tills", size=sizes.households) as tills:
        if "receipts" in parts:
            _say("receipts")
            figures.receipts = list(levels.measure_receipts(tills, sizes))
        if figures.floor is not None and figures.receipts:
            # Again: the disk may have become slower or faster meanwhile.
            figures.floor_again = floor.one_by_one(ground, clients=8, seconds=sizes.floor_seconds)
        if "quotes" in parts:
            _say("quotes")
            figures.quotes = levels.measure_quotes(tills, sizes)
        if "memory" in parts:
            _say(f"memory, {sizes.soak_seconds:.0f} s")
            figures.memory = levels.measure_memory(
                tills, seconds=sizes.soak_seconds, warm_seconds=sizes.warm_seconds
            )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def _as_json(figures: Figures) -> bytes:
    kept = msgspec.to_builtins(Kept(judge(figures), figures))
    return msgspec.json.format(msgspec.json.encode(_rounded(kept))) + b"\n"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can say
    """Round to what was measured and not to what a division gives."""
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
        case _:
            return value


def _console() -> Console:
    """Give the console, wide enough for the tables where lines may be as long as they like."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _say(what: str) -> None:
    _progress.print(f"measuring: {what}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Kantis on this machine."
    )
    parser.add_argument("--short", action="store_true", help="a minute, to see that it works")
    parser.add_argument(
        "--json", type=Path, help=f"where figures go; {EVIDENCE.name} if all are taken"
    )
    parser.add_argument("--only", type=_parts, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--soak", type=float, help="seconds for which memory is looked at")
    return parser


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return parts


if __name__ == "__main__":
    # Asked to stop, it still removes what it made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
