"""Whatever is sent, nothing breaks, and what is refused has booked nothing.

Schemathesis asks all that the OpenAPI document allows and much that it forbids, with each kind of
token. Then receipts, returns and holds are spoiled in every way we know: 20,000 in a short run.
Each answer is looked at, and the rows are counted around each request.
"""

import asyncio
import gzip
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes
from uuid import UUID

import hypothesis
import psycopg
import pytest
import uvicorn
from hypothesis import strategies as st

from kantis.api.problems import MEDIA_TYPE, Fault
from kantis.api.wire import BODY_BYTES_MAX
from kantis.core.admission import Applicant, Warrant
from kantis.core.events import Opened, OpeningLot
from kantis.core.refusals import all_refusals
from kantis.db.cluster import APP
from kantis.db.connect import connect, open_pool
from kantis.db.programmes import Store
from kantis.operations import audit, members, publishing
from kantis.operations.limits import Limits
from kantis.serve import ASGI, build_asgi

ROOT = Path(__file__).parents[2]
PROOFS = Path(__file__).parent
ORGANIZATION = "974760673"
"""A Norwegian organization number that is in order."""

NO_LIMITS = Limits(
    unknown_cards_per_minute=10**9, unknown_cards_per_hour=10**9, wrong_tokens_per_minute=10**9
)
"""Whoever sends nothing but rubbish would soon be told nothing any more."""

NDJSON = "application/x-ndjson"
CODES = {fault.code for fault in Fault.__subclasses__()} | {one.code for one in all_refusals()}
BOOKED = (
    *("event", "transfer", "posting", "lot", "balance", "receipt_key", "stray", "request"),
    *("account", "card", "card_link", "card_change", "card_order", "capture"),
)
"""Where a request that is refused must leave nothing."""

COUNTED = [f"(SELECT count(*) FROM {table})" for table in BOOKED]  # noqa: S608 - names of ours
COUNTED.append("(SELECT sum(last_event)::bigint FROM account)")
COUNT_ROWS = f"SELECT {', '.join(COUNTED)}"

MEGABYTES_MORE_MAX = 64
"""What a process may grow by during a run; each request alone is up to one megabyte."""


class Shop(NamedTuple):
    """A database with one programme, a store, and members who have bonus."""

    url: str
    programme: str
    currency: str
    unit: str
    card_kind: str
    role: str
    status: str
    cards: list[str]
    accounts: list[int]

    def known(self) -> dict[str, object]:
        """Give what Schemathesis is told."""
        return self._asdict() | {"url": "", "store": "north", "organization": ORGANIZATION}


KINDS = {
    "alltid": ("NOK", "bonus", "customer-card", "main", "none"),
    "coop": ("EUR", "points", "card", "main", "cooperative-member"),
}


def set_up(url: str, programme: str) -> Shop:
    """Publish the terms, open a store, and let twelve join who bring something along."""
    now = datetime.now(UTC)
    joined_at = now - timedelta(days=40)
    currency, unit, card_kind, role, status = KINDS[programme]
    shop = Shop(url, programme, currency, unit, card_kind, role, status, [], [])
    with connect(url) as connection:
        for file in sorted((ROOT / "programmes" / programme).glob("*.toml")):
            source = file.read_text(encoding="utf-8")
            publishing.publish_terms(connection, source=source, at=now, by="test")
        publishing.add_store(connection, programme=programme, store=Store("north"))
        for kind in ("till", "staff"):
            publishing.add_till(
                connection,
                programme=programme,
                store="north",
                label=kind,
                kind=kind,
                token=f"{kind}-token",
                at=now,
            )
        for number in range(12):
            enrolled = members.enrol(
                connection,
                programme=programme,
                application=members.Application(
                    applicant=Applicant(
                        born_on=joined_at.date().replace(year=1980),
                        organization_number=ORGANIZATION,
                    ),
                    card_kind=card_kind,
                    card_number=f"{7 * 10**12 + number}",
                ),
                request_key=f"member-{number}",
                at=joined_at,
                warrant=Warrant("test"),
            )
            lot = OpeningLot(unit, 1_000_000, joined_at.date())
            members.open_balances(
                connection,
                programme=programme,
                account_id=enrolled.account_id,
                opening=Opened(at=joined_at + timedelta(seconds=1), key="opened", lots=(lot,)),
                warrant=Warrant("test", approved_by="Kari"),
            )
            shop.cards.append(enrolled.card_number)
            shop.accounts.append(enrolled.account_id)
    return shop


