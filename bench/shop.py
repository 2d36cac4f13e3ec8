"""What the benchmark's tills send: receipts of ten lines, each with a number of its own.

Only the standard library: the load comes from a process that imports little.
"""

import json
from random import Random

STORES = tuple(f"bench-{number}" for number in range(1, 9))
"""Each has a token of its own."""

FIRST_CARD = 2_800_000_000_000
"""The card of the household 0; the others follow."""

LINES = 10

TEMPLATES = 64 * len(STORES)
"""Different receipts; their numbers, instants and cards are put in when they are sent."""

STRIDE = 7_368_787
"""A prime: walking over the households in its steps meets each once, in no order of the table."""

AT_CHARACTERS = len("2026-11-25T10:15:00.000000+00:00")

_SEED = 20_160_101

_GOODS = (
    # category, its share of the lines, lowest and highest price in minor units, VAT
    ("grocery", 46, 79, 899, 1400),
    ("produce", 12, 49, 499, 1400),
    ("meat", 7, 249, 1899, 1400),
    ("meat-pckgd", 6, 199, 799, 1400),
    ("deli", 4, 199, 999, 1400),
    ("pastry", 4, 99, 599, 1400),
    ("drug-gm", 9, 149, 1999, 2550),
    ("nutrition", 3, 149, 899, 1400),
    ("mineral-water", 2, 89, 299, 1400),
    ("deposit", 4, 10, 40, 0),
    ("alcohol", 2, 199, 1499, 2550),
    ("tobacco", 1, 699, 1099, 2550),
)

_NUMBER, _AT, _CARD = "@number", "@at", "@card"


def household_of(number: int, households: int) -> int:
    """Give whose receipt a number is.

    All take turns: before a household comes again every other was there, so that its receipts
    never overtake each other.
    """
    return number * STRIDE % households


def template_of(number: int) -> int:
    """Give which template a receipt's number is made of."""
    return number % TEMPLATES


def store_of(number: int) -> str:
    """Name the store that sends a receipt's number."""
    return STORES[template_of(number) % len(STORES)]


def number_text(number: int) -> str:
    """Give a receipt's number as its till writes it."""
    return f"{number:010d}"


def lines_text() -> str:
    """Give the lines of one receipt as JSON."""
    return _compact(_lines(Random(_SEED)))


def requests(*, path: str, tokens: list[str], till: str, business_day: str) -> list[bytes]:
    """Give whole HTTP requests in which `%` puts the number, the instant and the card."""
    chance = Random(_SEED)
    made = []
    for index in range(TEMPLATES):
        store = STORES[index % len(STORES)]
        body = _body(chance, store=store, till=till, business_day=business_day)
        head = (
            f"POST {path} HTTP/1.1\r\n"
            "Host: localhost\r\n"
            f"Authorization: Bearer {tokens[index % len(STORES)]}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(filled(body, 0, b'0' * AT_CHARACTERS, 0))}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


def filled(request: bytes, number: int, at: bytes, household: int) -> bytes:
    """Put a number, an instant (`AT_CHARACTERS` long) and a household's card into a request."""
    return request % (number, at, FIRST_CARD + household)


def _body(chance: Random, *, store: str, till: str, business_day: str) -> bytes:
    lines = _lines(chance)
    total = sum(int(str(line["amount_minor"])) for line in lines)
    document = {
        "store": store,
        "till": till,
        "business_day": business_day,
        "number": _NUMBER,
        "at": _AT,
        "currency": "EUR",
        "total_minor": total,
        "lines": lines,
        "tenders": _tenders(chance, total),
        "card": _CARD,
    }
    text = _compact(document)
    assert "%" not in text, "nothing but the slots is put in later"
    slots = {f'"{_NUMBER}"': '"%010d"', f'"{_AT}"': '"%b"', f'"{_CARD}"': '"%013d"'}
    for slot, filler in slots.items():
        text = text.replace(slot, filler)
    return text.encode()


def _lines(chance: Random) -> list[dict[str, object]]:
    shares = [share for _, share, *_ in _GOODS]
    return [_line(chance, *goods) for goods in chance.choices(_GOODS, weights=shares, k=LINES)]


def _line(
    chance: Random, category: str, _share: int, lowest: int, highest: int, vat: int
) -> dict[str, object]:
    line: dict[str, object] = {
        "amount_minor": chance.randint(lowest, highest),
        "category": category,
        "product": str(chance.randint(800_000, 18_000_000)),
        "quantity_milli": 1000 * chance.choice((1, 1, 1, 1, 2, 3)),
        "vat_basis_points": vat,
    }
    if chance.random() < 1 / 4:
        line["own_brand"] = True
    if chance.random() < 1 / 3:
        line["reduced"] = True
    return line


def _tenders(chance: Random, total: int) -> list[dict[str, object]]:
    """Mostly one; now and then a part in cash."""
    kind = chance.choice(("card", "card", "card", "mastercard", "cash"))
    if chance.random() < 1 / 10:
        part = total // 2
        return [
            {"kind": "cash", "amount_minor": part},
            {"kind": "card", "amount_minor": total - part},
        ]
    return [{"kind": kind, "amount_minor": total}]


def _compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))
