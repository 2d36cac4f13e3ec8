"""Who may ask for what: each address in each role, as `docs/access.md` has it, over HTTP."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import httpx
import msgspec
import psycopg
import pytest
from litestar.routes import HTTPRoute
from psycopg_pool import ConnectionPool

from kantis.api.access import LOOKUPS, WHO
from kantis.api.app import build_app
from kantis.db.programmes import Store
from kantis.operations import publishing

Json = dict[str, Any]
Make = Callable[..., Json]
Enrol = Callable[[], tuple[int, str]]
Books = dict[str, tuple[int, int]]

TEXT = (Path(__file__).parents[2] / "docs" / "access.md").read_text("utf-8")
ROLES = (
    "no token",
    "wrong token",
    "revoked token",
    "till",
    "till of another store",
    "till of another programme",
    "staff",
    "staff of another store",
    "staff of another programme",
)
CODES = {
    "401": {"token-unknown"},
    "403 kind": {"not-for-this-token"},
    "403 store": {"store-not-yours"},
    "404": {"card-unknown", "account-unknown", "not-waiting", "not-found"},
    "409": {"hold-unknown"},
    "409 more": {"returned-more-than-bought"},
    "422": {"may-not-join", "pooling-not-allowed"},
}
"""What a word of the table stands for."""

COUNTERS = ("miss", "refused", "django_", "procrastinate_")
"""Tables that a "no" may touch: who guessed, what was refused, and what runs beside."""


def stated() -> dict[tuple[str, str], dict[str, str]]:
    """Read the table: what each role is answered at each address."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("| ")
    ]
    head = next(row for row in rows if row[0] == "address")
    assert tuple(head[1:]) == ROLES
    matrix = {}
    for row in rows:
        method, _, path = row[0].partition(" ")
        if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}:
            matrix[method, path] = dict(zip(ROLES, row[1:], strict=True))
    return matrix


def routed() -> set[tuple[str, str]]:
    """Give every method and path that the application answers, of its own routes."""
    return {
        (method, re.sub(r":\w+\}", "}", route.path))
        for route in build_app(Mock()).routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    }


MATRIX = stated()


def test_each_address_has_its_row_and_each_row_its_address() -> None:
    assert MATRIX.keys() == routed()


def test_the_application_has_no_routes_but_http() -> None:
    assert all(isinstance(route, HTTPRoute) for route in build_app(Mock()).routes)


def test_a_look_up_that_is_limited_is_a_handler() -> None:
    assert WHO.keys() > LOOKUPS
    # Of those that are asked with a card, only receipts and returns are never refused.
    assert WHO.keys() - LOOKUPS == {
        *("book_receipt", "book_batch", "book_return", "capture_hold"),
        *("enrol_member", "issue_card", "change_status", "end_membership", "open_balances"),
        *("list_waiting", "accept_waiting", "dismiss_waiting"),
    }


def test_the_methods_of_an_address_are_told_to_anybody(
    anybody: httpx.Client, till: httpx.Client
) -> None:
    for method, path in routed():
        for client in (anybody, till):
            answer = client.options(re.sub(r"\{\w+\}", "1", path))
            assert answer.status_code == 204, path
            assert method in {"HEAD", *answer.headers["Allow"].split(", ")}, path


# --- each cell -----------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True):
    """What is sent in every role alike."""

    path: str
    body: object = None
    ndjson: bool = False