class Watched:
    """An application whose requests come one by one; the rows are counted around each."""

    def __init__(self, application: ASGI, connection: psycopg.Connection) -> None:
        self.application = application
        self.connection = connection
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._turn = asyncio.Lock()

    def rows(self) -> tuple[int, ...]:
        """Count the rows, and what happened to accounts."""
        ((*row,),) = self.connection.execute(COUNT_ROWS).fetchall()
        return tuple(row)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """Let the application answer, and look at its answer."""
        sent: list[dict[str, Any]] = []

        async def note(message: dict[str, Any]) -> None:
            sent.append(message)
            await send(message)

        async with self._turn:
            before = self.rows()
            await self.application(scope, receive, note)
            body = b"".join(message.get("body", b"") for message in sent[1:])
            about = f"{scope['method']} {scope['path']!r}"
            if not sent:  # whoever asked has gone
                self.expect(self.rows() == before, f"{about}: booked for nobody")
                return
            status = sent[0]["status"]
            self.statuses[status] += 1
            headers = {name.lower(): value for name, value in sent[0]["headers"]}
            if str(scope["path"]).startswith("/v1/"):
                self.look_at(about, status, headers, body)
            if status >= 400:
                self.expect(self.rows() == before, f"{about}: {status}, and yet booked")

    def look_at(self, about: str, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        """Check that an answer is an answer, or problem details."""
        about = f"{about}: {status} {body[:300]!r}"
        self.expect(status < 500, about)
        if status < 400 or not body:
            return
        self.expect(headers.get(b"content-type") == MEDIA_TYPE.encode(), about)
        problem = json.loads(body)
        self.expect(problem["status"] == status, about)
        self.expect(problem["code"] in CODES, about)
        self.expect(bool(problem["way_out"]), about)
        self.codes[problem["code"]] += 1

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong: an exception here would only become another answer."""
        if not holds:
            self.wrong.append(otherwise)

    def audit(self, programme: str) -> None:
        """Audit all books and accounts."""
        for finding in audit.audit_books(self.connection):
            assert finding.wrong == (), finding
        for account_id in audit.accounts_of(self.connection, programme=programme):
            assert (
                audit.audit_account(self.connection, programme=programme, account_id=account_id)
                == ()
            )


@contextmanager
def open_shop(
    make_database: Callable[[str], Callable[[str], str]], programme: str
) -> Iterator[tuple[Shop, Watched]]:
    """Set a shop up and give it with the application that is watched."""
    shop = set_up(make_database(f"fuzz-{programme}")(APP), programme)
    with (
        open_pool(shop.url) as pool,
        connect(shop.url) as connection,
    ):
        yield shop, Watched(build_asgi(pool, limits=NO_LIMITS), connection)


@contextmanager
def served(application: ASGI) -> Iterator[tuple[str, int]]:
    """Let an application answer on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(application, lifespan="off", ws="none", log_level="critical")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


# --- all that the document says -------------------------------------------------------------

TILLS = {"quotes", "receipts", "batch", "returns", "holds", "capture", "release", "{number}"}
DESKS = {
    *("members", "opening", "status", "leave", "waiting"),
    *("cards", "activate", "block", "replace", "pool"),
}
ACCEPTED = {
    ("alltid", "staff"): (TILLS | DESKS) - {"pool", "status"},  # its terms know neither
    ("alltid", "till"): TILLS,
    ("coop", "staff"): (TILLS | DESKS) - {"holds", "capture", "release"},  # its points pay nothing
}
"""Addresses, by their last word, that must have let something pass."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("programme", "token"), [("alltid", "staff"), ("alltid", "till"), ("coop", "staff")]
)
def test_schemathesis_finds_nothing(
    programme: str,
    token: str,
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    report = tmp_path / "report.json"
    with (
        open_shop(make_database, programme) as (shop, watched),
        served(watched) as (host, port),
    ):
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(PROOFS / "schemathesis.toml")),
                *("run", f"http://{host}:{port}/docs/openapi.json"),
                *("--header", f"Authorization: Bearer {token}-token"),
                *("--mode", "all", "--continue-on-failure", "--no-color"),
                *("--max-examples", str(long_or_short(2_000, 30)), "--seed", str(seed)),
                *("--generation-database", "none", "--request-timeout", "30"),
                *("--report", "json", "--report-json-path", str(report)),
            ],
            cwd=tmp_path,
            env=os.environ
            | {
                "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                "PYTHONPATH": str(PROOFS),
                "KANTIS_SEED": str(seed),
                "KANTIS_FUZZED_SHOP": json.dumps(shop.known()),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        watched.audit(programme)
    assert found.returncode == 0, found.stdout + found.stderr
    assert watched.wrong == []
    said = json.loads(report.read_text())
    accepted = {
        operation: sum(phase["accepted"] for phase in phases.values())
        for operation, phases in said["valid_rates"].items()
    }
    evidence(
        operations=said["operations"]["tested"],
        requests=watched.statuses.total(),
        cases=said["test_cases"]["generated"],
        findings=said["test_cases"]["with_failures"],
        statuses=dict(sorted(watched.statuses.items())),
        accepted=accepted,
    )
    assert said["operations"]["tested"] == said["operations"]["total"]
    passed = {operation.split("/")[-1] for operation, times in accepted.items() if times}
    assert passed == ACCEPTED[programme, token]


# --- all that a document cannot say ---------------------------------------------------------

Json = dict[str, Any]
TOKEN = b"Bearer staff-token"


class Request(NamedTuple):
    """A request as its bytes."""

    method: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


Answered = tuple[int, bytes]


async def ask(application: ASGI, request: Request) -> Answered:
    """Put a request to an application without a network between."""
    arriving: list[Json] = [{"type": "http.request", "body": request.body}]
    status, body = 0, b""

    async def receive() -> Json:
        return arriving.pop() if arriving else {"type": "http.disconnect"}

    async def send(message: Json) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    path, _, query = request.path.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": request.headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    await application(scope, receive, send)
    return status, body


class Documents:
    """Valid requests to spoil."""

    def __init__(self, shop: Shop, chance: random.Random) -> None:
        self.shop = shop
        self.chance = chance
        self.sold: list[Json] = []

    def number(self) -> str:
        return str(UUID(int=self.chance.getrandbits(128)))

    def receipt(self) -> Json:
        amounts = [self.chance.randint(1, 100_000) for _ in range(self.chance.randint(1, 4))]
        at = datetime.now(UTC) - timedelta(seconds=self.chance.randint(0, 3_600))
        total = sum(amounts)
        return {
            "store": "north",
            "till": "1",
            "business_day": at.date().isoformat(),
            "number": self.number(),
            "at": at.isoformat(),
            "currency": self.shop.currency,
            "total_minor": total,
            "lines": [
                {
                    "amount_minor": amount,
                    "category": "food/dairy",
                    "product": "milk",
                    "quantity_milli": 1_000,
                    "own_brand": False,
                    "normal_price_minor": amount,
                    "vat_basis_points": 1_500,
                }
                for amount in amounts
            ],
            "tenders": [{"kind": "cash", "amount_minor": total}],
            "card": self.chance.choice(self.shop.cards),
            "shown": [self.shop.cards[0]],
            "proof": "staff",
            "training": False,
        }

    def take_back(self) -> Json:
        sale = self.chance.choice(self.sold) if self.sold else self.receipt()
        return {
            "store": "north",
            "till": "1",
            "business_day": sale["business_day"],
            "number": self.number(),
            "at": datetime.now(UTC).isoformat(),
            "sale": {name: sale[name] for name in ("store", "till", "business_day", "number")},
            "lines": [{"line": 1, "amount_minor": 1}],
        }

    def hold(self) -> Json:
        return {
            "card": self.chance.choice(self.shop.cards),
            "unit": self.shop.unit,
            "amount": self.chance.randint(1, 10),
            "proof": "staff",
            "at": datetime.now(UTC).isoformat(),
        }

    def any(self) -> tuple[bytes, Json]:
        """Give an address and what it is for."""
        card, account = self.chance.choice(self.shop.cards), self.shop.accounts[0]
        return self.chance.choice(
            [
                (b"/v1/receipts", self.receipt()),
                (b"/v1/receipts", self.receipt()),
                (b"/v1/quotes", self.receipt()),
                (b"/v1/returns", self.take_back()),
                (b"/v1/holds", self.hold()),
                (b"/v1/holds/%032x/capture" % 1, self.receipt()),
                (b"/v1/holds/%032x/release" % 1, {"card": card}),
                (b"/v1/members", {"applicant": {}, "card_kind": self.shop.card_kind}),
                (b"/v1/cards", {"account_id": account, "kind": "x", "role": "main"}),
                (b"/v1/cards/%s/replace" % card.encode(), {"number": card, "reason": "lost"}),
                (b"/v1/members/%d/leave" % account, {"cause": "x", "reason": "y"}),
                (b"/v1/members/%d/opening" % account, {"lots": [], "sums_minor": {"2020-01": 1}}),
            ]
        )

    def request(self, path: bytes, body: bytes) -> Request:
        headers = [
            (b"authorization", TOKEN),
            (b"content-type", b"application/json"),
            (b"idempotency-key", self.number().encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        return Request("POST", path, headers, body)


BOUNDS = (0, 1, 2, 10, 20, 50, 64, 100, 200, 500, 600, 1_000, 5_000, 10_000, 10**12)
EDGES = (2**31, 2**32, 2**53, 2**63, 2**64, 2**128)
NUMBERS = [
    str(sign * (bound + off)).encode()
    for bound in (*BOUNDS, *EDGES)
    for sign in (1, -1)
    for off in (-1, 0, 1)
] + [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e-400", b"1e3", b"1.0", b"-0"),
    *(b"0.5", b"01", b"+1", b"0x10", b"1_000", b".5", b"5.", b"1e", b"--1", b"9" * 5_000),
]
WORDS = [
    *(
        "",
        " ",
        "x",
        "0",
        "null",
        "٣٤",
        "१",
        "\u0000",
        "a\u0000b",
        "1\n",
        "\r\nX-Injected: yes",
        "\u202e1",
    ),
    *(
        "\u200f",
        "\ufeff",
        "e\u0301",
        "\U0001f600",
        "ß" * 64,
        "../../etc/passwd",
        "' OR 1=1 --",
        "%00",
    ),
    *(
        "\\u0000",
        "north\u0000",
        "$.lines",
        "{{7*7}}",
        "cash",
        "bonus",
        "points",
        "staff",
        "nok",
        "NOK ",
    ),
    *("x" * length for bound in (64, 100, 200, 500) for length in (bound, bound + 1)),
    *("9" * length for length in (3, 4, 13, 40, 41, 10_000)),
    *("0000-01-01", "0001-01-01", "9999-12-31", "2026-02-30", "2026-13-01", "20260101", "2026-W01"),
    *(
        "2026-01-01T00:00:00",
        "2026-01-01T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "2026-01-01T00:00:00+99:99",
    ),
    *(
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "2026-01-01T00:00:00.123456789012Z",
    ),
    *(
        "2015-12-31T23:00:00Z",
        "9997-12-31T23:59:59Z",
        "1969-12-31T23:59:59Z",
        "2026-06-01 10:00:00Z",
    ),
]
TOKENS = [
    *NUMBERS,
    *(json.dumps(word).encode() for word in WORDS),
    *(json.dumps(word, ensure_ascii=False).encode() for word in WORDS if word.isprintable()),
    *(
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\x00"',
        b'"\t"',
    ),
    *(
        b"true",
        b"false",
        b"null",
        b"[]",
        b"{}",
        b"[[]]",
        b"[null]",
        b'{"":0}',
        b"",
        b"'x'",
        b'"',
        b"\\",
    ),
    *(b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000),
    b"[" + b"{}," * 100_000 + b"{}]",
    b"[" + b'{"amount_minor":1},' * 5_000 + b'{"amount_minor":1}]',
    b'"' + b"x" * 1_000_000 + b'"',
]
HOLE = '"@@hole@@"'


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give where there is a value within a document."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for name, one in inner:
        yield from places(one, (*at, name))


def changed(document: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:  # noqa: ANN401
    """Give a copy of a document with the value at a place changed within what it lies in."""
    copy = json.loads(json.dumps([document]))
    within = copy
    for name in (0, *place)[:-1]:
        within = within[name]
    change(within, (0, *place)[-1])
    return copy[0] if copy else None


def spoil_document(document: Json, chance: random.Random) -> bytes:
    """Change the structure of a document in one or two places."""
    for _ in range(chance.choice([1, 1, 1, 2])):
        place = chance.choice(list(places(document)))
        within = chance.choice(["replace", "replace", "replace", "drop", "add", "double", "move"])

        def change(parent: Any, name: Any, within: str = within) -> None:  # noqa: ANN401
            match within:
                case "replace":
                    parent[name] = "@@hole@@"
                case "drop":
                    del parent[name]
                case "add" if isinstance(parent[name], dict):
                    parent[name][chance.choice(["", "x", "at ", "Total_minor", "__proto__"])] = 1
                case "double" if isinstance(parent[name], list):
                    parent[name] *= chance.choice([0, 2, 60])
                case _:
                    parent[name] = {"a": parent[name]}

        document = changed(document, place, change)
    body = json.dumps(document).encode()
    while HOLE.encode() in body:
        body = body.replace(HOLE.encode(), chance.choice(TOKENS), 1)
    if chance.random() < 0.05 and b'"' in body:
        name = chance.choice([b"till", b"total_minor", b"lines", b"card", b"number"])
        body = b'{"' + name + b'":' + chance.choice(NUMBERS) + b"," + body[1:]
    return body


def spoil_bytes(body: bytes, chance: random.Random) -> bytes:  # noqa: PLR0911 - a way each
    """Change the bytes of a body, whatever they mean."""
    cut = chance.randrange(len(body))
    match chance.randrange(12):
        case 0:
            return body[:cut]
        case 1:
            return body[cut:]
        case 2:
            return body[:cut] + chance.randbytes(chance.randint(1, 8)) + body[cut + 1 :]
        case 3:
            return chance.randbytes(chance.randint(0, 2_000))
        case 4:
            return b"\xef\xbb\xbf" + body
        case 5:
            return body.decode().encode(chance.choice(["utf-16", "utf-32", "utf-16-be", "utf-7"]))
        case 6:
            return gzip.compress(body)
        case 7:
            return body + body
        case 8:
            return body.ljust(BODY_BYTES_MAX + chance.choice([-1, 0, 1]))
        case 9:
            return body + b"\x00"
        case 10:
            flipped = bytearray(body)
            flipped[cut] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case _:
            return body.replace(b'"', b"'")


def spoil_request(request: Request, chance: random.Random) -> Request:  # noqa: PLR0911 - a way each
    """Change what stands around a body."""
    hostile = chance.choice(
        [
            b"",
            b" ",
            b"\x00",
            b"x" * 121,
            b"x" * 100_000,
            b"\xff",
            b"a\r\nX-Injected: yes",
            b"%00",
            b"../..",
        ]
    )
    match chance.randrange(8):
        case 0:
            kinds = [
                b"text/plain",
                b"application/xml",
                b"multipart/form-data",
                b"a/b;c=\xff",
                hostile,
            ]
            return with_header(request, b"content-type", chance.choice(kinds))
        case 1:
            return with_header(request, b"idempotency-key", hostile)
        case 2:
            bearers = [
                b"Bearer " + hostile,
                b"Basic dDp0",
                TOKEN + b"x",
                TOKEN + b" ",
                b"",
                hostile,
            ]
            return with_header(request, b"authorization", chance.choice(bearers))
        case 3:
            return with_header(
                request, b"content-encoding", chance.choice([b"gzip", b"br", hostile])
            )
        case 4:
            return request._replace(
                method=chance.choice(
                    ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FOO"]
                )
            )
        case 5:
            segments = request.path.split(b"/")
            segments[chance.randrange(2, len(segments))] = chance.choice(
                [
                    b"%00",
                    b"%2F",
                    b"..",
                    b"%2e%2e",
                    b"9" * 5_000,
                    "٣".encode(),
                    b"%D9%A3" * 4,
                    b"",
                    b"%ff",
                    b"-1",
                    b"1e3",
                ]
            )
            return request._replace(path=b"/".join(segments))
        case 6:
            return with_header(
                request, b"content-length", chance.choice([b"0", b"-1", b"1e3", b"9" * 30, hostile])
            )
        case _:
            more = [
                (b"x-http-method-override", b"DELETE"),
                (b"x-forwarded-for", hostile),
                *request.headers,
            ]
            return request._replace(headers=more * chance.choice([1, 2]))


def with_header(request: Request, name: bytes, value: bytes) -> Request:
    others = [(known, old) for known, old in request.headers if known != name]
    return request._replace(headers=[*others, (name, value)])


def megabytes() -> int:
    """Give how much memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


HOSTILE_TESTS = 4
"""The hostile requests are shared out among this many tests, for as many cores."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", range(HOSTILE_TESTS))
def test_hostile_requests_are_refused_and_book_nothing(
    share: int,
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    count = long_or_short(1_000_000, 20_000) // HOSTILE_TESTS
    with open_shop(make_database, "alltid") as (shop, watched), asyncio.Runner() as runner:
        acknowledged = {row[0] for row in known_keys(watched)}
        megabytes_before = 0
        for number in range(count):
            chance = random.Random(f"{seed}/{share}/{number}")
            documents = Documents(shop, chance)
            request = hostile(documents, chance)
            status, body = runner.run(ask(watched, request))
            assert watched.wrong == [], (f"{seed}/{share}/{number}", request)
            assert status, request
            acknowledged |= booked_by(request, status, body)
            if number == count // 5:
                megabytes_before = megabytes()
        grown = megabytes() - megabytes_before
        assert {row[0] for row in known_keys(watched)} == acknowledged
        watched.audit("alltid")
    evidence(
        requests=watched.statuses.total(),
        statuses=dict(sorted(watched.statuses.items())),
        codes=dict(sorted(watched.codes.items())),
        booked=len(acknowledged),
        megabytes_grown=grown,
    )
    assert grown <= MEGABYTES_MORE_MAX
    assert watched.statuses[200] > 0
    assert {"not-json", "malformed", "too-large", "token-unknown", "not-found"} <= {*watched.codes}


def hostile(documents: Documents, chance: random.Random) -> Request:
    """Spoil a good request in one way, at times in two."""
    path, document = documents.any()
    body = json.dumps(document).encode()
    way = chance.random()
    if way < 0.65:
        body = spoil_document(document, chance)
    elif way < 0.85:
        body = spoil_bytes(body, chance)
    request = documents.request(path, body)
    return spoil_request(request, chance) if way > 0.8 else request


def known_keys(watched: Watched) -> list[tuple[str]]:
    """Give the keys of all receipts and returns that are booked or kept."""
    return watched.connection.execute(
        "SELECT key FROM event WHERE kind IN ('sale', 'returned') UNION ALL SELECT key FROM stray"
    ).fetchall()


def booked_by(request: Request, status: int, body: bytes) -> set[str]:
    """Give the key of the receipt or return that an answer acknowledges, if it does."""
    if status != 200 or request.path not in {b"/v1/receipts", b"/v1/returns"}:
        return set()
    return {json.loads(body)["key"]}


# Hypothesis takes the pool's threads, which draw their pauses by chance, for strategies of ours.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.timeout(900)
def test_any_json_anywhere_is_refused_or_right(
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    """What comes out of Hypothesis, so that a failure is shrunk to the least that fails."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=80)
        | st.datetimes().map(lambda at: f"{at.isoformat()}Z")
        | st.sampled_from(["cash", "bonus", "staff", "NOK", "north"])
    )
    anything = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
        ),
        max_leaves=8,
    )
    with open_shop(make_database, "alltid") as (shop, watched), asyncio.Runner() as runner:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=long_or_short(100_000, 1_000),
            derandomize=False,  # as it would be by itself where CI is set
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.data())
        def attack(data: st.DataObject) -> None:
            drawn = data.draw(st.randoms(use_true_random=False))
            documents = Documents(shop, drawn)
            path, document = documents.any()
            place = data.draw(st.sampled_from(list(places(document))))
            value = data.draw(anything)

            def change(parent: Any, name: Any) -> None:  # noqa: ANN401
                parent[name] = value

            body = json.dumps(changed(document, place, change)).encode()
            runner.run(ask(watched, documents.request(path, body)))
            wrong, watched.wrong = watched.wrong, []
            assert wrong == []

        attack()
        watched.audit("alltid")
    evidence(requests=watched.statuses.total(), statuses=dict(sorted(watched.statuses.items())))


