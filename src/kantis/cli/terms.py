"""Terms: shown, checked, published; and the cases beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from rich.text import Text

from kantis import check as checking
from kantis.check_database import DatabaseWorld
from kantis.cli.common import ProgrammeName, app, console, database, now, terms_app
from kantis.core.conditions import conditions
from kantis.core.toml_text import TextFaulty
from kantis.folder import FolderFaulty, find_folder, read_versions
from kantis.operations import publishing


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
    with database() as connection:
        for path in [file for given in paths for file in _terms_files(given)]:
            source = path.read_text(encoding="utf-8")
            try:
                new = publishing.publish_terms(connection, source=source, at=now(), by="terminal")
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
    with database() as connection:
        yield connection