class Shop:
    """Makes what a request is about, as the staff of `north`, new for each request."""

    def __init__(
        self, staff: httpx.Client, a_receipt: Make, enrol: Enrol, enrol_rich: Enrol
    ) -> None:
        self.staff = staff
        self.a_receipt = a_receipt
        self.enrol = enrol
        self.enrol_rich = enrol_rich

    def a_sale(self) -> Json:
        _, card = self.enrol()
        return self.a_receipt(10_000, card=card)

    def a_hold(self) -> tuple[str, str]:
        _, card = self.enrol_rich()
        body = {"card": card, "unit": "bonus", "amount": 100, "proof": "staff"}
        answer = self.staff.post(
            "/v1/holds", json=body, headers={"Idempotency-Key": str(uuid4())}
        ).json()
        return card, answer["hold_id"]

    def a_capture(self) -> tuple[str, Json]:
        card, hold_id = self.a_hold()
        tenders = [
            {"kind": "bonus", "amount_minor": 100, "hold": hold_id},
            {"kind": "cash", "amount_minor": 9_900},
        ]
        return hold_id, self.a_receipt(10_000, card=card, tenders=tenders)

    def a_return(self) -> Json:
        sale = self.a_sale()
        assert self.staff.post("/v1/receipts", json=sale).status_code == 200
        return return_of(sale)

    def a_waiting_return(self) -> str:
        """Let a return come before its sale and take back more than it: it waits for staff."""
        sale = self.a_sale()
        back = return_of(sale)
        back["lines"] = [{"line": 1, "amount_minor": 10_001}]
        kept = self.staff.post("/v1/returns", json=back).json()
        assert kept["nothing"] == "sale-awaited"
        assert self.staff.post("/v1/receipts", json=sale).status_code == 200
        return str(kept["key"])


def return_of(sale: Json) -> Json:
    return {
        "store": sale["store"],
        "till": "1",
        "business_day": sale["business_day"],
        "number": f"R{sale['number']}",
        "at": datetime.now(UTC).isoformat(),
        "sale": {name: sale[name] for name in ("store", "till", "business_day", "number")},
        "lines": [{"line": 1, "amount_minor": 100}],
    }


def a_capture(shop: Shop) -> Request:
    hold_id, receipt = shop.a_capture()
    return Request(f"/v1/holds/{hold_id}/capture", receipt)


def a_release(shop: Shop) -> Request:
    card, hold_id = shop.a_hold()
    return Request(f"/v1/holds/{hold_id}/release", {"card": card})


def an_opening(shop: Shop) -> Request:
    account_id, _ = shop.enrol()
    lot = {"unit": "bonus", "amount": 100, "earned_on": datetime.now(UTC).date().isoformat()}
    body = {"lots": [lot], "approved_by": "Kari"}
    return Request(f"/v1/members/{account_id}/opening", body)


APPLICATION = {
    "applicant": {"organization_number": "974760673"},
    "card_kind": "customer-card",
}
COOP_APPLICATION = {"applicant": {"born_on": "1990-01-01"}, "card_kind": "card"}

REQUESTS: dict[tuple[str, str], Callable[[Shop], Request]] = {
    ("POST", "/v1/quotes"): lambda shop: Request("/v1/quotes", shop.a_sale()),
    ("POST", "/v1/receipts"): lambda shop: Request("/v1/receipts", shop.a_sale()),
    ("POST", "/v1/receipts/batch"): lambda shop: Request(
        "/v1/receipts/batch", shop.a_sale(), ndjson=True
    ),
    ("POST", "/v1/returns"): lambda shop: Request("/v1/returns", shop.a_return()),
    ("GET", "/v1/cards/{number}"): lambda shop: Request(f"/v1/cards/{shop.enrol()[1]}"),
    ("POST", "/v1/holds"): lambda shop: Request(
        "/v1/holds",
        {"card": shop.enrol_rich()[1], "unit": "bonus", "amount": 100, "proof": "staff"},
    ),
    ("POST", "/v1/holds/{hold_id}/capture"): a_capture,
    ("POST", "/v1/holds/{hold_id}/release"): a_release,
    ("POST", "/v1/members"): lambda _: Request("/v1/members", APPLICATION),
    ("POST", "/v1/members/{account_id}/opening"): an_opening,
    ("POST", "/v1/members/{account_id}/leave"): lambda shop: Request(
        f"/v1/members/{shop.enrol()[0]}/leave", {"cause": "member"}
    ),
    ("POST", "/v1/cards"): lambda shop: Request(
        "/v1/cards", {"account_id": shop.enrol()[0], "kind": "customer-card", "role": "main"}
    ),
    ("POST", "/v1/cards/{number}/activate"): lambda shop: Request(
        f"/v1/cards/{shop.enrol()[1]}/activate", {}
    ),
    ("POST", "/v1/cards/{number}/block"): lambda shop: Request(
        f"/v1/cards/{shop.enrol()[1]}/block"
    ),
    ("POST", "/v1/cards/{number}/replace"): lambda shop: Request(
        f"/v1/cards/{shop.enrol()[1]}/replace", {}
    ),
    ("GET", "/v1/waiting"): lambda _: Request("/v1/waiting"),
    ("POST", "/v1/waiting/accept"): lambda shop: Request(
        "/v1/waiting/accept", {"key": shop.a_waiting_return(), "reason": "late"}
    ),
    ("POST", "/v1/waiting/dismiss"): lambda shop: Request(
        "/v1/waiting/dismiss", {"key": shop.a_waiting_return(), "reason": "twice"}
    ),
    ("GET", "/docs"): lambda _: Request("/docs"),
    ("GET", "/docs/openapi.json"): lambda _: Request("/docs/openapi.json"),
    ("GET", "/docs/oauth2-redirect.html"): lambda _: Request("/docs/oauth2-redirect.html"),
    ("GET", "/docs/{path}"): lambda _: Request("/docs/nothing"),
    ("GET", "/docs/assets/{file_path}"): lambda _: Request("/docs/assets/swagger-ui.css"),
    ("HEAD", "/docs/assets/{file_path}"): lambda _: Request("/docs/assets/swagger-ui.css"),
}

