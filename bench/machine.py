"""The machine and the settings that figures are read beside."""

import os
import platform
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from msgspec import Struct

from bench.place import ROOT, Database, NotDurable, file_system
from kantis.db.connect import MUST_BE_ON

SHOWN = (
    *MUST_BE_ON,
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "wal_compression",
    "data_checksums",
    "autovacuum",
)

SYNCS = 100


class Machine(Struct, frozen=True):
    """What was measured on. `sync_us` is the median time of a synced write of 8 KiB."""

    measured_at: datetime
    commit: str
    system: str
    processor: str
    cores: int
    memory_gib: float
    python: str
    postgresql: str
    file_system: str
    sync_us: float
    settings: dict[str, str]


def look_at(database: Database) -> Machine:
    """Say what is measured on.

    :raises NotDurable: a setting is off without which what is acknowledged can be lost
    """
    with psycopg.connect(database.superuser_url) as connection:
        settings = _settings(connection)
        version = connection.info.parameter_status("server_version") or ""
    check(settings)
    home = database.cluster.home
    return Machine(
        measured_at=datetime.now(UTC).replace(microsecond=0),
        commit=_commit(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=_cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        python=platform.python_version(),
        postgresql=version,
        file_system=file_system(home),
        sync_us=_sync_us(home),
        settings=settings,
    )


def check(settings: dict[str, str]) -> None:
    """Refuse to measure a server that could forget what it has acknowledged.

    :raises NotDurable:
    """
    for name in MUST_BE_ON:
        if settings[name] == "off":
            raise NotDurable(f"{name} is off; only durable settings are measured")


def _settings(connection: psycopg.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", [list(SHOWN)]
    ).fetchall()
    return dict(rows)


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return platform.processor()
    lines = (line.partition(":") for line in about.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "model name"), "")


def _cores() -> int:
    """Give how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sync_us(folder: Path) -> float:
    """Give how long the disk takes to keep what was written."""
    path = folder / "sync"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            started = time.perf_counter()
            file.write(bytes(8192))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return round(statistics.median(taken) * 10**6)


def _commit() -> str:
    """Name the commit that is measured; evidence is no change to it."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", ".", ":!evidence")
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
