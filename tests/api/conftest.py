"""A shop with three programmes, its tills' tokens, and a server that listens on this machine."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx
import pytest
import uvicorn
from psycopg_pool import ConnectionPool

from kantis.core.admission import Applicant, Warrant
from kantis.db.cluster import APP
from kantis.db.connect import EVERY_PROGRAMME, connect, open_pool
from kantis.db.programmes import Store
from kantis.operations import members, publishing
from kantis.operations.limits import Limits
from kantis.serve import ASGI, build_asgi


class Server(Protocol):
    """What `tests/conftest.py` gives: databases to make and drop."""

    def database(self, name: str) -> str: ...
    def url(self, role: str, database: str) -> str: ...
    def create(self, name: str, *, template: str) -> None: ...
    def drop(self, name: str) -> None: ...


PROGRAMMES = Path(__file__).parents[2] / "programmes"
ORGANIZATION = "974760673"
"""A Norwegian organization number that is in order."""

NO_LIMITS = Limits(
    unknown_cards_per_minute=10**9, unknown_cards_per_hour=10**9, wrong_tokens_per_minute=10**9
)
"""All tests of a process share tokens and an address; those of limits have servers of their own."""

TOKENS = {"alltid": "till-alltid", "kplussa": "till-kplussa", "coop": "till-coop"}
CARDS = {"alltid": "7000000000001", "kplussa": "7000000000002", "coop": "7000000000003"}


def set_up(url: str) -> None:
    """Publish the programmes, open two stores in each, and let a member join 40 days ago."""
    now = datetime.now(UTC)
    joined_at = now - timedelta(days=40)
    applicant = Applicant(born_on=now.date().replace(year=1980), organization_number=ORGANIZATION)
    kinds = {"alltid": "customer-card", "kplussa": "plussa", "coop": "card"}
    with connect(url) as connection:
        for file in sorted(PROGRAMMES.glob("*/*.toml")):
            source = file.read_text(encoding="utf-8")
            publishing.publish_terms(connection, source=source, at=now, by="test")
        for programme, token in TOKENS.items():
            for store in ("north", "south"):
                publishing.add_store(connection, programme=programme, store=Store(store))
                publishing.add_till(
                    connection,
                    programme=programme,
                    store=store,
                    label="1",
                    kind="staff",
                    token=f"{token}-{store}",
                    at=now,
                )
                publishing.add_till(
                    connection,
                    programme=programme,
                    store=store,
                    label="2",
                    kind="till",
                    token=f"{token}-{store}-till",
                    at=now,
                )
            members.enrol(
                connection,
                programme=programme,
                application=members.Application(
                    applicant=applicant, card_kind=kinds[programme], card_number=CARDS[programme]
                ),
                request_key="test/first",
                at=joined_at,
                warrant=Warrant("test"),
            )


@contextmanager
def served(application: ASGI) -> Iterator[str]:
    """Let an application answer on a free port; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(application, lifespan="off", ws="none", log_level="error")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def shop_url(server: Server, worker_id: str) -> Iterator[str]:
    """Connect to a database of the API's tests as the application does."""
    name = f"{worker_id}-api"
    server.create(name, template=server.database("template"))
    url = server.url(APP, server.database(name))
    set_up(url)
    yield url
    server.drop(name)


@pytest.fixture(scope="session")
def pool(shop_url: str) -> Iterator[ConnectionPool]:
    """Look into the shop's database from outside of the server."""
    with open_pool(shop_url, sees=EVERY_PROGRAMME) as pool:
        yield pool


@pytest.fixture(scope="session")
def base_url(shop_url: str) -> Iterator[str]:
    with open_pool(shop_url) as tills, served(build_asgi(tills, limits=NO_LIMITS)) as url:
        yield url


