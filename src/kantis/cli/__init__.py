"""Kantis from a terminal. `docs/commands.md` has the reference."""

import sys
from concurrent.futures.process import BrokenProcessPool

import duckdb
import psycopg

from kantis import background
from kantis import demo as demonstration
from kantis.cli import backups, books, history, running, shops, terms, waiting
from kantis.cli.common import app, errors
from kantis.core.refusals import Refusal
from kantis.core.toml_text import TextFaulty
from kantis.db.backup import BackupRefused
from kantis.db.cluster import ClusterError
from kantis.db.connect import UnsafeServer
from kantis.folder import FolderFaulty, FolderMissing
from kantis.history.receipts import HistoryMissing

__all__ = ["app", "main"]

COMMANDS = (terms, history, books, waiting, backups, shops, running)
"""The modules that add their commands to `app`, as they stand in its help."""

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
    BackupRefused,
    duckdb.Error,
    OSError,
)
"""What is said in a sentence; anything else is a bug and shows where."""


def main() -> None:
    """Run the command line; what users can mend is said in one sentence, with exit code 1."""
    try:
        app()
    except SAID as said:
        errors.print(str(said), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except BrokenProcessPool:
        errors.print(
            "A process that shared the work has ended. What is booked is booked; run it again.",
            style="red",
        )
        sys.exit(1)
    except psycopg.OperationalError as error:
        errors.print(
            f"The database cannot be reached: {error}", style="red", markup=False, soft_wrap=True
        )
        sys.exit(1)
