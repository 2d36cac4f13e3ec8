"""Who guesses card numbers or tokens is told nothing; receipts are taken all the same."""

import itertools
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

import httpx
import pytest
from psycopg_pool import ConnectionPool
from stdnum import ean

from kantis.api.access import address_of
from kantis.api.desks import draw_card_number
from kantis.core.admission import Warrant
from kantis.db.cluster import APP
from kantis.db.connect import open_pool
from kantis.db.programmes import Store
from kantis.operations import cards, publishing
from kantis.operations.limits import Limits
from kantis.serve import ASGI, build_asgi

Json = dict[str, Any]
Make = Callable[..., Json]
Enrol = Callable[[], tuple[int, str]]
Count = Callable[[], list[int]]
Speak = Callable[..., httpx.Client]

ALLOWED = 3
# The hour alone, so that no minute ends amid a test; an hour does once in a thousand runs.
STRICT = Limits(
    unknown_cards_per_minute=10**9,
    unknown_cards_per_hour=ALLOWED,
    wrong_tokens_per_minute=10**9,
)
KNOWN = "7000000000001"
COOP_CARD = "7000000000003"


@pytest.fixture(scope="module")
def strict_url(
    shop_url: str, serving: Callable[[ASGI], AbstractContextManager[str]]
) -> Iterator[str]:
    """Serve with limits that are soon reached."""
    with open_pool(shop_url) as tills, serving(build_asgi(tills, {"api"}, STRICT)) as url:
        yield url


@pytest.fixture
def speak(pool: ConnectionPool, strict_url: str) -> Iterator[Speak]:
    """Let a new till in: of a store of its own, unless one is named."""
    clients: list[httpx.Client] = []

    def speak(store: str = "", kind: Literal["till", "staff"] = "till") -> httpx.Client:
        store = store or f"s-{secrets.token_hex(4)}"
        token = str(uuid4())
        with pool.connection() as connection:
            publishing.add_store(connection, programme="alltid", store=Store(store))
            publishing.add_till(
                connection,
                programme="alltid",
                store=store,
                label="guesser",
                kind=kind,
                token=token,
                at=datetime.now(UTC),
            )
        headers = {"Authorization": f"Bearer {token}", "X-Store": store}
        clients.append(httpx.Client(base_url=strict_url, headers=headers, timeout=30))
        return clients[-1]

    yield speak
    for client in clients:
        client.close()


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def refused(answer: httpx.Response) -> bool:
    """Tell whether an answer is that of a limit, with seconds to wait."""
    if code(answer) != (429, "too-many-unknown-cards"):
        return False
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    assert answer.json()["fields"] == {}
    return True


numbers = itertools.count(1)


def unknown() -> str:
    return f"99{next(numbers):010d}"


def use_up(client: httpx.Client) -> None:
    for _ in range(ALLOWED):
        assert code(client.get(f"/v1/cards/{unknown()}")) == (404, "card-unknown")


def of_store(client: httpx.Client, receipt: Json) -> Json:
    return receipt | {"store": client.headers["X-Store"]}


def hold_of(card: str) -> Json:
    return {"card": card, "unit": "bonus", "amount": 1, "proof": "staff"}


ASKED: dict[str, Callable[[httpx.Client, str, Json], httpx.Response]] = {
    # The ways to ask about a card; the last is a receipt to make it of.
    "look": lambda till, card, _: till.get(f"/v1/cards/{card}"),
    "quote": lambda till, card, receipt: till.post("/v1/quotes", json=receipt | {"card": card}),
    "hold": lambda till, card, _: till.post(
        "/v1/holds", json=hold_of(card), headers={"Idempotency-Key": str(uuid4())}
    ),
    "activate": lambda till, card, _: till.post(f"/v1/cards/{card}/activate", json={}),
    "block": lambda till, card, _: till.post(f"/v1/cards/{card}/block"),
    "replace": lambda till, card, _: till.post(f"/v1/cards/{card}/replace", json={}),
}


@pytest.mark.parametrize("way", ASKED)
def test_so_many_unknown_cards_are_answered_and_no_more(
    speak: Speak, a_receipt: Make, booked: Count, way: str
) -> None:
    client, ask = speak(kind="staff"), ASKED[way]
    before = booked()
    for _ in range(ALLOWED):
        answer = ask(client, unknown(), of_store(client, a_receipt()))
        assert "card-unknown" in answer.text
        assert answer.status_code in {200, 404}
    # Now known cards too, whatever they are asked with: or guessing would go on.
    for other in ASKED.values():
        for card in (unknown(), KNOWN, COOP_CARD):
            assert refused(other(client, card, of_store(client, a_receipt())))
    assert booked() == before


