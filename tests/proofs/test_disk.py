"""A database that cannot go on: its disk is full, or all its processes stand still."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from tests.proofs.shop import Shop, kill, shop, until
from tests.proofs.tills import Till, counted, judge, traffic, until_booked

from kantis.db.cluster import SUPERUSER

LIMIT = 0 if os.environ.get("KANTIS_SOAK", "") not in {"", "0"} else 300
"""Seconds; none in the long run."""

SMALL_DISK = "KANTIS_SMALL_DISK"
"""Names a small disk that was mounted for a test that is run again as its user's own root."""

MIB = 2**20
SIZE = 256 * MIB
SEGMENT = 16 * MIB
"""PostgreSQL's log grows by files of this size."""


def tills_of(
    shop: Shop, chance: random.Random, journals: Path, *, count: int = 6, timeout: float = 60
) -> list[Till]:
    """Let tills wait long, so that it is seen how long they would have to."""
    return [
        Till(
            number,
            shop,
            random.Random(chance.random()),
            journals / f"till-{number}.jsonl",
            timeout=timeout,
        )
        for number in range(1, count + 1)
    ]


# --- a full disk ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give a directory on a small disk of its own."""
    if given := os.environ.get(SMALL_DISK):
        yield Path(given)
        return
    path = Path("/tmp") / f"kantis-disk-{os.getpid()}"  # noqa: S108 - a mount covers what is there
    path.mkdir(mode=0o755)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "tmpfs", str(path)]
        unmount = ["umount", str(path)]
        if os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0:
            try:
                yield path
            finally:
                subprocess.run(unmount, check=True)
        else:
            run_in_namespace(request, mount, path)
    finally:
        path.rmdir()


def run_in_namespace(request: pytest.FixtureRequest, mount: Sequence[str], path: Path) -> None:
    """Run the test again where its user may mount: a namespace of its own, not as root there.

    The test here is skipped then, and fails if that one did.
    """
    inner = ["unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
    again = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", request.node.nodeid]
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'{" ".join(mount)} && chmod 755 {path} || exit 77; exec "$@"',
        "sh",
        *inner,
        *again,
    ]
    environment = os.environ | {SMALL_DISK: str(path)}
    done = subprocess.run(
        command,
        cwd=request.config.rootpath,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode == 0:
        pytest.skip("proved in a namespace of its own, since only root may mount a small disk here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"DISK FULL IS NOT PROVED: neither root nor namespaces: {done.stderr.strip()}")
    pytest.fail(output)


LOG_LEFT = """
    SELECT (max(segment_number) + 1) * 16 * 1024 * 1024 - (pg_current_wal_insert_lsn() - '0/0')
    FROM pg_ls_waldir(), pg_split_walfile_name(name)
    WHERE name ~ '^[0-9A-F]{24}$'
"""
"""How much of the log fits into the files that there are."""


def fill(opened: Shop, disk: Path, *, which: str) -> Path:
    """Leave so little space that either the log or the tables find none next; give the ballast."""
    ballast = disk / "ballast"
    with psycopg.connect(opened.cluster.url(SUPERUSER), autocommit=True) as connection:

        def write(size: int) -> None:
            connection.execute("SELECT pg_logical_emit_message(false, '', repeat('x', %s))", [size])

        if which == "tables":
            # Files of the log are used again instead of new ones: there are enough then.
            for _ in range(6):
                write(1)
                connection.execute("SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")
        left = MIB if which == "tables" else SEGMENT // 2
        with ballast.open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - left))
        if which == "log":
            while connection.execute(LOG_LEFT).fetchall()[0][0] > MIB:
                write(MIB // 4)
    return ballast


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("which", ["log", "tables"])
def test_a_full_disk_is_answered_with_503_and_loses_nothing(
    which: str,
    small_disk: Path,
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
) -> None:
    settings = {"min_wal_size": "128MB", "max_wal_size": "192MB"}
    with shop(members=60, place=small_disk, settings=settings) as opened:
        first = opened.postmaster()
        ballast = fill(opened, small_disk, which=which)
        tills = tills_of(opened, chance, tmp_path)
        with traffic(tills):
            until(lambda: counted(tills)["unknown: 503"] >= 20, 120)
            time.sleep(long_or_short(120, 8))
            died = opened.postmaster() != first
            while_full = counted(tills)
            ballast.unlink()
            opened.heal()
            until_booked(tills, 50)
        verdict = judge(opened, tills)
        audit = opened.audit()
        evidence(
            which=which,
            database_ended=died,
            acknowledged=sum(len(till.acknowledged) for till in tills),
            while_full=while_full,
            longest_answer_seconds=round(max(till.longest for till in tills), 2),
            seen=counted(tills),
            **verdict.figures(),
            audit=audit,
        )
    assert not any(verdict.figures().values()), verdict
    assert audit == ""
    assert while_full["unknown: 503"] >= 20
    # Only the database suffers; the server answers each request.
    assert {what for what in while_full if what.startswith("unknown")} == {"unknown: 503"}
    assert died == (which == "log")


# --- a database that stands still ----------------------------------------------------------


@pytest.mark.timeout(LIMIT)
def test_a_database_that_stands_still_is_answered_in_time_and_doubles_nothing(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
) -> None:
    times = long_or_short(10, 1)
    silent = 0.0
    with shop(members=60) as opened:
        tills = tills_of(opened, chance, tmp_path, count=12)
        with traffic(tills):
            for _ in range(times):
                until_booked(tills, 50)
                stopped = opened.everyone()
                kill(stopped, signal.SIGSTOP)
                time.sleep(30)
                kill(stopped, signal.SIGCONT)
                began = time.monotonic()
                until_booked(tills, 1)
                silent = max(silent, time.monotonic() - began)
                until_booked(tills, 50)
        verdict = judge(opened, tills)
        audit = opened.audit()
        longest = round(max(till.longest for till in tills), 2)
        evidence(
            seconds_still=30,
            times=times,
            acknowledged=sum(len(till.acknowledged) for till in tills),
            longest_answer_seconds=longest,
            seconds_until_answers_again=round(silent, 2),
            seen=counted(tills),
            **verdict.figures(),
            audit=audit,
        )
    assert not any(verdict.figures().values()), verdict
    assert audit == ""
    assert counted(tills)["unknown: 503"] >= 1
    assert longest < 20
