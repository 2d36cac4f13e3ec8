"""No clause without a case: the table in `docs/clauses.md`, and every figure of the terms.

A terms file in which anything is changed must be faulty or fail a case. What survives that
is a promise that no case keeps: write the case.
"""

import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kantis.check import PureWorld, run
from kantis.core.cases import Case, read_case
from kantis.core.programme import Programme
from kantis.core.terms import Block, Terms
from kantis.core.terms_text import TermsFaulty, read_terms, terms_from

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/clauses.md"
TERMS = sorted(ROOT.glob("programmes/*/[0-9]*.toml"))
CASES = sorted(ROOT.glob("programmes/*/cases/*.toml"))

CLAUSES = (
    *(f"K-1.{n}" for n in range(1, 8)),
    *(f"K-2.{n}" for n in range(1, 4)),
    *(f"K-3.{n}" for n in range(1, 8)),
    *(f"C-{n}" for n in (1, 5, 6, 7, 11)),
    *(f"S-{n}" for n in range(1, 17)),
)
"""What the programmes ask for, as far as the terms' vocabulary carries it by now."""

FOR_READERS = {
    "also": "names further clauses",
    "label": "is printed",
    "languages": "says which texts there are",
    "text": "is printed",
}
"""Keys in which nothing is changed, and what they do instead of deciding anything."""

CHOICES = {
    "begins": ("at_once", "day_after_joining"),
    "currency": ("XXX",),
    "kind": ("points", "money"),
    "paid_part_counts_for": ("tier", "all"),
    "zone": ("UTC",),
}
"""Keys with words that could stand there instead."""


@cache
def terms_in(path: Path) -> Terms:
    return read_terms(path.read_text("utf-8"))


@cache
def case_in(path: Path) -> Case:
    return read_case(path.read_text("utf-8"))


# --- the table -----------------------------------------------------------------------------


def rows() -> dict[str, str]:
    """Give each clause's row of the table."""
    lines = TABLE.read_text("utf-8").splitlines()
    return {row[1]: line for line in lines if (row := re.match(r"\| ([A-Z]-[\d.]+) \|", line))}


def blocks_by_clause() -> dict[str, set[str]]:
    """Give which kinds of blocks keep each clause, in any terms."""
    found: dict[str, set[str]] = {}
    for terms in map(terms_in, TERMS):
        for field in terms.__struct_fields__:
            value = getattr(terms, field)
            for block in value if isinstance(value, tuple) else (value,):
                if isinstance(block, Block):
                    for clause in (block.clause, *block.also):
                        found.setdefault(clause, set()).add(field)
    return found


def test_every_clause_has_a_row() -> None:
    shown = {clause for path in CASES for clause in case_in(path).clauses}
    assert {*CLAUSES, *blocks_by_clause(), *shown} - rows().keys() == set()


def test_every_row_names_the_blocks_and_operations_that_keep_its_clause() -> None:
    sources = (ROOT / "src/kantis/operations").glob("*.py")
    operations = {*re.findall(r"^def (\w+)", "".join(map(Path.read_text, sources)), re.MULTILINE)}
    for clause, row in rows().items():
        assert {*re.findall(r"`\[+(\w+)\]+`", row)} == blocks_by_clause()[clause], clause
        assert {*re.findall(r"`(\w+)`", row)} <= operations, clause


def test_every_row_names_the_cases_that_show_its_clause() -> None:
    for clause, row in rows().items():
        linked = {(TABLE.parent / link).resolve() for link in re.findall(r"\]\((.+?\.toml)\)", row)}
        assert linked == {path for path in CASES if clause in case_in(path).clauses}, clause


@pytest.mark.parametrize("clause", CLAUSES)
def test_every_clause_is_shown_by_a_case(clause: str) -> None:
    assert any(clause in case_in(path).clauses for path in CASES)


# --- the figures ---------------------------------------------------------------------------

Place = tuple[str | int, ...]


def places(value: object, place: Place = ()) -> Iterator[tuple[Place, object]]:
    """Give every table, element and value below, with where it stands."""
    below: Iterator[tuple[str | int, object]] = iter(())
    if isinstance(value, dict):
        below = ((key, inner) for key, inner in value.items() if key not in FOR_READERS)
    elif isinstance(value, list):
        below = iter(enumerate(value))
    for key, inner in below:
        yield (*place, key), inner
        yield from places(inner, (*place, key))


def otherwise(key: str | int, value: object) -> Iterator[object]:
    """Give what else could stand there: the next numbers, days, the other word."""
    match value:
        case bool():
            yield not value
        case int():
            yield from (value + 1, value - 1)
        case date():
            yield from (value + timedelta(days=1), value - timedelta(days=1))
        case str() if key in CHOICES:
            yield from {*CHOICES[str(key)]} - {value}
        case str() if re.fullmatch(r"[\d./]+", value):
            for number in re.finditer(r"\d+", value):
                for other in (int(number[0]) + 1, int(number[0]) - 1):
                    yield f"{value[: number.start()]}{other}{value[number.end() :]}"


def mutants(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give the document with one thing changed: what is, the clause of its block, the whole."""
    for place, value in places(document):
        block: Any = document[str(place[0])]
        if len(place) > 1 and isinstance(block, list):
            block = block[int(place[1])]
        clause = block.get("clause", "") if isinstance(block, dict) else ""
        where = ".".join(map(str, place))
        for other in (None, *otherwise(place[-1], value)):
            mutant = deepcopy(document)
            holder: Any = mutant
            for key in place[:-1]:
                holder = holder[key]
            if other is None:
                del holder[place[-1]]
            else:
                holder[place[-1]] = other
            yield f"{where} = {other}" if other is not None else f"no {where}", clause, mutant


def is_caught(path: Path, clause: str, document: dict[str, Any]) -> bool:
    """Tell whether changed terms are faulty or fail a case, those of the clause tried first."""
    others = (terms_in(other) for other in TERMS if other.parent == path.parent and other != path)
    try:
        programme = Programme([terms_from(document, {}), *others])
    except TermsFaulty:
        return True
    cases = [case_in(case) for case in CASES if case.parents[1] == path.parent]
    cases.sort(key=lambda case: clause not in case.clauses)
    return any(run(case, PureWorld(programme)) for case in cases)


@pytest.mark.parametrize("path", TERMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_change_of_the_terms_is_noticed(path: Path) -> None:
    document = tomllib.loads(path.read_text("utf-8"))
    assert not is_caught(path, "", document)
    survivors = [
        what for what, clause, mutant in mutants(document) if not is_caught(path, clause, mutant)
    ]
    assert survivors == []
