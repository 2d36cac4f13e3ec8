"""What tills ask, over HTTP."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

Json = dict[str, Any]
Make = Callable[..., Json]
Enrol = Callable[[], tuple[int, str]]
Count = Callable[[], list[int]]

CARD = "7000000000001"
COOP_CARD = "7000000000003"


def problem(answer: httpx.Response, status: int, code: str) -> Json:
    """Check that an answer is this problem; give its fields."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["way_out"]
    fields: Json = body["fields"]
    return fields


def test_a_quote_is_what_the_receipt_earns_and_writes_nothing(
    till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    receipt = a_receipt(12_340)
    before = booked()
    quoted = till.post("/v1/quotes", json=receipt)
    assert booked() == before
    taken = till.post("/v1/receipts", json=receipt)
    assert (quoted.status_code, taken.status_code) == (200, 200)
    assert quoted.json() == taken.json()
    assert taken.json()["earned"] == {"bonus": 123}
    assert taken.json()["by_clause"] == [{"clause": "S-5", "unit": "bonus", "amount": 123}]


def test_a_repeated_receipt_gets_its_first_answer_byte_for_byte(
    till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    receipt = a_receipt(20_000, 999)
    first = till.post("/v1/receipts", json=receipt)
    assert "Idempotency-Replayed" not in first.headers
    till.post("/v1/receipts", json=a_receipt(30_000))  # the account moves on
    before = booked()
    # Written down otherwise, it is still the same receipt.
    at = datetime.fromisoformat(receipt["at"]).astimezone().isoformat()
    for again in (receipt, dict(reversed(receipt.items())), receipt | {"at": at}):
        second = till.post("/v1/receipts", content=json.dumps(again, indent=3))
        assert second.headers["Idempotency-Replayed"] == "true"
        assert second.content == first.content
    assert booked() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lines", [{"amount_minor": 10_000, "category": "tobacco"}]),
        ("card", COOP_CARD),
        ("training", True),
        ("tenders", [{"kind": "cash", "amount_minor": 10_000}]),
    ],
)
def test_another_receipt_of_the_same_number_is_refused_by_field(
    till: httpx.Client, a_receipt: Make, booked: Count, field: str, value: object
) -> None:
    receipt = a_receipt(10_000)
    till.post("/v1/receipts", json=receipt)
    before = booked()
    answer = till.post("/v1/receipts", json=receipt | {field: value})
    assert problem(answer, 409, "receipt-differs")["field"] == field
    assert booked() == before


@pytest.mark.parametrize(
    ("card", "nothing"), [("4711", "card-unknown"), ("٤٧١١", "card-unknown"), ("", "no-card")]
)
def test_a_receipt_without_a_known_card_is_kept(
    till: httpx.Client, a_receipt: Make, booked: Count, card: str, nothing: str
) -> None:
    before = booked()
    receipt = a_receipt(card=card)
    answer = till.post("/v1/receipts", json=receipt)
    assert (answer.status_code, answer.json()["nothing"]) == (200, nothing)
    assert "earned" not in answer.json()
    assert booked() == [before[0], before[1] + 1, before[2] + 1, *before[3:]]
    assert till.post("/v1/receipts", json=receipt).content == answer.content


def test_a_blocked_card_earns_nothing_and_says_so(
    till: httpx.Client, a_receipt: Make, a_member: Enrol, booked: Count
) -> None:
    _, card = a_member()
    assert till.post(f"/v1/cards/{card}/block").status_code == 200
    before = booked()
    answer = till.post("/v1/receipts", json=a_receipt(card=card))
    assert (answer.status_code, answer.json()["nothing"]) == (200, "card-blocked")
    assert booked()[1] == before[1] + 1


