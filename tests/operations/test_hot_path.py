"""What a batch of receipts costs the database: questions counted, and quotes that write nothing."""

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from kantis.core.admission import Warrant
from kantis.core.receipt import Receipt
from kantis.db.connect import EVERY_PROGRAMME
from kantis.operations import sales
from kantis.operations.sales import Recorded, Sent

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
        assert all(isinstance(result, Recorded) for result in results)
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
        quote_all = partial(sales.quote_all, counting, programme="alltid", now=desk.at(AT))
        sent = [Sent(receipt, Warrant("till:1/1")) for receipt in receipts]
        quote_all(sent=sent)
        counting.asked.clear()
        told = quote_all(sent=sent)
    assert len(counting.asked) == 1
    quoted = [one.said.answer for one in told if one and isinstance(one.said, Recorded)]
    assert quoted == [one.answer for one in recorded(desk, receipts)]
    counting.close()


def recorded(desk: "Desk", receipts: list[Receipt]) -> list[Recorded]:
    results = desk.record(*receipts)
    return [result for result in results if isinstance(result, Recorded)]
