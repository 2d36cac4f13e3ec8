"""Terms and cases files, spoiled: each is refused with its faults, or it runs.

The retailers' own files are mutated by line and by value, or replaced by chance bytes. Reading
either names the faults with their lines or accepts; what is accepted must not crash the fold.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest

from kantis import check as checking
from kantis.check_database import DatabaseWorld
from kantis.core.cases import Case, read_case
from kantis.core.events import (
    AnyEvent,
    Joined,
    Left,
    Opened,
    OpeningLot,
    Returned,
    RoleTaken,
    Sale,
    StatusChanged,
)
from kantis.core.explain import explain
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender, key_of
from kantis.core.refusals import Refusal
from kantis.core.replay import Fold, refold, replay
from kantis.core.terms import Terms
from kantis.core.terms_text import read_terms
from kantis.core.toml_text import TextFaulty
from kantis.db.cluster import APP
from kantis.db.connect import connect
from kantis.folder import Folder
from kantis.operations import publishing

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
FOLDERS = [Folder(path.parent) for path in sorted(ROOT.glob("programmes/*/cases"))]
OWN_CASES = {folder.name: [case for _, case in folder.cases()] for folder in FOLDERS}
TERMS = [path.read_text("utf-8") for path in sorted(ROOT.glob("programmes/*/[0-9]*.toml"))]
CASES = [path.read_text("utf-8") for path in sorted(ROOT.glob("programmes/*/cases/*.toml"))]
assert len(TERMS) == 4
assert len(CASES) > 40

RECENT, TOO_FAR = date(2015, 1, 1), date(2100, 1, 1)
"""Between these lies what a till's clock can say."""

VALUE = re.compile(r"(?<== )(?:\"[^\"]*\"|-?\d[\d.:TZ+-]*|true|false|\[[^\]\n]*\]|\{[^}\n]*\})")
WORD = re.compile(r"[a-z][a-z_-]+")
HEADER = re.compile(r"^\[+[^\]\n]+\]+$", re.MULTILINE)

VALUES = [
    *map(str, (0, 1, -1, 2, 12, 13, 28, 29, 31, 99, 100, 120, 1_000, 5_000, 10**9, 10**12)),
    *map(str, (10**12 + 1, 10**15, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63))),
    *("9" * 5_000, "0x10", "0o7", "0b1", "1_000", "1e3", "1e400", "-0", "-0.0", "0.5", "3.5"),
    *(
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
        "[]",
        "{}",
        "[[]]",
        "[1]",
        '[""]',
        "[{}]",
        "{ a = 1 }",
    ),
    *(
        '""',
        '" "',
        '"x"',
        '"0"',
        '"1/0"',
        '"0/1"',
        '"1/3"',
        '"999999999999999/1"',
        '"1/999999999999999"',
    ),
    *('"7/2"', '"0.000001"', '"999999999999999.999999"', '"-1"', '"١"', '"1/٣"', '"1e3"'),
    *('"\\u0000"', '"\\u202e"', '"\\ud800"', '"\\U0010ffff"', "'\\'", '"""\n"""', "'''x'''"),
    *('"bonus"', '"points"', '"plussa-money"', '"main"', '"staff"', '"NOK"', '"EUR"', '"UTC"'),
    *('"Europe/Helsinki"', '"../../etc/passwd"', '"Factory"', '"localtime"', '"posixrules"'),
    *('["bonus", "bonus"]', '["en"]', '["en", "en"]', '[""]', '["x", 1]', '{ category = ["a"] }'),
    *(
        "0001-01-01",
        "0001-12-31",
        "1899-12-31",
        "2015-12-31",
        "2016-01-01",
        "2016-02-29",
        "2020-01-01",
    ),
    *(
        "9998-12-31",
        "9999-01-01",
        "9999-12-31",
        "2016-02-30",
        "10000-01-01",
        "2016-01-01T00:00:00Z",
    ),
    *("2016-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "10:00:00"),
    *("[" * 500, "[" * 500 + "]" * 500, "{a=" * 500, "[" * 100_000, '"' + "x" * 100_000 + '"'),
]
LINES = [
    *(
        "unknown = 1",
        "[unknown]",
        "[[unknown]]",
        "[[earn]]",
        "[earn]",
        "[[tier]]",
        "[ladder]",
        "[[unit]]",
    ),
    *(
        "[a.b.c.d]",
        ".".join("a" * 300).join("[]"),
        "x.y.z = 1",
        "= 1",
        "clause",
        'text.en = ""',
        "\ufeff",
    ),
    *(
        "\x00",
        "\x0b",
        "\u2028",
        "\x85",
        "\r",
        '"""',
        "'''",
        "# \u202e",
        "text = 1",
        "name = 1",
        "kind = []",
    ),
    *(
        "[[transition]]\nclause = 'x'\nwhat = 'unit'\nold = 'a'\nnew = 'bonus'",
        "[terms]",
        "[[membership]]",
    ),
]


