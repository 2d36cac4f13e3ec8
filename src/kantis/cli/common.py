"""What the commands share: the console, the database, and the words for arguments."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kantis.db.connect import check_server, connect
from kantis.db.schema import migrate as migrate_schema
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

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended."""

ProgrammeName = Annotated[str, typer.Argument(help="A programme's name or folder.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for another program.")]


def program_name() -> str:
    """Give how to call this program from here."""
    program = Path(sys.argv[0])
    return os.path.relpath(program) if program.name == "kantis" else "kantis"


def now() -> datetime:
    """Read the clock."""
    return datetime.now(UTC)


def migrated(settings: Settings) -> str:
    """Bring the database up to date; give its URL."""
    url = settings.database()
    migrate_schema(settings.owner())
    return url


@contextmanager
def database() -> Iterator[psycopg.Connection]:
    """Connect to the database that the environment names, started and up to date."""
    with connect(migrated(read_settings())) as connection:
        check_server(connection)
        yield connection


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far something is; call what is given with each number of steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=errors) as bars:
        task = bars.add_task(what, total=total)
        yield lambda steps: bars.advance(task, steps)
