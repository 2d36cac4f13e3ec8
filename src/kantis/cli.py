"""Kantis from a terminal. `docs/commands.md` has the reference."""

import gc
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import duckdb
import msgspec
import psycopg
import typer
from psycopg_pool import ConnectionPool
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from kantis import background, terminal
from kantis import check as checking
from kantis import demo as demonstration
from kantis.check_database import DatabaseWorld
from kantis.core.admission import Warrant
from kantis.core.conditions import conditions
from kantis.core.periods import Period
from kantis.core.programme import Programme
from kantis.core.refusals import Refusal, TermsNotInForce
from kantis.core.replay import replay as fold_all
from kantis.core.toml_text import TextFaulty
from kantis.core.totals import Totals
from kantis.db import backup as backups
from kantis.db import programmes, reports
from kantis.db.cluster import ClusterError
from kantis.db.connect import EVERY_PROGRAMME, UnsafeServer, check_server, connect, open_pool
from kantis.db.programmes import Store
from kantis.db.schema import migrate as migrate_schema
from kantis.folder import Folder, FolderFaulty, FolderMissing, find_folder, read_versions
from kantis.history.receipts import (
    History,
    HistoryMissing,
    demo_folder,
    histories,
    read_reading,
)
from kantis.operations import audit as auditing
from kantis.operations import explaining, publishing, upkeep, waiting
from kantis.settings import Settings, read_settings

app = typer.Typer(no_args_is_help=True, help="Loyalty programmes as code.", rich_markup_mode=None)
terms_app = typer.Typer(no_args_is_help=True, help="Read, check and publish terms.")
store_app = typer.Typer(no_args_is_help=True, help="The stores of a programme.")
till_app = typer.Typer(no_args_is_help=True, help="The tills that may ask.")
waiting_app = typer.Typer(no_args_is_help=True, help="What waits until staff decide.")
db_app = typer.Typer(no_args_is_help=True, help="The embedded PostgreSQL.")
app.add_typer(terms_app, name="terms")
app.add_typer(store_app, name="store")
app.add_typer(till_app, name="till")
app.add_typer(db_app, name="db")
app.add_typer(waiting_app, name="waiting")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