def client_of(base_url: str, programme: str, store: str = "north") -> httpx.Client:
    """Speak as a till of a store."""
    headers = {"Authorization": f"Bearer {TOKENS[programme]}-{store}"}
    return httpx.Client(base_url=base_url, headers=headers, timeout=30)


@pytest.fixture(scope="session")
def till(base_url: str) -> Iterator[httpx.Client]:
    """Speak as a till of the cash-and-carry."""
    with client_of(base_url, "alltid") as client:
        yield client


@pytest.fixture(scope="session")
def mere_till(base_url: str) -> Iterator[httpx.Client]:
    """Speak as a till of the cash-and-carry whose token is no desk's."""
    with client_of(base_url, "alltid", "north-till") as client:
        yield client


@pytest.fixture(scope="session")
def coop_till(base_url: str) -> Iterator[httpx.Client]:
    """Speak as a till of the cooperatives."""
    with client_of(base_url, "coop") as client:
        yield client


Json = dict[str, Any]
Make = Callable[..., Json]


@pytest.fixture(scope="session")
def a_receipt() -> Make:
    """Make a new receipt of just now: `amounts` in minor units, and what else differs."""
    numbers = itertools.count(1)

    def make(*amounts: int, **changes: object) -> Json:
        now = datetime.now(UTC)
        lines = [{"amount_minor": amount} for amount in amounts or (10_000,)]
        return {
            "store": "north",
            "till": "1",
            "business_day": now.date().isoformat(),
            "number": f"{next(numbers)}",
            "at": now.isoformat(),
            "currency": "NOK",
            "total_minor": sum(line["amount_minor"] for line in lines),
            "lines": lines,
            "card": CARDS["alltid"],
            **changes,
        }

    return make


@pytest.fixture
def booked(pool: ConnectionPool) -> Callable[[], list[int]]:
    """Count the rows of what a request that is refused must leave alone."""
    tables = ("event", "stray", "receipt_key", "transfer", "account", "card", "request")

    def count() -> list[int]:
        with pool.connection() as connection:
            rows = [
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
                for table in tables
            ]
        return [row[0] for row in rows if row is not None]

    return count


@pytest.fixture
def a_member(till: httpx.Client) -> Callable[[], tuple[int, str]]:
    """Enrol somebody new at the cash-and-carry; give account and card."""
    numbers = itertools.count(1)

    def enrol() -> tuple[int, str]:
        answer = till.post(
            "/v1/members",
            json={
                "applicant": {"organization_number": ORGANIZATION},
                "card_kind": "customer-card",
            },
            headers={"Idempotency-Key": f"member-{next(numbers)}-{uuid4()}"},
        ).json()
        return answer["account_id"], answer["card_number"]

    return enrol


@pytest.fixture
def a_rich_member(
    till: httpx.Client, a_member: Callable[[], tuple[int, str]]
) -> Callable[[], tuple[int, str]]:
    """Enrol somebody who brings 500 kroner of bonus along."""

    def enrol() -> tuple[int, str]:
        account_id, card = a_member()
        lot = {"unit": "bonus", "amount": 50_000, "earned_on": datetime.now(UTC).date().isoformat()}
        opened = till.post(
            f"/v1/members/{account_id}/opening",
            json={"lots": [lot], "approved_by": "Kari"},
            headers={"Idempotency-Key": f"opening-{uuid4()}"},
        )
        assert opened.status_code == 200, opened.text
        return account_id, card

    return enrol


@pytest.fixture(scope="session")
def southern_till(base_url: str) -> Iterator[httpx.Client]:
    """Speak as a till of the other store."""
    with client_of(base_url, "alltid", "south") as client:
        yield client


@pytest.fixture(scope="session")
def set_up_shop() -> Callable[[str], None]:
    """Give what sets up a database, for tests that have one of their own."""
    return set_up


@pytest.fixture(scope="session")
def serving() -> Callable[[ASGI], AbstractContextManager[str]]:
    """Give what lets an application answer, for tests that have one of their own."""
    return served
