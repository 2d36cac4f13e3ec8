"""Every case beside the terms comes out as it expects through the real engine, too."""

from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path

import psycopg
import pytest
from msgspec.structs import replace

from kantis.check import Outcome, run
from kantis.check_database import DatabaseWorld
from kantis.core.cases import Case, Step, read_case
from kantis.db.connect import connect
from kantis.folder import Folder
from kantis.operations import audit, upkeep

PROGRAMMES = Path(__file__).parents[2] / "programmes"
CASES = sorted(PROGRAMMES.glob("*/cases/*.toml"))

every_case = pytest.mark.parametrize(
    "path", CASES, ids=lambda path: f"{path.parts[-3]}/{path.stem}"
)


class BusyWorld(DatabaseWorld):
    """The calendar is followed before every step, as jobs do, and not only when it is needed."""

    def do(self, step: Step, at: datetime) -> Outcome:
        now = max(self.now, at)
        through = self.programme.day(now)
        upkeep.tick(self.connection, programme=self.name, through=through, now=now)
        return super().do(step, at)


class AuditedWorld(DatabaseWorld):
    """Everything that the database alone can tell is looked at, too."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        for finding in audit.audit_books(self.connection):
            yield from (f"{finding.check}: {row}" for row in finding.wrong)


@pytest.fixture(scope="module")
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as connection:
        yield connection


@cache
def sources(folder: Path) -> list[str]:
    return [path.read_text("utf-8") for path in Folder(folder).terms_files]


def case_in(path: Path) -> Case:
    return read_case(path.read_text("utf-8"))


@every_case
def test_a_case_comes_out_as_expected(path: Path, connection: psycopg.Connection) -> None:
    world = AuditedWorld(connection, sources(path.parents[1]))
    assert run(case_in(path), world) == []


@every_case
def test_it_does_not_matter_when_the_calendar_is_followed(
    path: Path, connection: psycopg.Connection
) -> None:
    case = case_in(path)
    # A card is ordered once: in a step that finds the calendar followed already, it is no news.
    steps = (
        replace(step, expect=replace(step.expect, orders=None)) if step.look else step
        for step in case.step
    )
    world = BusyWorld(connection, sources(path.parents[1]))
    assert run(replace(case, step=tuple(steps)), world) == []


def test_there_are_cases_of_every_programme() -> None:
    assert {path.parts[-3] for path in CASES} == {"alltid", "coop", "kplussa"}


def test_nothing_of_a_case_stays(connection: psycopg.Connection) -> None:
    world = DatabaseWorld(connection, sources(PROGRAMMES / "alltid"))
    run(case_in(PROGRAMMES / "alltid/cases/s-16-suspension.toml"), world)
    for table in ("programme", "terms_version", "suspension", "account", "card", "event"):
        found = connection.execute(
            f"SELECT count(*) FROM {table} WHERE {table}::text LIKE '%alltid-cases%'"  # noqa: S608
        ).fetchone()
        assert found == (0,), table


def test_what_comes_out_otherwise_is_told_with_its_step(connection: psycopg.Connection) -> None:
    text = (PROGRAMMES / "alltid/cases/s-7-example.toml").read_text("utf-8")
    wrong = read_case(text.replace("bonus = 107.00", "bonus = 107.01"))
    world = DatabaseWorld(connection, sources(PROGRAMMES / "alltid"))
    assert run(wrong, world) == [
        "step 6 (buy): balance: expected {'bonus': 10701}, got {'bonus': 10700}"
    ]