SAID = (
    Refusal,
    TextFaulty,
    FolderFaulty,
    FolderMissing,
    HistoryMissing,
    ClusterError,
    UnsafeServer,
    demonstration.NotTaken,
    background.ServerDown,
    backups.BackupRefused,
    duckdb.Error,
    OSError,
)
"""What is said in a sentence; anything else is a bug and shows where."""

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended."""

ProgrammeName = Annotated[str, typer.Argument(help="A programme's name or folder.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for another program.")]


def main() -> None:
    """Run the command line; what users can mend is said in one sentence, with exit code 1."""
    try:
        app()
    except SAID as said:
        errors.print(str(said), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except psycopg.OperationalError as error:
        errors.print(
            f"The database cannot be reached: {error}", style="red", markup=False, soft_wrap=True
        )
        sys.exit(1)


# --- terms ---------------------------------------------------------------------------------


@terms_app.command("show")
def terms_show(
    programme: ProgrammeName,
    language: Annotated[str, typer.Option(help="A language of the terms.")] = "en",
    on: Annotated[datetime | None, typer.Option(help="A day; today if left out.")] = None,
) -> None:
    """Print the terms in force on a day as conditions that a member can read."""
    day = (on or datetime.now()).date()  # noqa: DTZ005 - a day, in whatever zone this is read
    version = find_folder(programme).programme().on(day)
    console.print(conditions(version.terms, language), markup=False, soft_wrap=True)


@terms_app.command("check")
def terms_check(
    paths: Annotated[list[Path], typer.Argument(help="Terms files, or folders of programmes.")],
) -> None:
    """Find every fault in terms files, with its line and what was probably meant."""
    files = [file for path in paths for file in _terms_files(path)]
    found = False
    for folder in sorted({file.parent for file in files}):
        try:
            read_versions([file for file in files if file.parent == folder])
        except FolderFaulty as faulty:
            found = True
            for path, faults in faulty.faults.items():
                for fault in faults:
                    console.print(f"{path}: {fault}", markup=False, soft_wrap=True)
    if found:
        raise typer.Exit(1)
    console.print(f"{len(files)} terms file{'s' * (len(files) != 1)}: no fault")


def _terms_files(path: Path) -> list[Path]:
    return find_folder(path).terms_files if not path.is_file() else [path]


@terms_app.command("publish")
def terms_publish(
    paths: Annotated[list[Path], typer.Argument(help="Terms files, or folders of programmes.")],
) -> None:
    """Publish terms for ever. A published version is never edited; a new one gets a later day."""
    with _database() as connection:
        for path in [file for given in paths for file in _terms_files(given)]:
            source = path.read_text(encoding="utf-8")
            try:
                new = publishing.publish_terms(connection, source=source, at=_now(), by="terminal")
            except TextFaulty as faulty:
                raise FolderFaulty({path: faulty.faults}) from None
            console.print(f"{path}: {'published' if new else 'was published before'}")


@app.command("check")
def check_cases(
    programme: ProgrammeName,
    pure: Annotated[bool, typer.Option("--pure", help="Without PostgreSQL.")] = False,
) -> None:
    """Run a programme's cases through PostgreSQL and through the replay; both must agree."""
    folder = find_folder(programme)
    own = folder.programme()
    wrong = 0
    with _check_connection(pure=pure) as connection:
        database = DatabaseWorld(connection, folder.sources) if connection else None
        cases = list(folder.cases())
        for path, case in cases:
            found = {"replay": checking.run(case, checking.PureWorld(own))}
            if database is not None:
                found["PostgreSQL"] = checking.run(case, database)
            failed = any(found.values())
            wrong += failed
            mark = ("failed", "red") if failed else ("ok", "green")
            console.print(Text.assemble(mark, f"  {path.stem}: {case.title}"), soft_wrap=True)
            for name, mismatches in found.items():
                for mismatch in mismatches:
                    console.print(f"        {name}: {mismatch}", markup=False)
    ways = "through the replay" if pure else "through PostgreSQL and through the replay"
    console.print(f"{len(cases)} cases {ways}, {wrong} failed")
    if wrong:
        raise typer.Exit(1)


@contextmanager
def _check_connection(*, pure: bool) -> Iterator[psycopg.Connection | None]:
    if pure:
        yield None
        return
    with _database() as connection:
        yield connection


# --- receipts in bulk ----------------------------------------------------------------------


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
        _print_json(run.name, last_day, totals)
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


def _print_json(name: str, until: date, totals: Totals) -> None:
    figures: dict[str, Any] = msgspec.to_builtins(totals)
    figures.pop("tier_moves")
    figures["earned_total"] = {
        unit: sum(clauses.values()) for unit, clauses in totals.earned.items()
    }
    document = {"programme": name, "until": until, **figures, "tiers": totals.tiers}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document, order="sorted")).decode())
    sys.stdout.write("\n")


# --- the books -----------------------------------------------------------------------------


