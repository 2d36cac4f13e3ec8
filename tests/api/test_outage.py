"""The whole server as it runs: started, stopped, without its database, and by the clock."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from kantis.db.cluster import OWNER, SUPERUSER, Cluster
from kantis.db.connect import UnsafeServer, connect, open_pool
from kantis.db.schema import migrate
from kantis.serve import ASGI, NotMigrated, build_asgi, serve
from kantis.settings import Settings

Json = dict[str, Any]
Make = Callable[..., Json]
Serving = Callable[[ASGI], AbstractContextManager[str]]

CODE = "from kantis.serve import serve; from kantis.settings import read_settings; "
TOKEN = {"Authorization": "Bearer till-alltid-north"}


@pytest.fixture(scope="module")
def cluster(set_up_shop: Callable[[str], None]) -> Iterator[Cluster]:
    """Start a database server of this module's own, as safe as in production."""
    place = Path(tempfile.mkdtemp(prefix="kantis-test-"))
    place.chmod(0o755)
    cluster = Cluster(place)
    cluster.start()
    migrate(cluster.url(OWNER))
    set_up_shop(cluster.url())
    yield cluster
    cluster.destroy()
    shutil.rmtree(place)


def settings_of(url: str, port: int = 0) -> Settings:
    return Settings(Path("unused"), database_url=url, owner_url="", host="127.0.0.1", port=port)


def until(seconds: float, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def one(cluster: Cluster, question: str) -> object:
    with connect(cluster.url()) as connection:
        row = connection.execute(question.encode()).fetchone()
    assert row is not None
    return row[0]


def test_without_its_database_a_server_answers_503_and_recovers(
    cluster: Cluster, serving: Serving, a_receipt: Make
) -> None:
    with open_pool(cluster.url()) as pool, serving(build_asgi(pool)) as base_url:
        pool.timeout = 0.3
        with httpx.Client(base_url=base_url, headers=TOKEN, timeout=30) as till:
            first, second = a_receipt(10_000), a_receipt(20_000)
            taken = till.post("/v1/receipts", json=first)
            assert taken.status_code == 200

            cluster.stop("immediate")
            for _ in range(2):
                for answer in (
                    till.post("/v1/receipts", json=second),
                    till.post("/v1/receipts", json=first),
                    till.post("/v1/receipts/batch", json=second),
                    till.post("/v1/quotes", json=second),
                    till.get("/v1/cards/7000000000001"),
                ):
                    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                    assert int(answer.headers["Retry-After"]) > 0
                    assert answer.headers["Content-Type"] == "application/problem+json"
            ready = till.get("/ready")
            assert (ready.status_code, ready.json()["lacking"]) == (503, "database")
            assert till.get("/health").status_code == 200

            cluster.start()
            until(10, lambda: till.post("/v1/receipts", json=second).status_code == 200)
            again = till.post("/v1/receipts", json=first)
            assert again.content == taken.content
            assert again.headers["Idempotency-Replayed"] == "true"
            assert till.get("/ready").status_code == 200
    assert one(cluster, "SELECT count(*) FROM event WHERE kind = 'sale'") == 2


@pytest.mark.parametrize("path", ["/v1/receipts", "/v1/receipts/"], ids=["lanes", "threads"])
def test_whoever_waits_too_long_is_answered_503_and_later_as_if_asked_once(
    cluster: Cluster,
    serving: Serving,
    a_receipt: Make,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    monkeypatch.setattr("kantis.api.problems.ANSWER_WITHIN_SECONDS", 0.5)
    receipt = a_receipt(30_000)
    with (
        open_pool(cluster.url()) as pool,
        serving(build_asgi(pool)) as base_url,
        httpx.Client(base_url=base_url, headers=TOKEN, timeout=30) as till,
        connect(cluster.url()) as other,
    ):
        with other.transaction():
            other.execute("SELECT FROM account FOR UPDATE")
            # Many more than are answered at a time: the last ones wait for the first.
            with ThreadPoolExecutor(20) as many:
                asked = [many.submit(till.post, path, json=receipt) for _ in range(20)]
                answers = [one.result() for one in asked]
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.json()["code"] for answer in answers} == {"unavailable"}
            assert max(answer.elapsed.total_seconds() for answer in answers) < 2
        until(20, lambda: till.post(path, json=receipt).status_code == 200)
        assert till.post(path, json=receipt).headers["Idempotency-Replayed"] == "true"
    booked = f"SELECT count(*) FROM event WHERE key LIKE '%/{receipt['number']}'"  # noqa: S608
    assert one(cluster, booked) == 1


@contextmanager
def running(cluster: Cluster, call: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `kantis.serve` as a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    environment = os.environ | {
        "KANTIS_DATABASE_URL": "",
        "KANTIS_DATA_DIR": str(cluster.data_dir),
        "KANTIS_PORT": str(port),
    }
    process = subprocess.Popen([sys.executable, "-c", CODE + call], env=environment)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_one_process_serves_all_follows_the_calendar_and_stops_when_asked(
    cluster: Cluster, a_receipt: Make
) -> None:
    with connect(cluster.url()) as connection:
        connection.execute("UPDATE account SET next_due_on = '2020-01-01'")
    with running(cluster, "serve(read_settings())") as (url, process):
        until(20, lambda: answers(f"{url}/ready"))
        taken = httpx.post(f"{url}/v1/receipts", json=a_receipt(card=""), headers=TOKEN)
        assert taken.json()["nothing"] == "no-card"
        due = "SELECT count(*) FROM account WHERE next_due_on <= now()::date"
        until(20, lambda: one(cluster, due) == 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert one(cluster, "SELECT count(*) FROM procrastinate_workers") == 0
    assert one(cluster, "SELECT count(*) FROM procrastinate_jobs") == 0


def test_a_worker_alone_stops_when_asked(cluster: Cluster) -> None:
    with running(cluster, "serve(read_settings(), {'worker'})") as (_, process):
        workers = "SELECT count(*) FROM procrastinate_workers"
        until(20, lambda: one(cluster, workers) == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    assert one(cluster, workers) == 0


def test_a_server_that_could_forget_is_refused(cluster: Cluster) -> None:
    url = cluster.url() + "&options=-c%20synchronous_commit%3Doff"
    with pytest.raises(UnsafeServer, match="synchronous_commit"):
        serve(settings_of(url))


def test_a_database_that_is_not_migrated_is_refused(cluster: Cluster) -> None:
    with psycopg.connect(cluster.url(SUPERUSER, "postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE empty OWNER {}").format(sql.Identifier(OWNER)))
    with pytest.raises(NotMigrated, match="kantis migrate"):
        serve(settings_of(cluster.url(database="empty")))


def test_a_port_that_is_taken_is_refused(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = settings_of(cluster.url(), listening.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            serve(settings)


def test_a_part_that_there_is_not_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="no such part: kitchen"):
        serve(settings_of(cluster.url()), {"kitchen"})