COOP_REQUESTS: dict[tuple[str, str], Callable[[Shop], Request]] = {
    # What the cash-and-carry's terms do not know is asked of the cooperatives.
    ("POST", "/v1/members/{account_id}/status"): lambda shop: Request(
        f"/v1/members/{shop.enrol()[0]}/status", {"status": "cooperative-member"}
    ),
    ("POST", "/v1/cards/{number}/pool"): lambda shop: Request(
        f"/v1/cards/{shop.enrol()[1]}/pool", {"onto": shop.enrol()[0]}
    ),
}

READS = {
    "/v1/quotes",
    "/v1/cards/{number}",
    "/v1/waiting",
    *(path for _, path in MATRIX if path.startswith("/docs")),
}
"""What changes nothing when it is answered."""


def test_each_row_has_a_request() -> None:
    assert REQUESTS.keys() | COOP_REQUESTS.keys() == MATRIX.keys()
    assert not REQUESTS.keys() & COOP_REQUESTS.keys()


@pytest.fixture(scope="module")
def tokens(pool: ConnectionPool) -> dict[str, dict[str, str]]:
    """Give each programme's tokens by role, seen from its own store `north`."""
    now = datetime.now(UTC)
    given: dict[tuple[str, str, str], str] = {}
    with pool.connection() as connection:
        for programme, store in itertools.product(("alltid", "coop"), ("north", "south", "east")):
            # `east` is another programme's store to both: neither has it of its own in the matrix.
            publishing.add_store(connection, programme=programme, store=Store(store))
            for kind in ("till", "staff"):
                given[programme, store, kind] = str(uuid4())
                publishing.add_till(
                    connection,
                    programme=programme,
                    store=store,
                    label="matrix",
                    kind="staff" if kind == "staff" else "till",
                    token=given[programme, store, kind],
                    at=now,
                )
        for programme in ("alltid", "coop"):
            given[programme, "north", "revoked"] = str(uuid4())
            publishing.add_till(
                connection,
                programme=programme,
                store="north",
                label="lost",
                kind="staff",
                token=given[programme, "north", "revoked"],
                at=now,
            )
            revoked = publishing.revoke_till(
                connection, programme=programme, store="north", label="lost", at=now
            )
            assert revoked == 1
    return {
        own: {
            "no token": "",
            "wrong token": "wrong",
            "revoked token": given[own, "north", "revoked"],
            **{kind: given[own, "north", kind] for kind in ("till", "staff")},
            **{f"{kind} of another store": given[own, "south", kind] for kind in ("till", "staff")},
            **{
                f"{kind} of another programme": given[other, "east", kind]
                for kind in ("till", "staff")
            },
        }
        for own, other in (("alltid", "coop"), ("coop", "alltid"))
    }


@pytest.fixture
def shop(till: httpx.Client, a_receipt: Make, a_member: Enrol, a_rich_member: Enrol) -> Shop:
    return Shop(till, a_receipt, a_member, a_rich_member)


