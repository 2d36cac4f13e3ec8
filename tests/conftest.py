"""
A PostgreSQL server for the tests that ask for one; the others run without.

The first test process that needs a server starts it, all share it, the first process of the
session removes it. `KANTIS_DATABASE_URL` names another server to use instead; its role needs the
right to create databases and roles.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg
import pytest
from psycopg import sql

from kantis.db.cluster import APP, OWNER, SUPERUSER, Cluster

PLACE = "KANTIS_TEST_PLACE"


def a_reachable_directory() -> Path:
    """Make a directory that the server's user can enter too, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="kantis-test-"))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Server:
    """Where tests make their databases; `place` is a directory shared by all test processes."""

    place: Path
    external_url: str | None

    @property
    def cluster(self) -> Cluster:
        # Durable, as in production: Kantis refuses to run on a server that is not.
        return Cluster(self.place)

    @property
    def ready(self) -> Path:
        """Exists once there is a complete template."""
        return self.place / "template-is-ready"

    def database(self, name: str) -> str:
        return f"{self.place.name}-{name}"

    def url(self, role: str, database: str) -> str:
        if self.external_url is None:
            return self.cluster.url(role, database)
        parts = urlsplit(self.external_url)
        query = [*parse_qsl(parts.query), ("options", f"-c role={role} -c timezone=UTC")]
        return parts._replace(path=f"/{database}", query=urlencode(query, quote_via=quote)).geturl()

    @contextmanager
    def administration(self) -> Iterator[psycopg.Connection]:
        url = self.external_url or self.cluster.url(SUPERUSER, "postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection

    def prepare(self) -> None:
        """Start the server and migrate the template, unless another process did."""
        with (self.place / "preparing").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.ready.exists():
                return
            if self.external_url is None:
                self.cluster.start()
            else:
                self._make_roles()
            self.drop("template")
            self.create("template", template="template1")

            # Here, so that tests of the rules alone never load the database layer.
            from kantis.db.schema import migrate  # noqa: PLC0415

            migrate(self.url(OWNER, self.database("template")))
            self.ready.touch()

    def create(self, name: str, *, template: str) -> None:
        with self.administration() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                    *map(sql.Identifier, (self.database(name), OWNER, template))
                )
            )

    def drop(self, name: str) -> None:
        with self.administration() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                    sql.Identifier(self.database(name))
                )
            )

    def remove(self) -> None:
        if self.external_url is None:
            self.cluster.destroy()
        elif (self.place / "preparing").exists():
            self.drop("template")
        shutil.rmtree(self.place)

    def _make_roles(self) -> None:
        with self.administration() as connection:
            roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
            for role in {OWNER, APP} - roles:
                name = sql.Identifier(role)
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
                connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))


def the_server() -> Server:
    return Server(Path(os.environ[PLACE]), os.environ.get("KANTIS_DATABASE_URL") or None)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[PLACE] = str(a_reachable_directory())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        the_server().remove()


@pytest.fixture
def reachable_directory() -> Iterator[Path]:
    path = a_reachable_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def server() -> Server:
    server = the_server()
    server.prepare()
    return server


@pytest.fixture(scope="session")
def database(server: Server, worker_id: str) -> Iterator[str]:
    """Name a database of this test process, with the schema and nothing in it."""
    server.create(worker_id, template=server.database("template"))
    yield server.database(worker_id)
    server.drop(worker_id)


@pytest.fixture(scope="session")
def database_url(server: Server, database: str) -> str:
    """Connect to this process's database as the application does."""
    return server.url(APP, database)


@pytest.fixture(scope="session")
def owner_url(server: Server, database: str) -> str:
    """Connect to this process's database as its owner."""
    return server.url(OWNER, database)


@pytest.fixture
def make_database(
    server: Server, worker_id: str
) -> Iterator[Callable[[str], Callable[[str], str]]]:
    """Make databases of the test's own: call it with a name, then with a role to get the URL."""
    made: list[str] = []

    def make(name: str) -> Callable[[str], str]:
        made.append(f"{worker_id}-{name}")
        server.create(made[-1], template=server.database("template"))
        database = server.database(made[-1])
        return lambda role: server.url(role, database)

    yield make
    for name in made:
        server.drop(name)


@pytest.fixture
def fresh_database(make_database: Callable[[str], Callable[[str], str]]) -> Callable[[str], str]:
    """Give a test a database of its own: call it with a role to get the URL."""
    return make_database("fresh")
