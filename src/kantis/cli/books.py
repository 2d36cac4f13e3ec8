"""The books: reported, explained, proved, sealed, moved on."""

import re
import time
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from kantis import bulk, terminal
from kantis.cli.common import (
    JsonFlag,
    ProgrammeName,
    app,
    console,
    database,
    migrated,
    now,
    progress,
)
from kantis.cli.history import print_json
from kantis.core.admission import Warrant
from kantis.core.periods import Period
from kantis.core.programme import Programme
from kantis.db import programmes, reports
from kantis.db.connect import check_server, connect
from kantis.operations import audit as auditing
from kantis.operations import explaining, upkeep
from kantis.settings import read_settings


@app.command("report")
def report(
    programme: ProgrammeName,
    on: Annotated[datetime | None, typer.Option(help="What can be spent on this day.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give the totals of what the database holds of a programme."""
    with database() as connection:
        loaded = programmes.load(connection, Path(programme).name)
        day = on.date() if on else _last_day(connection, loaded)
        totals = reports.totals(connection, loaded.name, on=day)
    if as_json:
        print_json(loaded.name, day, totals)
        return
    terms = loaded.on(day).terms
    title = f"{loaded.name} on {day}"
    terminal.show(
        console, terminal.summary(totals, terms, title=title), terminal.months(totals, terms)
    )


def _last_day(connection: psycopg.Connection, programme: Programme) -> date:
    """Give the day up to which most is known: that of the latest event, or today."""
    last = reports.last_event_at(connection, programme.name)
    return programme.day(last or now())


@app.command("explain")
def explain(
    receipt: Annotated[str, typer.Argument(help="A receipt's key, or its number.")],
    language: Annotated[str, typer.Option(help="The language of the clauses.")] = "en",
) -> None:
    """Say line by line what a receipt earned, and by which clause."""
    with database() as connection:
        found = explaining.explain_receipt(connection, receipt)
    terminal.show(console, *terminal.explanation(found, language=language))


@app.command("audit")
def audit(
    quick: Annotated[bool, typer.Option("--quick", help="Without folding histories.")] = False,
    kept: Annotated[
        str | None, typer.Option("--seal", help="A seal that was kept elsewhere.")
    ] = None,
) -> None:
    """Prove the books: transfers balance, lots and balances follow, standing is the fold."""
    with database() as connection:
        if kept is not None and not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", kept):
            raise typer.BadParameter("write it as `kantis seal` prints it", param_hint="--seal")
        prove(connection, quick=quick, kept=kept)


def prove(connection: psycopg.Connection, *, quick: bool, kept: str | None = None) -> None:
    wrong = 0
    if kept:
        finding = auditing.check_seal(connection, kept)
        wrong += print_finding(finding.check, finding.wrong)
    for finding in auditing.audit_books(connection):
        wrong += print_finding(finding.check, finding.wrong)
    for name in () if quick else programmes.names(connection):
        finding = _fold_again(connection, name)
        wrong += print_finding(finding.check, finding.wrong)
    if wrong:
        console.print("[red]The books are not right.[/red] Book on, and find out who changed what.")
        raise typer.Exit(1)
    console.print("The books are right.")


@app.command("seal")
def seal() -> None:
    """Seal what was posted since the last seal; prints the latest seal, to be kept elsewhere."""
    with database() as connection:
        latest = auditing.seal(connection, at=now())
    console.print(str(latest or "Nothing was posted yet."), soft_wrap=True)


def _fold_again(connection: psycopg.Connection, programme: str) -> auditing.Finding:
    accounts = list(auditing.accounts_of(connection, programme=programme))
    found: list[str] = []
    events, started = 0, time.perf_counter()
    with progress(f"folding {programme} again", len(accounts)) as advance:
        while some := accounts[: auditing.ACCOUNTS_AT_ONCE]:
            differing, folded = auditing.audit_accounts(
                connection, programme=programme, account_ids=some
            )
            found += differing
            events += folded
            del accounts[: len(some)]
            advance(len(some))
    rate = round(events / (time.perf_counter() - started))
    check = f"every standing of {programme} is the fold of its history"
    return auditing.Finding(f"{check} ({events:,} events, {rate:,} a second)", tuple(found))


def print_finding(check: str, wrong: tuple[str, ...]) -> int:
    console.print(f"{'[red]no[/red] ' if wrong else '[green]yes[/green]'}  {check}", soft_wrap=True)
    for one in wrong[:10]:
        console.print(f"        {one}", markup=False, soft_wrap=True)
    return len(wrong)


@app.command("tick")
def tick(
    until: Annotated[datetime, typer.Option(help="The day whose start is reached, local.")],
    programme: Annotated[str, typer.Option(help="One programme; all if left out.")] = "",
) -> None:
    """Follow the calendar to a day: reviews, conversions, expiry, holds that run out."""
    url = migrated(read_settings())
    bulk.forget_start()
    with connect(url) as connection:
        check_server(connection)
        names = [Path(programme).name] if programme else programmes.names(connection)
    for name in names:
        visited = bulk.follow_calendar_together(
            url, programme=name, through=until.date(), now=now()
        )
        console.print(f"{name}: {visited:,} accounts had something due by {until.date()}")


@app.command("suspend")
def suspend(
    programme: ProgrammeName,
    start: Annotated[datetime, typer.Option("--from", help="The first day.")],
    end: Annotated[datetime, typer.Option("--until", help="The first day after it.")],
    reason: Annotated[str, typer.Option(help="Why; members are told.")],
    actor: Annotated[str, typer.Option(help="Who asks.")] = "terminal",
    approved_by: Annotated[str, typer.Option(help="Who else approved.")] = "",
) -> None:
    """Suspend redemption for some days; nothing expires meanwhile and their number is added."""
    with database() as connection:
        upkeep.suspend(
            connection,
            programme=Path(programme).name,
            period=Period(start.date(), end.date()),
            now=now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    console.print(f"{programme}: no redemption from {start.date()} until {end.date()}")