@pytest.fixture
def coop_shop(coop_till: httpx.Client, a_receipt: Make) -> Shop:
    def enrol() -> tuple[int, str]:
        headers = {"Idempotency-Key": str(uuid4())}
        answer = coop_till.post("/v1/members", json=COOP_APPLICATION, headers=headers).json()
        return answer["account_id"], answer["card_number"]

    return Shop(coop_till, a_receipt, enrol, enrol)


@pytest.fixture
def moved(pool: ConnectionPool) -> Callable[[], Books]:
    """Give the rows of every table, counted and summed up: any change shows."""

    def look() -> Books:
        with pool.connection() as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
            ).fetchall()
            return {
                name: _sum(connection, name) for (name,) in tables if not name.startswith(COUNTERS)
            }

    return look


def _sum(connection: psycopg.Connection, table: str) -> tuple[int, int]:
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(hashtext(t::text)), 0)::bigint FROM {table} t"  # noqa: S608
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.fixture(scope="module")
def anybody(base_url: str) -> Iterator[httpx.Client]:
    """Speak without a token, unless one is brought."""
    with httpx.Client(base_url=base_url, timeout=30) as client:
        yield client


def send(anybody: httpx.Client, method: str, request: Request, token: str) -> httpx.Response:
    headers = {"Idempotency-Key": str(uuid4())}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    content = None if request.body is None else json.dumps(request.body)
    return anybody.request(method, request.path, content=content, headers=headers)


def outcome(answer: httpx.Response, *, ndjson: bool) -> str:
    """Give the word of the table for an answer."""
    if answer.request.method == "HEAD" or "html" in answer.headers["Content-Type"]:
        return "yes" if answer.status_code == 200 else str(answer.status_code)
    if "css" in answer.headers["Content-Type"]:
        return "yes"
    said = json.loads(answer.content) if not ndjson else json.loads(answer.content.splitlines()[0])
    if "code" not in said:
        assert answer.status_code == 200, answer.text
        return "yes"
    words = [word for word, codes in CODES.items() if said["code"] in codes]
    assert words, said
    assert words[0].startswith(str(said["status"]))
    return words[0]


@pytest.mark.parametrize(("method", "path"), sorted(MATRIX))
def test_each_role_is_answered_as_the_table_says(
    anybody: httpx.Client,
    shop: Shop,
    coop_shop: Shop,
    tokens: dict[str, dict[str, str]],
    moved: Callable[[], Books],
    method: str,
    path: str,
) -> None:
    expected = MATRIX[method, path]
    is_coops = (method, path) in COOP_REQUESTS
    own = tokens["coop" if is_coops else "alltid"]

    def make() -> Request:
        if is_coops:
            return COOP_REQUESTS[method, path](coop_shop)
        return REQUESTS[method, path](shop)

    request = make()
    before = moved()
    for role in (role for role in ROLES if expected[role] != "yes"):
        answer = send(anybody, method, request, own[role])
        assert outcome(answer, ndjson=request.ndjson) == expected[role], role
        assert moved() == before, role
    # The request was right: it only came from others.
    for role in (role for role in ROLES if expected[role] == "yes"):
        answer = send(anybody, method, request, own[role])
        assert outcome(answer, ndjson=request.ndjson and answer.status_code == 200) == "yes", role
        after = moved()
        assert (after == before) is (path in READS), role
        if path not in READS:
            request = make()
            before = moved()


# --- what is another's ---------------------------------------------------------------------