def test_known_cards_are_never_counted(speak: Speak, a_receipt: Make, pool: ConnectionPool) -> None:
    client = speak()
    for _ in range(3 * ALLOWED):
        assert client.get(f"/v1/cards/{KNOWN}").status_code == 200
        assert client.post("/v1/receipts", json=of_store(client, a_receipt())).status_code == 200
    with pool.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM miss WHERE asker LIKE %s", [f"%{client.headers['X-Store']}"]
        ).fetchone()
    assert row == (0,)


def test_a_receipt_is_taken_whoever_guessed_and_answered_when_it_is_over(
    speak: Speak, till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    client = speak("north")
    use_up(client)
    for card, nothing in ((KNOWN, ""), (unknown(), "card-unknown"), ("", "no-card")):
        receipt = a_receipt(10_000, card=card)
        before = booked()
        taken = client.post("/v1/receipts", json=receipt)
        assert taken.status_code == 200
        assert taken.json().keys() == {"key"}, "nothing is told of the card"
        assert booked()[2] == before[2] + 1, "the receipt is kept"
        assert client.post("/v1/receipts", json=receipt).content == taken.content
        # Another till of the store sends it again, as this one may in an hour.
        first = till.post("/v1/receipts", json=receipt)
        assert first.headers["Idempotency-Replayed"] == "true"
        assert first.json().get("nothing", "") == nothing
        assert ("balances" in first.json()) is (card == KNOWN)


def test_receipts_are_guesses_too(speak: Speak, a_receipt: Make, booked: Count) -> None:
    client = speak()
    before = booked()
    for _ in range(ALLOWED):
        answer = client.post("/v1/receipts", json=of_store(client, a_receipt(card=unknown())))
        assert answer.json()["nothing"] == "card-unknown"
    lines = [of_store(client, a_receipt(card=unknown() if n else KNOWN)) for n in range(5)]
    answer = client.post("/v1/receipts/batch", content="\n".join(map(json.dumps, lines)))
    assert [set(json.loads(line)) for line in answer.text.splitlines()] == [{"key"}] * 5
    assert refused(client.get(f"/v1/cards/{KNOWN}"))
    assert booked()[2] == before[2] + ALLOWED + 5


def test_a_batch_that_asks_for_too_many_is_told_nothing_of_any(
    speak: Speak, a_receipt: Make
) -> None:
    client = speak()
    cards_read = [KNOWN, *(unknown() for _ in range(ALLOWED + 1))]
    lines = [of_store(client, a_receipt(card=card)) for card in cards_read]
    answer = client.post("/v1/receipts/batch", content="\n".join(map(json.dumps, lines)))
    assert [set(json.loads(line)) for line in answer.text.splitlines()] == [{"key"}] * len(lines)


def test_what_a_refused_receipt_says_of_the_card_is_not_told(
    speak: Speak, a_receipt: Make, booked: Count
) -> None:
    client = speak()
    use_up(client)
    paid = [{"kind": "bonus", "amount_minor": 10_000}]
    before = booked()
    for card in (KNOWN, unknown()):
        for proof in ("staff", ""):
            receipt = of_store(client, a_receipt(10_000, card=card, tenders=paid, proof=proof))
            assert refused(client.post("/v1/receipts", json=receipt))
    # What is wrong with the receipt itself is told.
    uneven = of_store(client, a_receipt(10_000, total_minor=1))
    assert code(client.post("/v1/receipts", json=uneven)) == (422, "amounts-do-not-add-up")
    assert booked() == before


def test_returns_are_taken_whoever_guessed(
    speak: Speak, till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    sale = a_receipt(10_000)
    assert till.post("/v1/receipts", json=sale).status_code == 200
    client = speak("north")
    use_up(client)
    back = {
        **{name: sale[name] for name in ("store", "till", "business_day")},
        "number": f"R{sale['number']}",
        "at": datetime.now(UTC).isoformat(),
        "sale": {name: sale[name] for name in ("store", "till", "business_day", "number")},
        "lines": [{"line": 1, "amount_minor": 10_000}],
    }
    before = booked()
    taken = client.post("/v1/returns", json=back)
    assert (taken.status_code, set(taken.json())) == (200, {"key"})
    assert booked()[2] == before[2] + 1
    assert till.post("/v1/returns", json=back).json()["taken_back"] == {"bonus": 100}


def test_other_stores_look_on(speak: Speak) -> None:
    use_up(guesser := speak())
    assert refused(guesser.get(f"/v1/cards/{KNOWN}"))
    assert speak(guesser.headers["X-Store"]).get(f"/v1/cards/{KNOWN}").status_code == 200
    assert speak().get(f"/v1/cards/{KNOWN}").status_code == 200


def test_the_operator_is_told_once_who_guesses_and_no_number(
    speak: Speak, caplog: pytest.LogCaptureFixture
) -> None:
    client, guessed = speak(), [unknown() for _ in range(3 * ALLOWED)]
    with caplog.at_level(logging.WARNING, logger="kantis.api.access"):
        for number in guessed:
            client.get(f"/v1/cards/{number}")
    (line,) = [message for message in caplog.messages if client.headers["X-Store"] in message]
    assert f"the till {client.headers['X-Store']}/guesser of alltid asked for {ALLOWED}" in line
    assert not [number for number in guessed if number in caplog.text]


def test_wrong_tokens_are_limited_and_the_right_one_is_let_in(
    fresh_database: Callable[[str], str],
    set_up_shop: Callable[[str], None],
    serving: Callable[[ASGI], AbstractContextManager[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A database of its own: all tests of a process come from one address.
    set_up_shop(fresh_database(APP))
    started = datetime.now(UTC)
    limits = Limits(wrong_tokens_per_minute=5)
    with (
        open_pool(fresh_database(APP)) as pool,
        serving(build_asgi(pool, {"api"}, limits)) as url,
        httpx.Client(base_url=url) as client,
    ):
        path = f"/v1/cards/{KNOWN}"
        answers = [
            client.get(path, headers={"Authorization": f"Bearer {uuid4()}"}) for _ in range(8)
        ]
        # Without any token nothing is looked up, so nothing is counted.
        assert code(client.get(path)) == (401, "token-unknown")
        right = {"Authorization": "Bearer till-alltid-north"}
        assert client.get(path, headers=right).status_code == 200
    if started.minute == datetime.now(UTC).minute:
        assert [code(one) for one in answers] == [(401, "token-unknown")] * 5 + [
            (429, "too-many-wrong-tokens")
        ] * 3
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
        assert [m for m in caplog.messages if "too many wrong tokens: 5 from '127.0.0.1'" in m]


@pytest.mark.parametrize(
    ("host", "counted_by"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_an_address_is_counted_by_its_network(host: str, counted_by: str) -> None:
    assert address_of(host) == counted_by


# --- the same answer -----------------------------------------------------------------------


def a_card_not_yet_issued(pool: ConnectionPool, account_id: int) -> str:
    number = draw_card_number()
    with pool.connection() as connection:
        cards.issue_card(
            connection,
            programme="alltid",
            issue=cards.Issue(account_id=account_id, kind="customer-card", role="main"),
            request_key=str(uuid4()),
            at=datetime.now(UTC) + timedelta(days=1),
            warrant=Warrant("test"),
            drawn_number=number,
        )
    return number


# A card that is made out can be blocked, issued or not.
@pytest.mark.parametrize("way", sorted(ASKED.keys() - {"block"}))
def test_every_card_that_is_none_gets_the_same_answer(
    till: httpx.Client, pool: ConnectionPool, a_member: Enrol, a_receipt: Make, way: str
) -> None:
    account_id, card = a_member()
    wrong_digit = card[:-1] + str((int(card[-1]) + 1) % 10)
    receipt = a_receipt()
    answers = []
    for number in (unknown(), COOP_CARD, wrong_digit, a_card_not_yet_issued(pool, account_id)):
        answer = ASKED[way](till, number, receipt)
        answers.append((answer.status_code, answer.text.replace(number, "N")))
    assert len(set(answers)) == 1, answers
    assert "card-unknown" in answers[0][1]


# --- drawn numbers -------------------------------------------------------------------------


def test_drawn_numbers_are_random_digits_with_a_check_digit() -> None:
    drawn = [draw_card_number() for _ in range(5_000)]
    assert len(set(drawn)) == len(drawn)
    assert all(len(number) == 13 and ean.is_valid(number) for number in drawn)
    # Each digit at each of the twelve places about a tenth of the time: 500, and 5 sigma is 106.
    for place in range(12):
        counts = [sum(number[place] == digit for number in drawn) for digit in "0123456789"]
        assert all(abs(count - 500) < 107 for count in counts), (place, counts)
    # No order: a number is above the one before half of the time, and never next to it.
    values = [int(number[:-1]) for number in drawn]
    rises = sum(a < b for a, b in itertools.pairwise(values))
    assert abs(rises - 2_500) < 250
    assert min(abs(a - b) for a, b in itertools.pairwise(values)) > 1


def test_every_number_that_a_desk_hands_out_is_drawn(till: httpx.Client, a_member: Enrol) -> None:
    account_id, first = a_member()
    issued = till.post(
        "/v1/cards",
        json={"account_id": account_id, "kind": "customer-card", "role": "main"},
        headers={"Idempotency-Key": str(uuid4())},
    ).json()["number"]
    replaced = till.post(f"/v1/cards/{first}/replace", json={}).json()["number"]
    handed = [int(number[:12]) for number in (first, issued, replaced)]
    assert all(ean.is_valid(number) for number in (first, issued, replaced))
    assert min(abs(a - b) for a, b in itertools.combinations(handed, 2)) > 1_000
