"""Receipts in bulk, folded without a database."""

import gc
import sys
import time
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kantis import terminal
from kantis.cli.common import JsonFlag, ProgrammeName, app, console
from kantis.core.programme import Programme
from kantis.core.replay import replay as fold_all
from kantis.core.totals import Totals
from kantis.folder import Folder, find_folder, read_versions
from kantis.history.receipts import (
    History,
    demo_folder,
    histories,
    read_reading,
)


@app.command("replay")
def replay(
    programme: ProgrammeName,
    receipts: Annotated[Path | None, typer.Option(help="A folder of receipts (Parquet).")] = None,
    terms: Annotated[Path | None, typer.Option(help="Other terms to fold it under.")] = None,
    until: Annotated[datetime | None, typer.Option(help="The last day followed.")] = None,
    compare: Annotated[bool, typer.Option(help="Beside the programme's own terms.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Only every so many-th household.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Fold a year of receipts without a database; under other terms, see what they would cost."""
    folder = find_folder(programme)
    history = History(receipts or demo_folder(), every=every)
    own = folder.programme()
    last_day = until.date() if until else own.day(history.last_at())
    joined_on = read_reading(folder.path).joined_on
    own = _in_force_from(own, joined_on)
    run = _in_force_from(Programme(read_versions([terms])), joined_on) if terms else own
    started = time.perf_counter()
    totals = _fold(run, folder, history, last_day)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(run.name, last_day, totals)
        return
    shown = run.on(last_day).terms
    title = f"{run.name} until {last_day}{f', terms of {terms}' if terms else ''}"
    parts = [terminal.summary(totals, shown, title=title), terminal.months(totals, shown)]
    if terms and compare:
        parts.append(terminal.comparison(_fold(own, folder, history, last_day), totals, shown))
    terminal.show(console, *parts)
    console.print(f"Folded in {seconds:.1f} s without a database.")


def _fold(programme: Programme, folder: Folder, history: History, until: date) -> Totals:
    # Millions of small objects live briefly and none in a cycle: looking for cycles is a fifth
    # of the time.
    gc.disable()
    try:
        reading = read_reading(folder.path)
        return fold_all(programme, histories(history, programme, reading, until=until), until=until)
    finally:
        gc.enable()


def _in_force_from(programme: Programme, day: date) -> Programme:
    """Give a programme as if its first version had been in force from a day on already."""
    first, *later = (version.terms for version in programme.versions)
    if first.valid_from <= day:
        return programme
    return Programme([msgspec.structs.replace(first, valid_from=day), *later])


def print_json(name: str, until: date, totals: Totals) -> None:
    """Print totals for another program."""
    figures: dict[str, Any] = msgspec.to_builtins(totals)
    figures.pop("tier_moves")
    figures["earned_total"] = {
        unit: sum(clauses.values()) for unit, clauses in totals.earned.items()
    }
    document = {"programme": name, "until": until, **figures, "tiers": totals.tiers}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document, order="sorted")).decode())
    sys.stdout.write("\n")