@app.command("report")
def report(
    programme: ProgrammeName,
    on: Annotated[datetime | None, typer.Option(help="What can be spent on this day.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give the totals of what the database holds of a programme."""
    with _database() as connection:
        loaded = programmes.load(connection, Path(programme).name)
        day = on.date() if on else _last_day(connection, loaded)
        totals = reports.totals(connection, loaded.name, on=day)
    if as_json:
        _print_json(loaded.name, day, totals)
        return
    terms = loaded.on(day).terms
    title = f"{loaded.name} on {day}"
    terminal.show(
        console, terminal.summary(totals, terms, title=title), terminal.months(totals, terms)
    )


def _last_day(connection: psycopg.Connection, programme: Programme) -> date:
    """Give the day up to which most is known: that of the latest event, or today."""
    last = reports.last_event_at(connection, programme.name)
    return programme.day(last or _now())


@app.command("explain")
def explain(
    receipt: Annotated[str, typer.Argument(help="A receipt's key, or its number.")],
    language: Annotated[str, typer.Option(help="The language of the clauses.")] = "en",
) -> None:
    """Say line by line what a receipt earned, and by which clause."""
    with _database() as connection:
        found = explaining.explain_receipt(connection, receipt)
    terminal.show(console, *terminal.explanation(found, language=language))


@app.command("audit")
def audit(
    quick: Annotated[bool, typer.Option("--quick", help="Without folding histories.")] = False,
    kept: Annotated[str, typer.Option("--seal", help="A seal that was kept elsewhere.")] = "",
) -> None:
    """Prove the books: transfers balance, lots and balances follow, standing is the fold."""
    with _database() as connection:
        if kept and not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", kept):
            raise typer.BadParameter("write it as `kantis seal` prints it", param_hint="--seal")
        _prove(connection, quick=quick, kept=kept)


def _prove(connection: psycopg.Connection, *, quick: bool, kept: str = "") -> None:
    wrong = 0
    if kept:
        finding = auditing.check_seal(connection, kept)
        wrong += _print_finding(finding.check, finding.wrong)
    for finding in auditing.audit_books(connection):
        wrong += _print_finding(finding.check, finding.wrong)
    for name in () if quick else programmes.names(connection):
        finding = _fold_again(connection, name)
        wrong += _print_finding(finding.check, finding.wrong)
    if wrong:
        raise typer.Exit(1)
    console.print("The books are right.")


@app.command("seal")
def seal() -> None:
    """Seal what was posted since the last seal; prints the latest seal, to be kept elsewhere."""
    with _database() as connection:
        latest = auditing.seal(connection, at=_now())
    console.print(str(latest or "Nothing was posted yet."), soft_wrap=True)


def _fold_again(connection: psycopg.Connection, programme: str) -> auditing.Finding:
    accounts = list(auditing.accounts_of(connection, programme=programme))
    found: list[str] = []
    events, started = 0, time.perf_counter()
    with _progress(f"folding {programme} again", len(accounts)) as advance:
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


def _print_finding(check: str, wrong: tuple[str, ...]) -> int:
    console.print(f"{'[red]no[/red] ' if wrong else '[green]yes[/green]'}  {check}")
    for one in wrong[:10]:
        console.print(f"        {one}", markup=False)
    return len(wrong)


@app.command("tick")
def tick(
    until: Annotated[datetime, typer.Option(help="The day whose start is reached, local.")],
    programme: Annotated[str, typer.Option(help="One programme; all if left out.")] = "",
) -> None:
    """Follow the calendar to a day: reviews, conversions, expiry, holds that run out."""
    with _database() as connection:
        for name in [Path(programme).name] if programme else programmes.names(connection):
            visited = 0
            while True:
                done = upkeep.tick(connection, programme=name, through=until.date(), now=_now())
                visited += done
                if done < upkeep.ACCOUNTS_AT_ONCE:
                    break
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
    with _database() as connection:
        upkeep.suspend(
            connection,
            programme=Path(programme).name,
            period=Period(start.date(), end.date()),
            now=_now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    console.print(f"{programme}: no redemption from {start.date()} until {end.date()}")


# --- what waits for staff ------------------------------------------------------------------

WaitingKey = Annotated[str, typer.Argument(help="The key that `kantis waiting list` shows.")]
Why = Annotated[str, typer.Option("--reason", help="Why it is decided so.")]
Actor = Annotated[str, typer.Option(help="Who decides.")]
ApprovedBy = Annotated[str, typer.Option(help="Who else approved.")]


@waiting_app.command("list")
def waiting_list(
    programme: Annotated[str, typer.Argument(help="A programme; all if left out.")] = "",
) -> None:
    """List the receipts and returns that came too late or take back too much, oldest first."""
    with _database() as connection:
        for name in [Path(programme).name] if programme else programmes.names(connection):
            for one in waiting.list_waiting(connection, programme=name):
                came_at = one.recorded_at.isoformat(timespec="minutes")
                told = f"{one.key}  {one.why}  came {came_at}"
                console.print(told, markup=False, soft_wrap=True)


@waiting_app.command("accept")
def waiting_accept(
    key: WaitingKey, reason: Why, actor: Actor = "terminal", approved_by: ApprovedBy = ""
) -> None:
    """Book it in its place, as if it had come in time."""
    with _database() as connection:
        answer = waiting.accept(
            connection,
            programme=key.partition("/")[0],
            key=key,
            at=_now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    console.print(f"{key}: booked; earned {answer.earned or 'nothing'}", markup=False)


@waiting_app.command("dismiss")
def waiting_dismiss(
    key: WaitingKey, reason: Why, actor: Actor = "terminal", approved_by: ApprovedBy = ""
) -> None:
    """Decide that it is never booked; who and why are kept."""
    with _database() as connection:
        waiting.dismiss(
            connection,
            programme=key.partition("/")[0],
            key=key,
            at=_now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    console.print(f"{key}: dismissed", markup=False)


# --- backups -------------------------------------------------------------------------------


@app.command("backup")
def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a backup of the books to a new folder, while tills go on booking."""
    settings = read_settings()
    settings.database()
    # Ended politely, as by `timeout`, it tidies up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.perf_counter()
    manifest = backups.take(settings.keeper(), folder, at=_now())
    seconds = time.perf_counter() - started
    terminal.show(console, terminal.backup(manifest, title=str(folder)))
    console.print(f"Backed up in {seconds:.1f} s.")


@app.command("restore")
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `kantis backup` made.")],
    quick: Annotated[bool, typer.Option("--quick", help="Audit without folding.")] = False,
) -> None:
    """Put a backup into an empty database, say what it holds, and prove the books."""
    manifest = backups.check(folder)
    settings = read_settings()
    settings.database()
    backups.restore(
        folder, manifest, owner_url=settings.owner(), has_app_role=settings.has_app_role
    )
    backups.compare(settings.keeper(), manifest)
    terminal.show(console, terminal.backup(manifest, title=f"restored from {folder}"))
    with _database() as connection:
        _prove(connection, quick=quick)


# --- stores and tills ----------------------------------------------------------------------


@store_app.command("add")
def store_add(
    store: Annotated[str, typer.Argument(help="The store's name on its receipts.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
    chain: Annotated[str, typer.Option(help="Its chain, which terms select by.")] = "",
    entity: Annotated[str, typer.Option(help="The legal entity that runs it.")] = "",
) -> None:
    """Make a store known, or change its chain and entity."""
    with _database() as connection:
        name = Path(programme).name or _only_programme(connection)
        publishing.add_store(connection, programme=name, store=Store(store, chain, entity))
    console.print(f"{name}: {store} is known")


@till_app.command("add")
def till_add(
    store: Annotated[str, typer.Argument(help="The till's store.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
    label: Annotated[str, typer.Option(help="What to call the till.")] = "till",
    staff: Annotated[bool, typer.Option("--staff", help="A desk: it also enrols.")] = False,
) -> None:
    """Let a till or a staff desk in: prints its token, once."""
    with _database() as connection:
        name = Path(programme).name or _only_programme(connection)
        console.print(_new_token(connection, name, store, label, staff=staff), soft_wrap=True)


@till_app.command("list")
def till_list(
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
) -> None:
    """List the tills and desks that were let in; tokens are shown by `kantis till add` only."""
    with _database() as connection:
        name = Path(programme).name or _only_programme(connection)
        found = publishing.list_tills(connection, programme=name)
    console.print(terminal.tills(found))


@till_app.command("revoke")
def till_revoke(
    store: Annotated[str, typer.Argument(help="The till's store.")],
    label: Annotated[str, typer.Option(help="What the till is called.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
) -> None:
    """Let a till or desk in no more, at once: every token of this label in the store."""
    with _database() as connection:
        name = Path(programme).name or _only_programme(connection)
        revoked = publishing.revoke_till(
            connection, programme=name, store=store, label=label, at=_now()
        )
    tokens = f"{revoked} token{'s' * (revoked != 1)} of {label!r} revoked"
    console.print(f"{name}: {store}: {tokens}", markup=False, soft_wrap=True)
    if not revoked:
        raise typer.Exit(1)


def _new_token(
    connection: psycopg.Connection, programme: str, store: str, label: str, *, staff: bool = False
) -> str:
    token = secrets.token_urlsafe(32)
    publishing.add_till(
        connection,
        programme=programme,
        store=store,
        label=label,
        kind="staff" if staff else "till",
        token=token,
        at=_now(),
    )
    return token


def _only_programme(connection: psycopg.Connection) -> str:
    names = programmes.names(connection)
    if len(names) != 1:
        raise TermsNotInForce(programme="--programme is needed", published=names)
    return names[0]


# --- running -------------------------------------------------------------------------------


@app.command("migrate")
def migrate() -> None:
    """Bring the database's schema up to date."""
    with _database():
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
    with _database():
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
    url = _migrated(settings)
    started = time.perf_counter()
    with open_pool(url, sees=EVERY_PROGRAMME) as pool:
        try:
            loaded = _load(pool, folder, history)
        except KeyboardInterrupt:
            errors.print("\nStopped. What is booked is booked; run it again to go on.")
            raise typer.Exit(INTERRUPTED) from None
        seconds = time.perf_counter() - started
        with pool.connection() as connection:
            _show_demo(connection, folder.name, history, loaded, seconds)
            if then_serve:
                _offer(connection, settings, folder.name)


def _load(pool: ConnectionPool, folder: Folder, history: History) -> demonstration.Loaded:
    reading = read_reading(folder.path)
    with pool.connection() as connection:
        check_server(connection)
        with _progress("enrolling households", len(history.households())) as advance:
            demonstration.prepare(
                connection, folder, history, reading, now=_now(), progress=advance
            )
    with _progress("booking the year", history.count()) as advance:
        return demonstration.load_year(pool, folder, history, reading, now=_now(), progress=advance)


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
        console.print(f"Why its last receipt earned what it did:\n  {_kantis()} explain {key}")
    before = f", {loaded.before:,} were there before" if loaded.before else ""
    console.print(f"{loaded.new:,} receipts booked{before}, in {seconds:.1f} s.")


def _offer(connection: psycopg.Connection, settings: Settings, programme: str) -> None:
    """Leave the server running and say how to try it."""
    address = f"http://{settings.host}:{settings.port}"
    background.start(settings)
    account_id, _, _ = reports.busiest(connection, programme) or (0, 0, 0)
    key = reports.receipt_numbers(connection, account_id, limit=1)[0]
    sale = explaining.explain_receipt(connection, key).sale
    token = _new_token(connection, programme, sale.receipt.store, "demo")
    console.print(f"\nThe server runs at {address} (its API: {address}/docs). Try:\n")
    for line in terminal.curl_lines(address, token, sale.receipt, now=_now()):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"\nIt runs without the worker, so that the demo stays in its year."
        f" Stop it with `{_kantis()} stop`.",
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
    with _database():
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


# --- shared --------------------------------------------------------------------------------


def _kantis() -> str:
    """Give how to call this program from here."""
    program = Path(sys.argv[0])
    return os.path.relpath(program) if program.name == "kantis" else "kantis"


def _now() -> datetime:
    return datetime.now(UTC)


def _migrated(settings: Settings) -> str:
    url = settings.database()
    migrate_schema(settings.owner())
    return url


@contextmanager
def _database() -> Iterator[psycopg.Connection]:
    """Connect to the database that the environment names, started and up to date."""
    with connect(_migrated(read_settings())) as connection:
        check_server(connection)
        yield connection


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=errors) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)
