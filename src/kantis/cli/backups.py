"""Backups taken and restored."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from kantis import terminal
from kantis.cli.books import prove
from kantis.cli.common import app, console, database, now
from kantis.db import backup as backups
from kantis.settings import read_settings


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
    manifest = backups.take(settings.keeper(), folder, at=now())
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
    with database() as connection:
        prove(connection, quick=quick)