def said(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    return answer.status_code, body.get("code", "")


@pytest.fixture
def east(base_url: str, tokens: dict[str, dict[str, str]]) -> Iterator[httpx.Client]:
    """Speak as staff of the cooperatives, to whom all of the cash-and-carry is another's."""
    token = tokens["alltid"]["staff of another programme"]
    with httpx.Client(
        base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    ) as client:
        yield client


def test_another_store_cannot_pay_with_a_hold(
    shop: Shop, southern_till: httpx.Client, moved: Callable[[], Books]
) -> None:
    hold_id, receipt = shop.a_capture()
    southern = receipt | {"store": "south"}
    before = moved()
    for path in ("/v1/receipts", "/v1/quotes", f"/v1/holds/{hold_id}/capture"):
        assert said(southern_till.post(path, json=southern)) == (409, "hold-unknown"), path
    (line,) = southern_till.post(
        "/v1/receipts/batch", content=json.dumps(southern)
    ).content.splitlines()
    assert json.loads(line)["code"] == "hold-unknown"
    assert moved() == before
    assert shop.staff.post(f"/v1/holds/{hold_id}/capture", json=receipt).status_code == 200


def test_a_hold_of_another_store_is_as_if_there_were_none(
    shop: Shop, southern_till: httpx.Client
) -> None:
    card, hold_id = shop.a_hold()
    there = southern_till.post(f"/v1/holds/{hold_id}/release", json={"card": card})
    absent = "f" * 32
    none = southern_till.post(f"/v1/holds/{absent}/release", json={"card": card})
    assert there.text.replace(hold_id, "") == none.text.replace(absent, "")
    assert there.status_code == none.status_code == 409


def test_another_programmes_sale_is_not_there_to_return(
    shop: Shop, coop_till: httpx.Client, moved: Callable[[], Books]
) -> None:
    sale = shop.a_sale()
    shop.staff.post("/v1/receipts", json=sale)
    lots = moved()["lot"], moved()["posting"]
    there = coop_till.post("/v1/returns", json=return_of(sale))
    absent = coop_till.post("/v1/returns", json=return_of(sale | {"number": "0"}))
    assert there.json()["nothing"] == absent.json()["nothing"] == "sale-awaited"
    assert there.json().keys() == absent.json().keys() == {"key", "nothing"}
    assert (moved()["lot"], moved()["posting"]) == lots


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/members/{account}/status", {"status": "cooperative-member"}),
        ("/v1/members/{account}/leave", {"cause": "member"}),
        ("/v1/members/{account}/opening", {"lots": [], "approved_by": "Kari"}),
        ("/v1/cards", {"account_id": "{account}", "kind": "card", "role": "family"}),
        ("/v1/cards/{card}/activate", {}),
        ("/v1/cards/{card}/block", {}),
        ("/v1/cards/{card}/replace", {}),
        ("/v1/cards/{card}/pool", {"onto": 1}),
        ("/v1/cards/{own_card}/pool", {"onto": "{account}"}),
        ("/v1/holds", {"card": "{card}", "unit": "points", "amount": 1, "proof": "staff"}),
    ],
)
def test_what_is_another_programmes_is_as_if_there_were_none(
    shop: Shop,
    coop_shop: Shop,
    east: httpx.Client,
    moved: Callable[[], Books],
    path: str,
    body: Json,
) -> None:
    account_id, card = shop.enrol()
    own_account, own_card = coop_shop.enrol()
    before = moved()
    answers = []
    for account, number in ((account_id, card), (account_id + 10**9, "2" + card[1:-1] + "0")):
        put_in = {"{account}": str(account), "{card}": number, "{own_card}": own_card}
        where, what = path, json.dumps(body).replace('"{account}"', str(account))
        for name, value in put_in.items():
            where, what = where.replace(name, value), what.replace(name, value)
        answer = east.post(where, content=what, headers={"Idempotency-Key": str(uuid4())})
        assert answer.status_code == 404, answer.text
        answers.append(without(answer, str(account), number))
    assert answers[0] == answers[1]
    assert own_account
    assert moved() == before


def without(answer: httpx.Response, *names: str) -> Json:
    """Give a problem without the numbers that were asked for."""
    body: Json = answer.json()
    for name in names:
        body["detail"] = re.sub(rf"\b{name}\b", "", body["detail"])
    return body | {"fields": list(body["fields"])}


def test_another_programmes_idempotency_key_is_free(
    shop: Shop, east: httpx.Client, moved: Callable[[], Books]
) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first = shop.staff.post("/v1/members", json=APPLICATION, headers=headers)
    other = east.post("/v1/members", json=COOP_APPLICATION, headers=headers)
    assert (first.status_code, other.status_code) == (200, 200)
    assert first.json()["account_id"] != other.json()["account_id"]
    before = moved()
    assert east.post("/v1/members", json=COOP_APPLICATION, headers=headers).text == other.text
    assert moved() == before