def test_a_card_that_is_not_active_yet_earns_when_it_turns_out_to_have_been(
    coop_till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    enrolled = coop_till.post(
        "/v1/members",
        json={"applicant": {"born_on": "1990-01-01"}, "card_kind": "card"},
        headers={"Idempotency-Key": str(uuid4())},
    ).json()
    card = enrolled["card_number"]
    before = booked()
    receipt = a_receipt(10_000, card=card, currency="EUR")
    answer = coop_till.post("/v1/receipts", json=receipt)
    assert (answer.status_code, answer.json()["nothing"]) == (200, "card-not-yet-active")
    assert booked()[1] == before[1] + 1
    shown = coop_till.get(f"/v1/cards/{card}").json()
    assert (shown["usable"], shown["why_not"]) == (False, "card-not-yet-active")

    # Activated in the store, it works from then on; what it was used for before stays as it is.
    assert coop_till.post(f"/v1/cards/{card}/activate", json={}).status_code == 200
    later = coop_till.post("/v1/receipts", json=a_receipt(10_000, card=card, currency="EUR"))
    assert later.json()["earned"]["points"] > 0
    assert coop_till.post("/v1/receipts", json=receipt).content == answer.content


def test_another_stores_receipt_or_token_is_refused(
    till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    before = booked()
    receipt = a_receipt(store="south")
    for path in ("/v1/quotes", "/v1/receipts"):
        fields = problem(till.post(path, json=receipt), 403, "store-not-yours")
        assert fields == {"store": "south", "yours": "north"}
    assert booked() == before


def test_a_batch_answers_each_line_as_if_it_came_alone(till: httpx.Client, a_receipt: Make) -> None:
    known = a_receipt(5_000)
    alone = till.post("/v1/receipts", json=known)
    lines = [
        json.dumps(a_receipt(10_000)),
        "{not JSON",
        json.dumps(a_receipt(10_000, total_minor=9_999)),
        json.dumps(known),
        json.dumps(a_receipt(store="south")),
        "",
        json.dumps(known | {"currency": "SEK"}),
        json.dumps(a_receipt(10_000, card="")),
        json.dumps(a_receipt(10_000, at="2017-01-01T10:00:00")),
        json.dumps(a_receipt(20_000)),
    ]
    answer = till.post("/v1/receipts/batch", content="\n".join(lines) + "\r\n")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    said = answer.content.splitlines()
    codes = [json.loads(line).get("code") for line in said]
    assert codes == [
        None,
        "not-json",
        "amounts-do-not-add-up",
        None,
        "store-not-yours",
        "receipt-differs",
        None,
        "malformed",
        None,
    ]
    assert said[3] == alone.content
    assert json.loads(said[8])["earned"]["bonus"] == 200
    again = till.post("/v1/receipts/batch", content="\n".join(lines))
    assert again.content == answer.content


def test_a_batch_of_many_is_booked_whole(
    till: httpx.Client, a_receipt: Make, booked: Count
) -> None:
    before = booked()
    receipts = [a_receipt(1_000 + i, card=CARD if i % 3 else "") for i in range(150)]
    answer = till.post("/v1/receipts/batch", content="\n".join(map(json.dumps, receipts)))
    keys = [json.loads(line)["key"].rpartition("/")[2] for line in answer.content.splitlines()]
    assert keys == [receipt["number"] for receipt in receipts]
    assert booked()[:3] == [before[0] + 100, before[1] + 50, before[2] + 150]


def test_a_batch_of_nothing_is_answered_with_nothing(till: httpx.Client) -> None:
    answer = till.post("/v1/receipts/batch", content=b"\n \n")
    assert (answer.status_code, answer.content) == (200, b"")


def sale_key(document: Json) -> Json:
    return {name: document[name] for name in ("store", "till", "business_day", "number")}


def test_a_return_takes_back_what_its_lines_earned(till: httpx.Client, a_receipt: Make) -> None:
    sale = a_receipt(10_000, 5_000)
    till.post("/v1/receipts", json=sale)
    back = {
        "store": "north",
        "till": "1",
        "business_day": sale["business_day"],
        "number": f"R{sale['number']}",
        "at": datetime.now(UTC).isoformat(),
        "sale": sale_key(sale),
        "lines": [{"line": 1, "amount_minor": 10_000}],
    }
    first = till.post("/v1/returns", json=back)
    assert (first.status_code, first.json()["taken_back"]) == (200, {"bonus": 100})
    second = till.post("/v1/returns", json=back)
    assert second.content == first.content
    assert second.headers["Idempotency-Replayed"] == "true"
    differs = back | {"lines": [{"line": 2, "amount_minor": 5_000}]}
    assert problem(till.post("/v1/returns", json=differs), 409, "receipt-differs")
    more = back | {"number": f"S{sale['number']}", "lines": [{"line": 1, "amount_minor": 1}]}
    assert problem(till.post("/v1/returns", json=more), 409, "returned-more-than-bought")
    of_return = back | {"number": f"U{sale['number']}", "sale": sale_key(back)}
    assert problem(till.post("/v1/returns", json=of_return), 404, "sale-unknown")
    early = back | {"number": f"T{sale['number']}", "sale": back["sale"] | {"number": "later"}}
    assert till.post("/v1/returns", json=early).json()["nothing"] == "sale-awaited"
    assert problem(till.post("/v1/returns", json=back | {"store": "south"}), 403, "store-not-yours")


def hold_of(
    till: httpx.Client, card: str, amount: int, key: str = "", **changes: object
) -> httpx.Response:
    body = {"card": card, "unit": "bonus", "amount": amount, "proof": "staff"} | changes
    headers = {"Idempotency-Key": key or str(uuid4())}
    return till.post("/v1/holds", json=body, headers=headers)


def paid(hold_id: str, amount: int, total: int = 10_000) -> list[Json]:
    return [
        {"kind": "bonus", "amount_minor": amount, "hold": hold_id},
        {"kind": "cash", "amount_minor": total - amount},
    ]


def test_a_hold_is_captured_by_its_receipt(
    till: httpx.Client, a_receipt: Make, a_rich_member: Enrol
) -> None:
    _, card = a_rich_member()
    held = hold_of(till, card, 8_000, key := f"hold-{uuid4()}")
    assert held.status_code == 200
    hold_id = held.json()["hold_id"]
    assert held.json()["answer"]["balances"]["bonus"] == {
        "balance": 50_000,
        "usable": 42_000,
        "held": 8_000,
    }
    assert hold_of(till, card, 8_000, key).content == held.content
    assert problem(hold_of(till, card, 7_999, key), 409, "idempotency-key-reused")

    sale = a_receipt(10_000, card=card, tenders=paid(hold_id, 5_000))
    captured = till.post(f"/v1/holds/{hold_id}/capture", json=sale)
    assert (captured.status_code, captured.json()["redeemed"]) == (200, {"bonus": 5_000})
    assert captured.json()["balances"]["bonus"]["usable"] == 45_000
    # The receipt is one, whichever way it comes again.
    for path in (f"/v1/holds/{hold_id}/capture", "/v1/receipts"):
        again = till.post(path, json=sale)
        assert again.content == captured.content
        assert again.headers["Idempotency-Replayed"] == "true"
    other = a_receipt(10_000, card=card, tenders=paid(hold_id, 1_000))
    answer = till.post(f"/v1/holds/{hold_id}/capture", json=other)
    assert problem(answer, 409, "hold-unknown") == {"hold": hold_id}


@pytest.mark.parametrize("seconds", [-240, 240])
def test_a_tills_clock_may_differ_from_ours(
    till: httpx.Client, a_receipt: Make, seconds: int
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    # Something to hold, bought long enough ago.
    bought_at = at - timedelta(days=1)
    till.post("/v1/receipts", json=a_receipt(10_000, at=bought_at.isoformat()))
    held = hold_of(till, CARD, 10, at=at.isoformat())
    assert held.status_code == 200, held.text
    before = till.get(f"/v1/cards/{CARD}").json()["balances"]["bonus"]
    assert before["held"] == 10
    hold_id, later = held.json()["hold_id"], at + timedelta(seconds=5)
    sale = a_receipt(10_000, card=CARD, tenders=paid(hold_id, 10), at=later.isoformat())
    captured = till.post(f"/v1/holds/{hold_id}/capture", json=sale)
    assert captured.json()["redeemed"] == {"bonus": 10}
    assert "held" not in captured.json()["balances"]["bonus"]

    held = hold_of(till, CARD, 10, at=(later + timedelta(seconds=5)).isoformat())
    path = f"/v1/holds/{held.json()['hold_id']}/release"
    assert held.json()["answer"]["balances"]["bonus"]["held"] == 10
    released = till.post(
        path, json={"card": CARD, "at": (later + timedelta(seconds=9)).isoformat()}
    )
    assert "held" not in released.json()["balances"]["bonus"]


def test_a_clock_that_is_far_off_holds_nothing(till: httpx.Client, booked: Count) -> None:
    before = booked()
    for at in ("2016-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"):
        assert problem(hold_of(till, CARD, 10, at=at), 422, "time-impossible")
    assert problem(hold_of(till, CARD, 10, at="2026-11-23T10:00:00"), 422, "malformed")
    assert booked() == before


def test_a_hold_is_released_once(till: httpx.Client, a_rich_member: Enrol) -> None:
    _, card = a_rich_member()
    hold_id = hold_of(till, card, 8_000).json()["hold_id"]
    first = till.post(f"/v1/holds/{hold_id}/release", json={"card": card})
    assert first.json()["balances"]["bonus"]["usable"] == 50_000
    assert till.post(f"/v1/holds/{hold_id}/release", json={"card": card}).json() == first.json()
    other = till.post(f"/v1/holds/{'0' * 32}/release", json={"card": card})
    assert problem(other, 409, "hold-unknown")


def test_a_capture_names_its_hold_and_keeps_within_it(
    till: httpx.Client, a_receipt: Make, a_rich_member: Enrol, booked: Count
) -> None:
    _, card = a_rich_member()
    hold_id = hold_of(till, card, 8_000).json()["hold_id"]
    before = booked()
    for sale, status, code in (
        (a_receipt(10_000, card=card), 422, "malformed"),
        (a_receipt(10_000, card=card, tenders=paid(hold_id, 8_001)), 409, "hold-too-small"),
        (a_receipt(10_000, tenders=paid(hold_id, 100)), 409, "hold-unknown"),
        (a_receipt(10_000, card="4711", tenders=paid(hold_id, 100)), 409, "card-not-usable"),
    ):
        assert problem(till.post(f"/v1/holds/{hold_id}/capture", json=sale), status, code)
    assert booked() == before


def test_a_hold_needs_a_proof_a_card_that_works_and_enough(
    till: httpx.Client, a_rich_member: Enrol, booked: Count
) -> None:
    _, card = a_rich_member()
    before = booked()
    missing = problem(hold_of(till, card, 100, proof=""), 403, "proof-missing")
    assert missing["accepted"] == ["staff"]
    assert problem(hold_of(till, card, 50_001), 409, "not-enough")["available"] == 50_000
    assert problem(hold_of(till, card, 100, unit="beans"), 422, "unit-not-spendable")
    assert problem(hold_of(till, "4711", 100), 404, "card-unknown")
    assert booked() == before
    till.post(f"/v1/cards/{card}/block")
    assert problem(hold_of(till, card, 100), 409, "card-not-usable")["why"] == "card-blocked"
    assert booked() == before


def test_a_till_sees_a_card_and_no_name(till: httpx.Client, a_rich_member: Enrol) -> None:
    account_id, card = a_rich_member()
    assert till.get(f"/v1/cards/{card}").json() == {
        "number": card,
        "kind": "customer-card",
        "role": "main",
        "account_id": account_id,
        "usable": True,
        "tier": "level-1",
        "balances": {"bonus": {"balance": 50_000, "usable": 50_000}},
    }
    # Another programme's card is none, however well it is known there.
    for number in ("4711", COOP_CARD, "x", "%00", "%F0%9F%98%80", "1" * 500):
        assert problem(till.get(f"/v1/cards/{number}"), 404, "card-unknown")


def test_a_late_receipt_is_quoted_and_booked(till: httpx.Client, a_receipt: Make) -> None:
    at = datetime.now(UTC) - timedelta(days=20)
    late = a_receipt(10_000, at=at.isoformat(), business_day=at.date().isoformat())
    assert till.post("/v1/quotes", json=late).json()["earned"] == {"bonus": 100}
    assert till.post("/v1/receipts", json=late).json()["earned"] == {"bonus": 100}


def test_a_hold_asked_again_gets_its_first_answer_though_its_card_is_blocked_since(
    till: httpx.Client, a_rich_member: Callable[[], tuple[int, str]]
) -> None:
    _, card = a_rich_member()
    body = {"card": card, "unit": "bonus", "amount": 100, "proof": "staff"}
    headers = {"Idempotency-Key": str(uuid4())}
    first = till.post("/v1/holds", json=body, headers=headers)
    assert first.status_code == 200
    assert till.post(f"/v1/cards/{card}/block").status_code == 200
    again = till.post("/v1/holds", json=body, headers=headers)
    assert (again.status_code, again.content) == (200, first.content)
    new = till.post("/v1/holds", json=body, headers={"Idempotency-Key": str(uuid4())})
    assert (new.status_code, new.json()["code"]) == (409, "card-not-usable")
    long_ago = body | {"at": "2026-01-01T10:00:00Z"}
    late = till.post("/v1/holds", json=long_ago, headers=headers)
    assert late.content == first.content, "the moment is no part of what was asked"
