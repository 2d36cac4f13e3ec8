import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from kantis.core.receipt import (
    LINES_MAX,
    Line,
    Receipt,
    Return,
    SaleKey,
    fingerprint,
    first_difference,
    key_of,
)

SALE: dict[str, Any] = {
    "store": "s1",
    "till": "2",
    "business_day": "2017-06-30",
    "number": "44",
    "at": "2017-06-30T12:00:00+03:00",
    "currency": "EUR",
    "total_minor": 1250,
    "lines": [{"amount_minor": 1250, "category": "food/dairy"}],
}


def decoded(**changes: object) -> Receipt:
    return msgspec.json.decode(json.dumps(SALE | changes), type=Receipt)


def line(**fields: object) -> list[dict[str, object]]:
    return [{"amount_minor": 1} | fields]


@pytest.mark.parametrize(
    "changes",
    [
        {"total_minor": float("nan")},
        {"total_minor": 12.5},
        {"total_minor": "1250"},
        {"total_minor": True},
        {"total_minor": 2**64},
        {"total_minor": 10**12 + 1},
        {"total_minor": None},
        {"at": "2017-06-30T12:00:00"},
        {"at": 1498813200},
        {"at": "9999-12-31T23:59:59Z"},
        {"at": "0001-01-01T00:00:00Z"},
        {"business_day": "2017-06-31"},
        {"store": "s/1"},
        {"store": "s1\n"},
        {"store": ""},
        {"number": "n" * 65},
        {"currency": "eur"},
        {"discount": 5},
        {"lines": line(discount=5)},
        {"lines": line(amount_minor=2**64)},
        {"lines": line(vat_basis_points=-1)},
        {"lines": [{"category": "food"}]},
        {"lines": line() * (LINES_MAX + 1)},
        {"tenders": [{"kind": "cash"}]},
        {"shown": ["1"] * 11},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_no_till_can_mean_is_rejected(changes: dict[str, object]) -> None:
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        decoded(**changes)


@pytest.mark.parametrize("missing", ["store", "number", "at", "total_minor", "lines", "currency"])
def test_nothing_that_matters_may_be_missing(missing: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=missing):
        msgspec.json.decode(
            json.dumps({name: value for name, value in SALE.items() if name != missing}),
            type=Receipt,
        )


def test_as_many_lines_as_allowed_are_read() -> None:
    assert len(decoded(lines=line() * LINES_MAX).lines) == LINES_MAX


def test_a_return_brings_back_something() -> None:
    back = {name: SALE[name] for name in ("store", "till", "business_day", "number", "at")}
    back["sale"] = {name: SALE[name] for name in ("store", "till", "business_day", "number")}
    good: dict[str, Any] = back | {"lines": [{"line": 1, "amount_minor": 50}]}
    assert msgspec.convert(good, Return, strict=False).lines[0].amount_minor == 50
    for lines in ([], [{"line": 0, "amount_minor": 50}], [{"line": 1, "amount_minor": 0}]):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(good | {"lines": lines}, Return, strict=False)


def test_the_key_is_issuer_store_till_day_and_number() -> None:
    receipt = decoded()
    sale = SaleKey("s1", "2", receipt.business_day, "44")
    assert key_of("shop", receipt) == key_of("shop", sale) == "shop/s1/2/2017-06-30/44"


def test_the_same_content_has_the_same_fingerprint_however_it_is_written() -> None:
    receipt = decoded()
    utc = msgspec.structs.replace(receipt, at=receipt.at.astimezone(UTC))
    tokyo = msgspec.structs.replace(receipt, at=receipt.at.astimezone(timezone(timedelta(hours=9))))
    spelled_out = decoded(
        tenders=[],
        training=False,
        lines=[{"category": "food/dairy", **line()[0], "amount_minor": 1250}],
    )
    assert len({fingerprint(one) for one in (receipt, utc, tokyo, spelled_out)}) == 1


def test_another_content_has_another_fingerprint_and_names_the_field() -> None:
    receipt = decoded()
    for changed in (
        msgspec.structs.replace(receipt, card="1"),
        msgspec.structs.replace(receipt, lines=(Line(1250),)),
        msgspec.structs.replace(receipt, at=datetime(2017, 6, 30, 9, 0, 1, tzinfo=UTC)),
    ):
        assert fingerprint(changed) != fingerprint(receipt)
    assert first_difference(receipt, receipt) == ""
    assert first_difference(receipt, decoded(total_minor=1)) == "total_minor"
    assert first_difference(receipt, decoded(card="1")) == "card"
