"""Bad input is told what is wrong with it, and books nothing."""

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

Json = dict[str, Any]
Make = Callable[..., Json]
Count = Callable[[], list[int]]

NOT_JSON = (400, "not-json")
MALFORMED = (422, "malformed")
IMPOSSIBLE = (422, "time-impossible")
UNEVEN = (422, "amounts-do-not-add-up")

PATHS = ("/v1/receipts", "/v1/quotes")

SOON = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

CHANGED: dict[str, tuple[Json, tuple[int, str], str]] = {
    # Each is a good receipt but for this; the last is the path of the field.
    "lines and total differ": ({"total_minor": 9_999}, UNEVEN, ""),
    "no lines": ({"lines": []}, UNEVEN, ""),
    "tenders and total differ": (
        {"tenders": [{"kind": "cash", "amount_minor": 1}]},
        UNEVEN,
        "",
    ),
    "unknown currency": ({"currency": "EUR"}, (422, "currency-unknown"), ""),
    "no currency at all": ({"currency": "nok"}, MALFORMED, "$.currency"),
    "time without offset": ({"at": "2026-01-01T10:00:00"}, MALFORMED, "$.at"),
    "time that is a number": ({"at": 1_700_000_000}, MALFORMED, "$.at"),
    "the first year": ({"at": "0001-01-01T00:00:00+14:00"}, MALFORMED, "$"),
    "the last year": ({"at": "9999-12-31T23:59:59-12:00"}, MALFORMED, "$"),
    "almost the last year": ({"at": "9998-12-31T23:59:59-23:59"}, MALFORMED, "$"),
    "almost the first year": ({"at": "0002-01-01T00:00:00+23:59"}, MALFORMED, "$"),
    "far ahead": ({"at": "9997-12-31T23:59:59Z"}, IMPOSSIBLE, ""),
    "long ago": ({"at": "0003-01-01T00:00:00Z"}, IMPOSSIBLE, ""),
    "an hour ahead": ({"at": SOON}, IMPOSSIBLE, ""),
    "before the first terms": ({"at": "2015-12-31T10:00:00Z"}, IMPOSSIBLE, ""),
    "a leap second": ({"at": "2016-12-31T23:59:60Z"}, MALFORMED, "$.at"),
    "day zero": ({"business_day": "2026-00-00"}, MALFORMED, "$.business_day"),
    "Arabic digits in a date": ({"business_day": "٢٠٢٦-٠١-٠١"}, MALFORMED, "$.business_day"),
    "Arabic digits in a number": ({"number": "١٢٣"}, MALFORMED, "$.number"),
    "a separator in a number": ({"number": "1/2"}, MALFORMED, "$.number"),
    "a line break after a number": ({"number": "1\n"}, MALFORMED, "$.number"),
    "a line without amount": ({"lines": [{}]}, MALFORMED, "$.lines[0]"),
    "an amount that is text": (
        {"lines": [{"amount_minor": "10000"}]},
        MALFORMED,
        "$.lines[0].amount_minor",
    ),
    "an amount with decimals": (
        {"lines": [{"amount_minor": 100.5}]},
        MALFORMED,
        "$.lines[0].amount_minor",
    ),
    "2 to the 64": ({"total_minor": 2**64}, MALFORMED, "$.total_minor"),
    "minus 2 to the 63": ({"total_minor": -(2**63)}, MALFORMED, "$.total_minor"),
    "too many lines": ({"lines": [{"amount_minor": 2}] * 5_001}, MALFORMED, "$.lines"),
    "too many tenders": (
        {"tenders": [{"kind": "cash", "amount_minor": 0}] * 51},
        MALFORMED,
        "$.tenders",
    ),
    "nothing at all": ({"card": None}, MALFORMED, "$.card"),
    "an unknown field": ({"discount": 1}, MALFORMED, "$"),
    "a zero character in a card": ({"card": "70\x0000"}, MALFORMED, "$"),
    "a zero character in a category": (
        {"lines": [{"amount_minor": 10_000, "category": "\x00"}]},
        MALFORMED,
        "$",
    ),
    "a lone surrogate": ({"card": "\ud800"}, NOT_JSON, ""),
    "the other lone surrogate": ({"card": "\udc00"}, NOT_JSON, ""),
    "bonus without an account": (
        {"card": "", "tenders": [{"kind": "bonus", "amount_minor": 10_000}]},
        (409, "card-not-usable"),
        "",
    ),
    "bonus without a proof": (
        {"tenders": [{"kind": "bonus", "amount_minor": 10_000}]},
        (403, "proof-missing"),
        "",
    ),
}

