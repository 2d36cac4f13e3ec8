"""Where it is measured: a PostgreSQL of its own, servers as processes of their own.

All of it is on this machine, made for one run and removed after it.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from msgspec import Struct
from psycopg import sql

from kantis.db.cluster import OWNER, SUPERUSER, Cluster
from kantis.db.schema import migrate

ROOT = Path(__file__).parents[1]

START_SECONDS = 60
STOP_SECONDS = 40
"""Longer than a server may take to finish what is under way."""

IN_MEMORY = frozenset({"tmpfs", "ramfs"})

_SETTINGS = {
    # Loaded for the one database that asks for it; elsewhere nothing is tracked.
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",
}


class NotDurable(Exception):
    """What would be measured does not last: points are money."""


class Database(Struct, frozen=True):
    """One database of the run's server."""

    cluster: Cluster
    name: str

    @property
    def url(self) -> str:
        """Give where the application connects."""
        return self.cluster.url(database=self.name)

    @property
    def owner_url(self) -> str:
        """Give where the owner of the tables connects."""
        return self.cluster.url(OWNER, self.name)

    @property
    def superuser_url(self) -> str:
        """Give where whoever generates rows connects: no trigger, no policy stands in the way."""
        return self.cluster.url(SUPERUSER, self.name)

    @property
    def environment(self) -> dict[str, str]:
        """Give what tells Kantis's commands to use this database."""
        return {"KANTIS_DATABASE_URL": self.url, "KANTIS_OWNER_URL": self.owner_url}

    def checkpoint(self) -> None:
        """Write out all that is dirty, so that each figure begins alike."""
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")


class Server(Struct, frozen=True):
    """A server under measurement."""

    pid: int
    port: int


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Start a PostgreSQL with durable settings; it is gone afterwards, with all its data.

    :raises NotDurable: temporary files are kept in memory here
    """
    place = Path(tempfile.mkdtemp(prefix="kantis-bench-"))
    place.chmod(0o755)  # the server's user goes in
    cluster = Cluster(place, _SETTINGS)
    try:
        if (kind := file_system(cluster.home.parent)) in IN_MEMORY:
            raise NotDurable(f"{place} lies in memory ({kind}); let TMPDIR name a place on a disk")
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()
        shutil.rmtree(place, ignore_errors=True)


def file_system(path: Path) -> str:
    """Name the kind of file system that a path is on; empty where the system does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    kinds = {
        Path(fields[1]): fields[2] for fields in map(str.split, mounts.read_text().splitlines())
    }
    return next((kinds[place] for place in (path, *path.parents) if place in kinds), "")


def new_database(cluster: Cluster, name: str) -> Database:
    """Make an empty database that the owner's role owns."""
    with psycopg.connect(cluster.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        names = map(sql.Identifier, (name, OWNER))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))
    return Database(cluster, name)


def new_kantis(cluster: Cluster, name: str) -> Database:
    """Make a database with Kantis's tables."""
    database = new_database(cluster, name)
    migrate(database.owner_url)
    return database


@contextmanager
def kantis_serving(database: Database) -> Iterator[Server]:
    """Run `kantis serve` with the till API alone: the worker's calendar is measured apart."""
    port = _free_port()
    with _serving(
        ["-m", "kantis", "serve", "--only", "api"],
        {**database.environment, "KANTIS_HOST": "127.0.0.1", "KANTIS_PORT": str(port)},
        port,
    ) as server:
        yield server


@contextmanager
def plain_serving(database: Database) -> Iterator[Server]:
    """Run the plain handler that Kantis is compared with."""
    port = _free_port()
    with _serving(
        ["-m", "uvicorn", "bench.plain:app", "--port", str(port), "--no-access-log"],
        {"BENCH_PLAIN_URL": database.owner_url},
        port,
    ) as server:
        yield server


@contextmanager
def _serving(arguments: list[str], environment: Mapping[str, str], port: int) -> Iterator[Server]:
    """Run a server until the block ends.

    :raises RuntimeError: it ended before it answered; with what it said
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if not _answers_in_time(process, port):
                log.seek(0)
                said = log.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(arguments)} did not start:\n{said}")
            yield Server(process.pid, port)
        finally:
            _stop(process)


def _answers_in_time(process: subprocess.Popen[bytes], port: int) -> bool:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
            client.request("GET", "/v1/cards/0")
            client.getresponse()  # any answer will do
        except OSError:
            time.sleep(0.1)
        else:
            client.close()
            return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as asked:
        port: int = asked.getsockname()[1]
        return port