def spoil(text: str, chance: random.Random) -> str:
    """Spoil a file in one to four places."""
    for _ in range(chance.choice([1, 1, 1, 2, 3, 4])):
        text = spoil_once(text, chance) or "x"
    return text


def spoil_once(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    at = chance.randrange(len(lines) or 1)
    way = chance.choice(WAYS)
    if way in {"value", "number", "swap"} and (found := list(VALUE.finditer(text))):
        one = chance.choice(found)
        if way == "number" and (
            numbers := [hit for hit in found if re.fullmatch(r"\d{1,20}", hit[0])]
        ):
            one = chance.choice(numbers)
            new = str(int(one[0]) + chance.choice([-1, 1, 10, 1_000, 10**6, -int(one[0])]))
        elif way == "swap":
            new = chance.choice(found)[0]
        else:
            new = chance.choice(VALUES)
        return text[: one.start()] + new + text[one.end() :]
    match way:
        case "drop":
            del lines[at : at + chance.choice([1, 1, 1, 3, 10])]
        case "double":
            lines[at:at] = lines[at : at + chance.choice([1, 1, 5, 20])]
        case "move":
            lines.insert(chance.randrange(len(lines) or 1), lines.pop(at) if lines else "x")
        case "line":
            lines.insert(at, chance.choice(LINES))
        case "block":
            return without_block(text, chance)
        case "word":
            return replaced_word(text, chance)
        case "cut":
            return text[: chance.randrange(len(text) or 1)]
        case _:
            place = chance.randrange(len(text) or 1)
            some = "".join(chr(chance.choice(ODD)) for _ in range(chance.randint(1, 5)))
            return text[:place] + some + text[place + chance.randint(0, 3) :]
    return "\n".join(lines)


WAYS = (
    *("value", "value", "value", "value", "number", "number", "swap", "drop", "double", "move"),
    *("line", "block", "word", "word", "cut", "characters"),
)
ODD = (*range(32, 127), 0, 9, 10, 13, 0x7F, 0x85, 0xA0, 0x660, 0x202E, 0xFEFF, 0xFFFF, 0x1F600)


def without_block(text: str, chance: random.Random) -> str:
    """Leave a table out, or let it be there twice."""
    starts = [hit.start() for hit in HEADER.finditer(text)]
    if not starts:
        return text
    index = chance.randrange(len(starts))
    start, end = starts[index], [*starts, len(text)][index + 1]
    return text[:start] + text[start:end] * chance.choice([0, 2]) + text[end:]


def replaced_word(text: str, chance: random.Random) -> str:
    """Put another word of the file where one stands: a key, a kind, a name."""
    words = list(WORD.finditer(text))
    if not words:
        return text
    one = chance.choice(words)
    return text[: one.start()] + chance.choice(words)[0] + text[one.end() :]


# --- what accepted terms must stand ---------------------------------------------------------


def life(terms: Terms) -> Iterator[AnyEvent]:
    """Let somebody join, buy, hold, pay, bring back, change and leave under some terms."""
    start = datetime.combine(max(terms.valid_from, RECENT), time.min, UTC) + timedelta(days=2)
    units = [unit.name for unit in terms.unit]
    yield Joined(at=start, key="joined")
    lots = tuple(OpeningLot(unit, 10_000, terms.valid_from) for unit in units)
    yield Opened(at=start, key="opened", lots=lots, sums={f"{start:%Y-%m}": 10**9})
    for role in terms.membership.roles:
        yield RoleTaken(at=start, key=f"role/{role}", role=role)
    for status in terms.status:
        at = start + timedelta(days=3)
        yield StatusChanged(at=at, key=f"status/{status.name}", status=status.name, granted=True)
    sales = []
    for number, days in enumerate((0, 1, 20, 31, 32, 70, 400, 401, 800)):
        sales.append(sale(terms, number, start + timedelta(days=days, hours=1)))
        yield sales[-1]
    at = start + timedelta(days=801)
    for past in sales[::2]:
        yield back(terms.programme, past, at + timedelta(days=1))
    for leaving in terms.leaving[:1]:
        yield Left(at=at + timedelta(days=900), key="left", cause=leaving.cause)


def sale(terms: Terms, number: int, at: datetime) -> Sale:
    """Sell something of everything that the terms name, paid with all that they name."""
    categories = ["", "food/dairy"]
    for block in (*terms.exclusion, *terms.earn):
        categories += [*block.lines.category, *block.lines.not_category]
    amount = 10 ** (number % 9 + 2)
    lines = [
        Line(amount + index, category[:200], own_brand=bool(index % 2), reduced=index % 3 == 1)
        for index, category in enumerate(categories)
    ]
    lines += [Line(1_000, fee=fee.name) for fee in terms.fee] + [Line(-amount, "food/dairy")]
    total = sum(line.amount_minor for line in lines)
    paid = [Tender(unit.name, 1) for unit in terms.unit[: number % 3]]
    paid += [Tender(block.paid_with, 100) for block in terms.earn if block.paid_with]
    paid.append(Tender("cash", total - sum(tender.amount_minor for tender in paid)))
    chains = [chain for block in terms.earn for chain in block.stores.chain]
    receipt = Receipt(
        store="north",
        till="1",
        business_day=at.date(),
        number=str(number),
        at=at,
        currency=terms.currency,
        total_minor=total,
        lines=tuple(lines),
        tenders=tuple(paid),
        card="1234",
    )
    chain = chains[number % len(chains)] if chains else ""
    return Sale(at=at, key=key_of(terms.programme, receipt), receipt=receipt, chain=chain)


def back(issuer: str, past: Sale, at: datetime) -> Returned:
    """Bring the first line back, half of it."""
    sold = past.receipt
    document = Return(
        store="north",
        till="1",
        business_day=at.date(),
        number=f"b{sold.number}",
        at=at,
        sale=SaleKey(sold.store, sold.till, sold.business_day, sold.number),
        lines=(ReturnLine(1, sold.lines[0].amount_minor // 2),),
    )
    return Returned(at=at, key=key_of(issuer, document), document=document)


def live(terms: Terms, chance: random.Random) -> None:
    """Let accounts live under terms, as a replay has them, and as the cases beside them do."""
    if terms.valid_from > TOO_FAR:
        return  # no till's clock gets there
    programme = Programme([terms])
    events = list(life(terms))
    replay(programme, [events], until=events[-1].at.date() + timedelta(days=2_000))
    shuffled = chance.sample(events, len(events))
    course = refold(Fold(programme), shuffled, through=events[-1].at.date())
    fold = Fold(programme)
    for event, decision in course.decided:
        assert fold.take(event) == decision
        if isinstance(event, Sale):
            explain(programme, event.receipt, decision)
    fold.follow_calendar(through=course.standing.through_on)
    assert fold.standing == course.standing
    for case in (
        chance.sample(OWN_CASES[terms.programme], 2) if terms.programme in OWN_CASES else ()
    ):
        checking.run(case, checking.PureWorld(programme))


def faults_of(text: str, read: Callable[[str], T]) -> tuple[T | None, int]:
    """Read a file; give what it says, or how many faults it has. Each has a line of the file."""
    try:
        return read(text), 0
    except TextFaulty as faulty:
        faults = faulty.faults
    assert faults
    for fault in faults:
        assert 0 <= fault.line <= text.count("\n") + 1, fault
        assert fault.message
    return None, len(faults)


@contextmanager
def told(name: str, text: str) -> Iterator[None]:
    """Say which file it was if anything goes wrong with it."""
    try:
        yield
    except BaseException:
        print(f"{name}\n{text}")  # noqa: T201 - whoever looks for the cause needs it
        raise


PARTS = 2


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_spoiled_terms_are_refused_with_their_faults_or_run(
    part: int,
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
) -> None:
    counted: Counter[str] = Counter()
    for number in range(long_or_short(400_000, 5_000) // PARTS):
        name = f"{seed}/{part}/{number}"
        chance = random.Random(name)
        text = spoil(chance.choice(TERMS), chance)
        with told(name, text):
            terms, faults = faults_of(text, read_terms)
            counted["faults"] += faults
            counted["accepted" if terms else "refused"] += 1
            if terms is not None:
                live(terms, chance)
    evidence(**counted)
    assert min(counted["accepted"], counted["refused"]) > 100


@pytest.mark.timeout(900)
def test_spoiled_cases_are_refused_with_their_faults_or_run(
    seed: int, long_or_short: Callable[[int, int], int], evidence: Callable[..., None]
) -> None:
    counted: Counter[str] = Counter()
    programmes = [folder.programme() for folder in FOLDERS]
    for number in range(long_or_short(200_000, 3_000)):
        name = f"{seed}/{number}"
        chance = random.Random(name)
        text = spoil(chance.choice(CASES), chance)
        with told(name, text):
            case, faults = faults_of(text, read_case)
            counted["faults"] += faults
            counted["accepted" if case else "refused"] += 1
            if case is not None:
                checking.run(case, checking.PureWorld(chance.choice(programmes)))
    evidence(**counted)
    assert min(counted["accepted"], counted["refused"]) > 100


@pytest.mark.timeout(900)
def test_spoiled_terms_do_the_same_in_postgresql_as_in_a_replay(
    seed: int,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    fresh_database: Callable[[str], str],
) -> None:
    counted: Counter[str] = Counter()
    with connect(fresh_database(APP)) as connection:
        for number in range(long_or_short(20_000, 600)):
            name = f"{seed}/{number}"
            chance = random.Random(name)
            text = spoil(chance.choice(TERMS), chance)
            with told(name, text):
                counted[publish(connection, text)] += 1
                for case in playable(text, chance):
                    counted["cases"] += 1
                    pure = checking.run(case, checking.PureWorld(Programme([read_terms(text)])))
                    assert checking.run(case, DatabaseWorld(connection, [text])) == pure
    evidence(**counted)
    assert counted["published"] > 3
    assert counted["cases"] > 30


def publish(connection: psycopg.Connection, text: str) -> str:
    """Publish terms; give what came of it. What is refused leaves nothing."""
    before = versions(connection)
    try:
        publishing.publish_terms(connection, source=text, at=datetime.now(UTC), by="publisher")
    except (TextFaulty, Refusal) as error:
        refused = type(error).__name__
    else:
        return "published"
    assert versions(connection) == before
    return refused


def playable(text: str, chance: random.Random) -> list[Case]:
    """Give a case beside terms that happens while they are in force, if they are any good."""
    terms, _ = faults_of(text, read_terms)
    if terms is None or terms.programme not in OWN_CASES:
        return []
    case = chance.choice(OWN_CASES[terms.programme])
    # Before the first terms the two worlds refuse the same with other codes.
    first = min(step.at.date() for step in case.step) - timedelta(days=1)
    return [case] if terms.valid_from <= first else []


def versions(connection: psycopg.Connection) -> list[tuple[int]]:
    """Count what is published."""
    return connection.execute("SELECT count(*) FROM terms_version").fetchall()


def test_chance_bytes_are_no_terms(chance: random.Random) -> None:
    for _ in range(1_000):
        text = chance.randbytes(chance.randint(0, 300)).decode("utf-8", "surrogateescape")
        for read in (read_terms, read_case):
            assert faults_of(text, read)[0] is None
