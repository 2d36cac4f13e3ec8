"""The year of public receipts: into the database, and folded without one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from msgspec import Struct

from bench.drive import Lost
from bench.households import FOLDER
from bench.place import ROOT, Database, new_kantis
from kantis.db.cluster import Cluster
from kantis.db.connect import connect
from kantis.demo import Loaded, load_year, prepare
from kantis.history.receipts import History, demo_folder, read_reading


class Imported(Struct, frozen=True):
    """Seconds for enrolling the households and booking the year's receipts, calendar included."""

    households: int
    receipts: int
    seconds: float


class Replayed(Struct, frozen=True):
    """Seconds of `kantis replay` as a whole process, held to one core where that can be."""

    receipts: int
    seconds: float


def history(*, every: int) -> History:
    """Give the year's receipts, of each `every`-th household."""
    return History(demo_folder(), every=every)


def import_year(cluster: Cluster, *, every: int) -> Imported:
    """Load the year into a database of its own.

    :raises Lost:
    """
    database = new_kantis(cluster, "year")
    database.checkpoint()
    receipts = history(every=every)
    started = time.perf_counter()
    loaded = load(database, receipts)
    seconds = time.perf_counter() - started
    kept = _sales(database)
    if not kept == loaded.new == receipts.count():
        raise Lost(f"{receipts.count()} receipts came to {loaded.new} loaded and {kept} kept")
    return Imported(len(receipts.households()), kept, seconds)


def load(database: Database, receipts: History) -> Loaded:
    """Enrol households and book their receipts as the demo does."""
    reading, now = read_reading(FOLDER.path), datetime.now(UTC)
    with connect(database.url) as connection:
        prepare(connection, FOLDER, receipts, reading, now=now, progress=_quietly)
    return load_year(database.url, FOLDER, receipts, reading, now=now, progress=_quietly)


def replay_year(*, every: int) -> Replayed:
    """Fold the year without a database."""
    with _one_core():
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "kantis", "replay", FOLDER.name, "--every", str(every)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - started
    return Replayed(history(every=every).count(), seconds)


@contextmanager
def _one_core() -> Iterator[None]:
    """Hold this process and those that it starts to one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _sales(database: Database) -> int:
    with connect(database.url) as connection:
        row = connection.execute("SELECT count(*) FROM event WHERE kind = 'sale'").fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])


def _quietly(_: int) -> None:
    """Tell nobody how far it is."""