@pytest.mark.timeout(900)
def test_of_a_batch_the_good_lines_are_booked_and_the_bad_answered(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    counted: Counter[str] = Counter()
    with open_shop(make_database, "alltid") as (shop, watched), asyncio.Runner() as runner:
        documents = Documents(shop, chance)
        booked = {row[0] for row in known_keys(watched)}
        for _ in range(long_or_short(5_000, 100)):
            lines = [bad_or_good(documents, chance) for _ in range(chance.randint(1, 60))]
            body = chance.choice([b"\n", b"\r\n", b"\n\n"]).join(line for line, _ in lines)
            request = documents.request(b"/v1/receipts/batch", body)
            status, said = runner.run(ask(watched, request))
            if len(body) > BODY_BYTES_MAX:
                assert status == 413
                continue
            assert (status, watched.wrong) == (200, [])
            answers = [json.loads(answer) for answer in said.splitlines()]
            for (line, number), answer in zip(lines, answers, strict=True):
                if "status" in answer:
                    counted["refused"] += 1
                    assert number == "", (line, answer)
                    assert answer["code"] in CODES
                    assert answer["status"] < 500
                else:
                    counted["booked"] += 1
                    assert answer["key"].endswith(number)
                    booked.add(answer["key"])
        assert {row[0] for row in known_keys(watched)} == booked
        watched.audit("alltid")
    evidence(**counted)
    assert min(counted["booked"], counted["refused"]) > 500


def bad_or_good(documents: Documents, chance: random.Random) -> tuple[bytes, str]:
    """Give a line of a batch, and the receipt's number if the line is good."""
    receipt = documents.receipt()
    receipt.pop("shown")
    good = json.dumps(receipt).encode()
    if chance.random() < 0.4:
        return good, receipt["number"]
    spoiled = spoil_document if chance.random() < 0.7 else None
    bad = spoiled(receipt, chance) if spoiled else spoil_bytes(good, chance)
    # A line's end within would make two of it; of megabytes one batch has no room for many.
    bad = bad.replace(b"\n", b" ").replace(b"\r", b" ")[: chance.choice([500, 5_000])]
    return bad if bad.strip() else b"x", ""


# --- what only a network can bring ----------------------------------------------------------

GOOD_HEAD = b"POST /v1/receipts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer staff-token\r\n"


def raw_requests(documents: Documents, chance: random.Random) -> Iterator[bytes]:
    """Give what breaks the protocol itself; none of it carries a receipt that could be booked."""
    body = spoil_document(documents.receipt() | {"store": "elsewhere"}, chance)[:50_000]
    length = b"Content-Length: %d\r\n" % len(body)
    yield GOOD_HEAD + length + b"\r\n" + body
    yield GOOD_HEAD + length + b"\r\n" + body[: len(body) // 2]
    yield GOOD_HEAD + b"Content-Length: -1\r\n\r\n" + body
    yield GOOD_HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + body
    yield GOOD_HEAD + length + b"Content-Length: 1\r\n\r\n" + body
    yield GOOD_HEAD + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + body
    yield GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n" + body
    yield GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body
    yield (
        GOOD_HEAD + b"X: " + b"x" * chance.randint(1, 1_000_000) + b"\r\n" + length + b"\r\n" + body
    )
    yield GOOD_HEAD + b"".join(b"X%d: x\r\n" % n for n in range(5_000)) + length + b"\r\n" + body
    yield GOOD_HEAD + b"Idempotency-Key: a\r\n\tb\r\n" + length + b"\r\n" + body
    yield GOOD_HEAD + b"Idempotency-Key: a\x00b\r\n" + length + b"\r\n" + body
    yield GOOD_HEAD + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + body
    yield GOOD_HEAD + b"Expect: 100-continue\r\n" + length + b"\r\n" + body
    yield GOOD_HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + length + b"\r\n" + body
    yield GOOD_HEAD.replace(b"HTTP/1.1", chance.choice([b"HTTP/0.9", b"HTTP/9.9", b""])) + b"\r\n"
    yield GOOD_HEAD.replace(b"/v1/receipts", b"/v1/" + b"x" * 100_000) + length + b"\r\n" + body
    yield GOOD_HEAD.replace(b"/v1/receipts", b"/v1/../../etc/passwd") + b"\r\n"
    yield GOOD_HEAD.replace(b"/v1/receipts", b"http://x/v1/cards/%00%0d%0aX:y") + b"\r\n"
    yield GOOD_HEAD.replace(b"POST", chance.choice([b"post", b"P\x00ST", b"CONNECT"])) + b"\r\n"
    yield chance.randbytes(chance.randint(1, 5_000))
    yield b"\r\n" * 1_000
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"\x16\x03\x01" + chance.randbytes(200)  # as TLS begins


@pytest.mark.timeout(900)
def test_broken_http_books_nothing_and_the_server_goes_on(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    answered: Counter[str] = Counter()
    with (
        open_shop(make_database, "alltid") as (shop, watched),
        served(watched) as address,
    ):
        documents = Documents(shop, chance)
        before = watched.rows()
        for _ in range(long_or_short(1_000, 20)):
            for raw in raw_requests(documents, chance):
                answered[exchange(address, raw)] += 1
            good = documents.receipt()
            good["training"] = True
            body = json.dumps(good).encode()
            head = GOOD_HEAD.replace(b"/receipts", b"/quotes")
            request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            assert exchange(address, request, patience_seconds=30) == "200"
        assert watched.rows() == before
    evidence(requests=answered.total(), answered=dict(answered))
    assert watched.wrong == []
    assert not any(status.startswith("5") for status in answered)


def exchange(address: tuple[str, int], raw: bytes, *, patience_seconds: float = 0.1) -> str:
    """Send bytes; give the status that comes, if one does before we hang up."""
    with socket.create_connection(address, timeout=10) as connection:
        try:
            connection.sendall(raw)
            connection.settimeout(patience_seconds)
            said = connection.recv(65_536)
        except TimeoutError:
            return "waits"
        except OSError:
            return "closed"
    return said.split(b" ")[1].decode() if said.startswith(b"HTTP/1.1 ") else "closed"