WRITTEN: dict[str, tuple[Callable[[bytes], bytes], tuple[int, str]]] = {
    # What is done to the bytes of a good receipt.
    "nothing": (lambda _: b"", NOT_JSON),
    "no JSON": (lambda _: b"hello", NOT_JSON),
    "half": (lambda body: body[:-9], NOT_JSON),
    "twice": (lambda body: body + body, NOT_JSON),
    "not a number": (lambda body: body.replace(b"10000", b"NaN"), NOT_JSON),
    "infinite": (lambda body: body.replace(b"10000", b"1e999"), MALFORMED),
    "5,000 digits": (lambda body: body.replace(b"10000", b"1" * 5_000), MALFORMED),
    "not UTF-8": (lambda body: body.replace(b'"NOK"', b'"\xff"'), NOT_JSON),
    "UTF-16": (lambda body: body.decode().encode("utf-16"), NOT_JSON),
    "a byte order mark": (lambda body: b"\xef\xbb\xbf" + body, NOT_JSON),
    "a raw zero character": (lambda body: body.replace(b"NOK", b"\x00OK"), NOT_JSON),
    "a field twice": (lambda body: body[:-1] + b',"currency":"NOK"}', MALFORMED),
    "a field twice in a line": (
        lambda body: body.replace(b'{"amount_minor":', b'{"amount_minor":1,"amount_minor":'),
        MALFORMED,
    ),
    "deep": (lambda _: b"[" * 100_000, MALFORMED),
    "deep within": (lambda body: body.replace(b'"NOK"', b"[" * 100_000), MALFORMED),
    "deep objects": (lambda _: b'{"lines":[' * 50_000, MALFORMED),
    "100,000 lines": (
        lambda body: body.replace(b'"lines":[', b'"lines":[' + b"{}," * 100_000),
        MALFORMED,
    ),
    "10 MB": (lambda body: body + b" " * 10_000_000, (413, "too-large")),
    "a list": (lambda body: b"[" + body + b"]", MALFORMED),
}


def said(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body = answer.json()
    assert set(body) == {"type", "title", "status", "code", "detail", "way_out", "fields"}
    assert body["status"] == answer.status_code
    assert "Traceback" not in answer.text
    return answer.status_code, body["code"]


@pytest.mark.parametrize("name", CHANGED)
def test_a_bad_receipt_is_told_what_is_wrong(
    till: httpx.Client, a_receipt: Make, booked: Count, name: str
) -> None:
    change, expected, path = CHANGED[name]
    before = booked()
    # json.dumps escapes what is not ASCII, so that lone surrogates can be sent at all.
    body = json.dumps(a_receipt(10_000) | change)
    for address in PATHS:
        answer = till.post(address, content=body)
        assert said(answer) == expected
        assert answer.json()["fields"].get("path", "") == path
    (line,) = till.post("/v1/receipts/batch", content=body).content.splitlines()
    assert (json.loads(line)["status"], json.loads(line)["code"]) == expected
    assert booked() == before


@pytest.mark.parametrize("name", WRITTEN)
def test_a_body_that_is_no_receipt_is_told_so(
    till: httpx.Client, a_receipt: Make, booked: Count, name: str
) -> None:
    spoil, expected = WRITTEN[name]
    before = booked()
    body = spoil(json.dumps(a_receipt(10_000), separators=(",", ":")).encode())
    for address in PATHS:
        assert said(till.post(address, content=body)) == expected
    assert booked() == before
    assert till.post("/v1/receipts", json=a_receipt()).status_code == 200


def test_the_field_that_is_there_twice_is_named(till: httpx.Client, a_receipt: Make) -> None:
    body = json.dumps(a_receipt())[:-1] + ',"till":"9"}'
    answer = till.post("/v1/receipts", content=body)
    assert answer.json()["fields"] == {"path": "$..till"}


def test_a_backslash_before_u0000_is_no_zero_character(till: httpx.Client, a_receipt: Make) -> None:
    receipt = a_receipt()
    receipt["lines"][0]["product"] = "\\u0000"
    assert till.post("/v1/receipts", json=receipt).status_code == 200


def test_a_receipt_of_5000_lines_is_taken(till: httpx.Client, a_receipt: Make) -> None:
    answer = till.post("/v1/receipts", json=a_receipt(*[20] * 5_000))
    assert answer.json()["earned"] == {"bonus": 1_000}


def test_a_batch_of_too_many_lines_is_refused_whole(till: httpx.Client, booked: Count) -> None:
    before = booked()
    answer = till.post("/v1/receipts/batch", content=b"1\n" * 1_001)
    assert said(answer) == MALFORMED
    answer = till.post("/v1/receipts/batch", content=b"1\n" * 600_000)
    assert said(answer) == (413, "too-large")
    assert booked() == before


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", "Basic dGlsbA==", "till-alltid-north", "Bearer å"],
)
def test_without_a_valid_token_nothing_is_read(
    base_url: str, a_receipt: Make, booked: Count, authorization: str
) -> None:
    before = booked()
    headers = [(b"Authorization", authorization.encode("latin-1"))]
    for body in (json.dumps(a_receipt()), "hello"):
        answer = httpx.post(f"{base_url}/v1/receipts", content=body, headers=headers)
        assert said(answer) == (401, "token-unknown")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert booked() == before


def test_addresses_and_methods_that_there_are_not(till: httpx.Client) -> None:
    for path in ("/v1", "/v1/", "/v1/nothing", "/v1/receipts/1", "/v1/%00"):
        assert said(till.get(path)) == (404, "not-found")
    answer = till.delete("/v1/receipts")
    assert said(answer) == (405, "method-not-allowed")
    assert "POST" in answer.headers["Allow"]


def test_which_methods_an_address_knows_is_told_without_a_token(base_url: str) -> None:
    answer = httpx.options(f"{base_url}/v1/receipts")
    assert (answer.status_code, answer.headers["Allow"]) == (204, "OPTIONS, POST")


def test_a_till_that_goes_away_in_the_middle_leaves_nothing(
    till: httpx.Client, base_url: str, booked: Count
) -> None:
    before = booked()
    address = urlsplit(base_url)
    for _ in range(3):
        with socket.create_connection((address.hostname or "", address.port or 0)) as half:
            half.sendall(
                b"POST /v1/receipts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer"
                b' till-alltid-north\r\nContent-Length: 1000\r\n\r\n{"store"'
            )
    assert till.get("/health").status_code == 200
    assert booked() == before
