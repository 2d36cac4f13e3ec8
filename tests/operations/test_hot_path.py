"""What a batch of receipts costs the database: questions counted, and quotes that write nothing."""

from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest

from kantis.core.answers import Answer
from kantis.core.receipt import Receipt
from kantis.db.connect import EVERY_PROGRAMME
from kantis.operations import sales

if TYPE_CHECKING:
    from tests.operations.conftest import Desk

AT = "2026-01-10 10:00"


class Counting(psycopg.Connection[tuple[object, ...]]):
    """A connection that keeps what it is asked."""

    asked: list[str]

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - psycopg's own
        self.asked.append(query if isinstance(query, str) else query.decode())
        return super().execute(query, *args, **kwargs)


@pytest.fixture
def counting(desk: "Desk") -> "Counting":
    connection = Counting.connect(desk.url, autocommit=True)
    connection.asked = []
    connection.execute("SELECT set_config('kantis.programme', %s, false)", [EVERY_PROGRAMME])
    return connection


def test_a_batch_of_receipts_takes_two_questions_whatever_its_size(
    desk: "Desk", counting: Counting
) -> None:
    cards = [desk.join().card for _ in range(64)]
    desk.connection, patient = counting, desk.connection
    # The first receipts of all ask for the terms too.
    desk.record(desk.receipt(cards[0], AT, 10_000))
    for some in (cards[:1], cards):
        counting.asked.clear()
        results = desk.record(*(desk.receipt(card, AT, 10_000, 20_000) for card in some))
        assert all(isinstance(result, sales.Recorded) for result in results)
        called = [question.split("(")[0].split()[-1] for question in counting.asked]
        assert called == ["look_up", "book"]
    desk.connection = patient
    counting.close()


def test_a_batch_of_quotes_takes_one_question_and_neither_writes_nor_waits(
    desk: "Desk", counting: Counting
) -> None:
    members = [desk.join() for _ in range(10)]
    receipts = [desk.receipt(member.card, AT, 10_000) for member in members]
    counting.execute("SET default_transaction_read_only = on")
    counting.execute("SET lock_timeout = 1")
    with desk.another() as booking, booking.connection.transaction():
        booking.connection.execute("SELECT FROM account FOR UPDATE")
        booking.connection.execute("SELECT pg_advisory_xact_lock(1, hashtext('alltid'))")
        sales.quote_all(counting, programme="alltid", receipts=receipts, now=desk.at(AT))
        counting.asked.clear()
        said = sales.quote_all(counting, programme="alltid", receipts=receipts, now=desk.at(AT))
    assert len(counting.asked) == 1
    booked = [msgspec.json.decode(one.answer, type=Answer) for one in recorded(desk, receipts)]
    assert said == booked
    counting.close()


def recorded(desk: "Desk", receipts: list[Receipt]) -> list[sales.Recorded]:
    results = desk.record(*receipts)
    return [result for result in results if isinstance(result, sales.Recorded)]
