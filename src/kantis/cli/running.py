"""Servers and databases started, stopped and brought up to date; the demo."""

import time
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from kantis import background, terminal
from kantis import demo as demonstration
from kantis.cli.common import (
    INTERRUPTED,
    ProgrammeName,
    app,
    console,
    database,
    db_app,
    errors,
    migrated,
    now,
    program_name,
    progress,
)
from kantis.cli.shops import new_token
from kantis.db import programmes, reports
from kantis.db.connect import check_server, connect
from kantis.folder import Folder, find_folder
from kantis.history.receipts import (
    History,
    demo_folder,
    read_reading,
)
from kantis.operations import explaining
from kantis.settings import Settings, read_settings


@app.command("migrate")
def migrate() -> None:
    """Bring the database's schema up to date."""
    with database():
        console.print("The schema is up to date.")


@app.command("serve")
def serve(
    only: Annotated[
        list[str] | None, typer.Option(help="api, site or worker; all if left out.")
    ] = None,
) -> None:
    """Run the till API, people's pages and the worker, until stopped."""
    from kantis import serve as serving  # noqa: PLC0415 - web frameworks take a second

    settings = read_settings()
    parts = frozenset(only or serving.PARTS)
    if unknown := parts - serving.PARTS:
        known = ", ".join(sorted(serving.PARTS))
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {known}")
    with database():
        pass
    serving.serve(settings, parts)


@app.command("demo")
def demo(
    programme: ProgrammeName = "kplussa",
    receipts: Annotated[Path | None, typer.Option(help="A folder of receipts (Parquet).")] = None,
    every: Annotated[int, typer.Option(min=1, help="Only every so many-th household.")] = 1,
    then_serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Start it.")] = True,
) -> None:
    """Run a year of real receipts through the real engine, and leave it running to try."""
    settings = read_settings()
    folder = find_folder(programme)
    history = History(receipts or demo_folder(), every=every)
    url = migrated(settings)
    started = time.perf_counter()
    try:
        loaded = _load(url, folder, history)
    except KeyboardInterrupt:
        errors.print("\nStopped. What is booked is booked; run it again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.perf_counter() - started
    with connect(url) as connection:
        _show_demo(connection, folder.name, history, loaded, seconds)
        if then_serve:
            _offer(connection, settings, folder.name)


def _load(url: str, folder: Folder, history: History) -> demonstration.Loaded:
    reading = read_reading(folder.path)
    with connect(url) as connection:
        check_server(connection)
        with progress("enrolling households", len(history.households())) as advance:
            demonstration.prepare(connection, folder, history, reading, now=now(), progress=advance)
    with progress("booking the year", history.count()) as advance:
        return demonstration.load_year(url, folder, history, reading, now=now(), progress=advance)


def _show_demo(
    connection: psycopg.Connection,
    name: str,
    history: History,
    loaded: demonstration.Loaded,
    seconds: float,
) -> None:
    programme = programmes.load(connection, name)
    day = programme.day(history.last_at())
    terms = programme.on(day).terms
    totals = reports.totals(connection, name, on=day)
    title = f"{terms.label.get('en', name)}, a year of real receipts, on {day}"
    terminal.show(
        console, terminal.summary(totals, terms, title=title), terminal.months(totals, terms)
    )
    if busiest := reports.busiest(connection, name):
        account_id, receipts, spent = busiest
        console.print(
            f"The busiest account is {account_id}: {receipts:,} receipts,"
            f" {terminal.money(spent, terms.currency)}."
        )
        (key,) = reports.receipt_numbers(connection, account_id, limit=1)
        console.print(f"Why its last receipt earned what it did:\n  {program_name()} explain {key}")
    before = f", {loaded.before:,} were there before" if loaded.before else ""
    console.print(f"{loaded.new:,} receipts booked{before}, in {seconds:.1f} s.")


def _offer(connection: psycopg.Connection, settings: Settings, programme: str) -> None:
    """Leave the server running and say how to try it."""
    address = f"http://{settings.host}:{settings.port}"
    background.start(settings)
    account_id, _, _ = reports.busiest(connection, programme) or (0, 0, 0)
    key = reports.receipt_numbers(connection, account_id, limit=1)[0]
    sale = explaining.explain_receipt(connection, key).sale
    token = new_token(connection, programme, sale.receipt.store, "demo")
    console.print(f"\nThe server runs at {address} (its API: {address}/docs). Try:\n")
    for line in terminal.curl_lines(address, token, sale.receipt, now=now()):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"\nIt runs without the worker, so that the demo stays in its year."
        f" Stop it with `{program_name()} stop`.",
        markup=False,
    )


@app.command("stop")
def stop() -> None:
    """Stop the server that `kantis demo` left running, and the embedded PostgreSQL."""
    settings = read_settings()
    background.stop(settings)
    if settings.is_embedded and settings.cluster.running():
        settings.cluster.stop()
    console.print("Stopped.")


@db_app.command("start")
def db_start() -> None:
    """Start the embedded PostgreSQL; most commands do it by themselves."""
    with database():
        console.print(read_settings().database(), soft_wrap=True)


@db_app.command("stop")
def db_stop() -> None:
    """Stop the embedded PostgreSQL."""
    read_settings().cluster.stop()
    console.print("Stopped.")


@db_app.command("url")
def db_url() -> None:
    """Print the database's URL, for `psql` and others."""
    console.print(read_settings().database(), soft_wrap=True)
