"""A shop of a proof's own: its database, its servers as processes, and how to break them."""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psycopg

from kantis.core.admission import Applicant, Warrant
from kantis.core.events import Opened, OpeningLot
from kantis.db.cluster import OWNER, SUPERUSER, Cluster, ClusterError
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.db.schema import migrate
from kantis.folder import find_folder
from kantis.operations import members, publishing
from kantis.serve import serve
from kantis.settings import Settings

ROOT = Path(__file__).parents[2]
PROGRAMME, STORE, TOKEN = "alltid", "north", "till-north"
ORGANIZATION = "974760673"
"""A Norwegian organization number that is in order."""

OPENING_BONUS = 3_000
"""What each member brings along: enough to spend some, too little for all that tills ask."""

SETTINGS = {"max_wal_size": "256MB"}
"""The log of a short test need not take more room than its tables."""

START_SECONDS = 60


# A second of imports happens once: each server is a fork of a process that has done them. So
# there are more kills a minute, and what is killed is traffic, not imports.
_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(["__main__", "kantis.serve"])


@dataclass
class Server:
    """One server on a port that stays its own, on a database of which it knows the URL."""

    port: int
    database_url: str
    process: ForkServerProcess | None = None

    def start(self) -> None:
        """Start the process; it answers a moment later."""
        settings = Settings(
            data_dir=Path("unused"),
            database_url=self.database_url,
            owner_url="",
            host="127.0.0.1",
            port=self.port,
        )
        self.process = _warm.Process(target=serve, args=[settings, {"api"}])
        self.process.start()

    def lives(self) -> bool:
        """Tell whether the process has not ended."""
        return self.process is not None and self.process.is_alive()

    def listens(self) -> bool:
        """Tell whether somebody can ask."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def kill(self) -> None:
        """End the process as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.join()


@dataclass
class Shop:
    """A database and its servers. What ends is started again, as long as it is looked after."""

    cluster: Cluster
    servers: Sequence[Server]
    cards: Sequence[str]
    faults: list[str] = field(default_factory=list)

    @property
    def ports(self) -> list[int]:
        """Where tills ask."""
        return [server.port for server in self.servers]

    def postmaster(self) -> int | None:
        """Give the id of the database's first process, if there is one."""
        try:
            pid = int((self.cluster.home / "data" / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if _is_postgres(pid) else None

    def sessions(self) -> list[int]:
        """Give the ids of the database's processes that carry out what servers ask."""
        first = self.postmaster()
        return [pid for pid in _children(first) if "kantis_app" in _command(pid)] if first else []

    def everyone(self) -> list[int]:
        """Give the ids of all the database's processes, the first of all first."""
        first = self.postmaster()
        return [first, *_children(first)] if first else []

    def heal(self) -> None:
        """Start whatever does not run."""
        if not self.cluster.running():
            self.cluster.start()
        for server in self.servers:
            if not server.lives():
                server.start()

    def is_up(self) -> bool:
        """Tell whether the database and all servers can be asked."""
        return self.cluster.running() and all(server.listens() for server in self.servers)

    def answers(self) -> bool:
        """Tell whether a till can get an answer."""
        return self.cluster.running() and any(server.listens() for server in self.servers)

    @contextmanager
    def looked_after(self) -> Iterator[None]:
        """Start again whatever ends, as an operator's supervisor would."""
        stop = threading.Event()

        def look_after() -> None:
            failed = 0
            while not stop.wait(0.02):
                try:
                    self.heal()
                    failed = 0
                except ClusterError as error:  # killed again while it was starting
                    failed += 1
                    if failed > 20:
                        self.faults.append(f"the database does not start: {error}")
                        return
                except Exception as error:  # noqa: BLE001 - nobody else would hear of it
                    self.faults.append(f"nobody looks after the shop any more: {error!r}")
                    return

        thread = threading.Thread(target=look_after)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def ask(self, question: str) -> list[tuple[object, ...]]:
        """Ask the database, as somebody who sees everything."""
        with psycopg.connect(self.cluster.url(SUPERUSER), autocommit=True) as connection:
            return connection.execute(question.encode()).fetchall()

    def audit(self) -> str:
        """Run `kantis audit`; give what it finds, nothing if the books are right."""
        done = subprocess.run(
            [sys.executable, "-m", "kantis", "audit"],
            env=os.environ | {"KANTIS_DATABASE_URL": self.cluster.url()},
            capture_output=True,
            text=True,
            check=False,
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr


def until(happened: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def shop(
    *,
    members: int,
    servers: int = 1,
    place: Path | None = None,
    settings: Mapping[str, str] = SETTINGS,
    through: Callable[[Cluster], str] = Cluster.url,
) -> Iterator[Shop]:
    """Open a shop with members who have some bonus; `through` is how servers find the database."""
    home = place or Path(tempfile.mkdtemp(prefix="kantis-test-", dir=_fastest()))
    home.chmod(0o755)
    cluster = Cluster(home, settings)
    cluster.start()
    try:
        migrate(cluster.url(OWNER))
        cards = _set_up(cluster.url(), members)
        url = through(cluster)
        opened = Shop(cluster, [Server(port, url) for port in _free_ports(servers)], cards)
        try:
            opened.heal()
            until(opened.is_up)
            yield opened
        finally:
            for server in opened.servers:
                server.kill()
    finally:
        cluster.destroy()
        if place is None:
            shutil.rmtree(home)


def _fastest() -> Path | None:
    """Give memory if there is enough: a killed process loses no written page, on disk or there.

    (What a disk keeps when the power fails is another question, which SIGKILL cannot ask.)
    """
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a directory of our own in it
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30
    return memory if enough else None


def _set_up(url: str, count: int) -> list[str]:
    """Publish the terms, let a till in and members join 40 days ago."""
    now = datetime.now(UTC)
    joined_at = now - timedelta(days=40)
    applicant = Applicant(organization_number=ORGANIZATION)
    cards = [f"{7_000_000_000_000 + number}" for number in range(count)]
    with connect(url) as connection:
        for source in find_folder(ROOT / "programmes" / PROGRAMME).sources:
            publishing.publish_terms(connection, source=source, at=now, by="proof")
        publishing.add_store(connection, programme=PROGRAMME, store=Store(STORE))
        publishing.add_till(
            connection,
            programme=PROGRAMME,
            store=STORE,
            label="1",
            kind="till",
            token=TOKEN,
            at=now,
        )
        for card in cards:
            enrolled = members.enrol(
                connection,
                programme=PROGRAMME,
                application=members.Application(
                    applicant=applicant, card_kind="customer-card", card_number=card
                ),
                request_key=f"enrol-{card}",
                at=joined_at,
                warrant=Warrant("desk"),
            )
            lot = OpeningLot("bonus", OPENING_BONUS, joined_at.date())
            members.open_balances(
                connection,
                programme=PROGRAMME,
                account_id=enrolled.account_id,
                opening=Opened(at=joined_at, key=f"opened-{card}", lots=(lot,)),
                warrant=Warrant("desk", "moved", "Kari"),
            )
    return cards


def _free_ports(count: int) -> list[int]:
    """Find ports below those that outgoing connections are given: nobody takes them meanwhile."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1_000):
        if len(found) == count:
            break
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, its_parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _is_postgres(pid: int) -> bool:
    with suppress(OSError):
        return "(postgres) " in (stat := Path(f"/proc/{pid}/stat").read_text()) and (
            "(postgres) Z" not in stat
        )
    return False


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes of a shop's database; some may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
