"""A load sent to a server, what it cost, and every acknowledged receipt found again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from itertools import count

from msgspec import Struct

from bench import processes
from bench.load import Load, Loaded
from bench.place import ROOT, Database, Server

SAMPLE_SECONDS = 0.25
"""Between two looks at a server's memory."""


class Lost(Exception):
    """A receipt was acknowledged and is not in the database, or is in it twice."""


class Cost(Struct, frozen=True):
    """What a request took on average, in microseconds of a core; the warm-up is included."""

    server_us: float
    database_us: float
    load_us: float


class Sample(Struct, frozen=True):
    """A server's memory so many seconds after the load began."""

    seconds: float
    rss_bytes: int


class Driven(Struct, frozen=True):
    """A load that was sent: what to look for in the database, what came of it and what it cost."""

    load: Load
    loaded: Loaded
    cost: Cost | None
    samples: tuple[Sample, ...]

    @property
    def acknowledged(self) -> list[int]:
        """Give the numbers of all acknowledged receipts."""
        others = set(self.loaded.unacknowledged)
        first = self.load.first_number
        return [n for n in range(first, first + self.loaded.sent) if n not in others]


class Tills(Struct, frozen=True):
    """All tills of one server: `tokens` has each store's, `households` those that buy there."""

    server: Server
    database: Database
    tokens: list[str]
    households: int

    def send(
        self, path: str, *, connections: int, seconds: float, warm_seconds: float, rate: float = 0
    ) -> Driven:
        """Send a load; see `Load` for what is given."""
        number = next(_loads)
        load = Load(
            port=self.server.port,
            path=path,
            tokens=self.tokens,
            till=f"load-{number}",
            business_day=_today().isoformat(),
            first_number=1,
            households=self.households,
            connections=connections,
            warm_seconds=warm_seconds,
            seconds=seconds,
            rate=rate,
        )
        return _drive(load, self.server, self.database)


_loads = count(1)
"""Each load is a till of its own, so that its receipts can be counted apart."""

Found = tuple[int, int, int]
"""Acknowledged receipts that are there, all that are there, and how many of these differ."""


def check_all_kept(driven: Driven, found: Callable[[Load, Sequence[int]], Found]) -> None:
    """Check that each acknowledged receipt is kept once and no other is kept.

    :raises Lost:
    """
    acknowledged = driven.acknowledged
    there, kept, different = found(driven.load, acknowledged)
    sent, other = driven.loaded.sent, driven.loaded.others
    said = f"of {len(acknowledged):,} acknowledged receipts"
    if there != len(acknowledged):
        raise Lost(f"{len(acknowledged) - there:,} {said} are not in the database")
    if kept != different:
        raise Lost(f"{kept - different:,} {said} are in the database twice")
    if not len(acknowledged) <= kept <= sent:
        raise Lost(f"{kept:,} receipts are kept {said} and {sent:,} sent")
    if not acknowledged:
        raise Lost(f"no receipt was acknowledged: {other} {driven.loaded.first_other}")


def _drive(load: Load, server: Server, database: Database) -> Driven:
    watched = processes.can_be_watched()
    postgres = processes.postgres_pid(database) if watched else 0
    before = _used(server.pid, postgres)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None, "it is a pipe"
    process.stdin.write(json.dumps(asdict(load)))
    process.stdin.close()
    try:
        samples = _watch(process, server.pid) if watched else []
        assert process.stdout is not None, "it is a pipe"
        answer = process.stdout.read()
        if process.wait():
            raise RuntimeError(f"the load ended with {process.returncode}")
    finally:
        process.kill()
    loaded = Loaded(**json.loads(answer))
    after = _used(server.pid, postgres)
    server_us, database_us = (
        (now - then) / loaded.sent * 10**6 for then, now in zip(before, after, strict=True)
    )
    cost = Cost(server_us, database_us, loaded.own_us) if watched else None
    return Driven(load, loaded, cost, tuple(samples))


def _used(server: int, postgres: int) -> tuple[float, float]:
    if not postgres:
        return 0.0, 0.0
    return processes.cpu_seconds(server), processes.cpu_seconds(postgres)


def _watch(process: subprocess.Popen[str], server: int) -> list[Sample]:
    """Look at a server's memory until the load is over."""
    started = time.monotonic()
    samples = []
    while process.poll() is None:
        samples.append(Sample(time.monotonic() - started, processes.rss_bytes(server)))
        time.sleep(SAMPLE_SECONDS)
    return samples


def _today() -> date:
    return datetime.now(UTC).date()
