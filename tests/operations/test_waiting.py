"""What comes later than the terms let it waits for staff; so does a return of too much."""

from typing import TYPE_CHECKING

import msgspec
import pytest

from kantis.core.admission import Warrant
from kantis.core.answers import Answer
from kantis.core.receipt import key_of
from kantis.core.refusals import (
    ApprovalMissing,
    CardNotUsable,
    NotWaiting,
    ReasonMissing,
    ReturnedMoreThanBought,
)
from kantis.operations import publishing, sales, waiting

if TYPE_CHECKING:
    from tests.operations.conftest import Desk

    from kantis.core.receipt import Receipt, Return

WHY = Warrant("anna", "the till was at the fair", "bert")
LATENESS = """
[lateness]
clause = "X-3"
days = 30
text.nb = "Etter 30 dager avgjør de ansatte."
text.en = "After 30 days staff decide."

[[approval]]
clause = "X-4"
operation = "accept_waiting"
text.nb = "To personer."
text.en = "Two persons."
"""


@pytest.fixture
def patient(lonely: "Desk") -> "Desk":
    """Give a desk whose terms let a receipt take 30 days, from February 2024 on."""
    ((source,),) = lonely.connection.execute(
        "SELECT source FROM terms_version WHERE programme = 'alltid'"
    ).fetchall()
    source = source.replace("valid_from = 2016-01-01", "valid_from = 2024-02-01") + LATENESS
    publishing.publish_terms(
        lonely.connection, source=source, at=lonely.at("2024-01-15 10:00"), by="publisher"
    )
    return lonely


def answer(result: sales.Result) -> Answer:
    assert isinstance(result, sales.Recorded), result
    return msgspec.json.decode(result.answer, type=Answer)


def accept(desk: "Desk", document: "Receipt | Return", warrant: Warrant = WHY) -> Answer:
    return waiting.accept(
        desk.connection,
        programme="alltid",
        key=key_of("alltid", document),
        at=desk.at("2024-06-01 10:00"),
        warrant=warrant,
    )


def dismiss(desk: "Desk", document: "Receipt | Return", warrant: Warrant = WHY) -> None:
    waiting.dismiss(
        desk.connection,
        programme="alltid",
        key=key_of("alltid", document),
        at=desk.at("2024-06-01 10:00"),
        warrant=warrant,
    )


def keys_waiting(desk: "Desk") -> list[tuple[str, str]]:
    found = waiting.list_waiting(desk.connection, programme="alltid")
    return [(one.key.rpartition("/")[2], one.why) for one in found]


def test_a_receipt_waits_when_it_is_older_than_the_terms_let_it_be(patient: "Desk") -> None:
    member = patient.join()
    early = patient.receipt(member.card, "2024-03-04 10:00:00", 100000, number="early")
    late = patient.receipt(member.card, "2024-03-04 10:00:00", 100000, number="late")
    (in_time,) = patient.record(early, now=patient.at("2024-04-03 11:00"))  # 30 × 24 h, in summer
    assert answer(in_time).nothing == ""
    assert answer(in_time).earned == {"bonus": 1000}
    (too_late,) = patient.record(late, now=patient.at("2024-04-03 11:00:01"))
    assert (answer(too_late).nothing, answer(too_late).clause) == ("too-late", "X-3")
    assert patient.standing(member).balance("bonus") == 1000
    assert keys_waiting(patient) == [("late", "too-late")]
    assert patient.wrong(member) == []


def test_what_staff_accept_is_booked_in_its_place_once_and_keeps_its_first_answer(
    patient: "Desk",
) -> None:
    member = patient.join()
    sale = patient.receipt(member.card, "2024-03-04 10:00", 900000)
    back = patient.return_of(sale, "2024-03-04 11:00", (1, 100000))
    (first, kept) = patient.record(sale)[0], patient.take_back(back)[0]
    assert answer(kept).nothing == "too-late"
    in_time = patient.receipt(member.card, "2024-05-20 10:00", 100000)
    patient.record(in_time, now=patient.at("2024-05-20 10:01"))

    assert accept(patient, sale).earned == {"bonus": 9000}
    assert accept(patient, back).taken_back == {"bonus": 1000}
    assert patient.standing(member).balance("bonus") == 9000, "8,000 and 1,000"
    with pytest.raises(NotWaiting):
        accept(patient, sale)
    (again,) = patient.record(sale)
    assert isinstance(again, sales.Recorded)
    assert isinstance(first, sales.Recorded)
    assert (bytes(again.answer), again.replayed) == (bytes(first.answer), True)
    assert keys_waiting(patient) == []
    assert patient.wrong(member) == []


def test_what_is_dismissed_is_never_booked_and_its_key_stays_used(patient: "Desk") -> None:
    member = patient.join()
    sale = patient.receipt(member.card, "2024-03-04 10:00", 100000)
    (first,) = patient.record(sale)
    dismiss(patient, sale)
    assert keys_waiting(patient) == []
    for decide in (accept, dismiss):
        with pytest.raises(NotWaiting):
            decide(patient, sale)
    (again,) = patient.record(sale)
    assert answer(again) == answer(first)
    assert patient.standing(member).balance("bonus") == 0
    kept = patient.connection.execute(
        "SELECT dismissed_by, dismissed_why FROM stray WHERE dismissed_at IS NOT NULL"
    ).fetchall()
    assert kept == [("anna", "the till was at the fair")]
    assert patient.wrong(member) == []


def test_staff_give_a_reason_and_a_second_person_where_the_terms_ask_for_it(
    patient: "Desk",
) -> None:
    sale = patient.receipt(patient.join().card, "2024-03-04 10:00", 100000)
    patient.record(sale)
    before = patient.rows()
    for decide in (accept, dismiss):
        with pytest.raises(ReasonMissing):
            decide(patient, sale, Warrant("anna", " ", "bert"))
        with pytest.raises(ApprovalMissing):
            decide(patient, sale, Warrant("anna", "why", "anna"))
    assert patient.rows() == before
    assert keys_waiting(patient) != []


def test_a_receipt_too_late_of_an_unknown_card_goes_on_waiting(patient: "Desk") -> None:
    sale = patient.receipt("4040404040404", "2024-03-04 10:00", 100000)
    patient.record(sale)
    with pytest.raises(CardNotUsable):
        accept(patient, sale)
    assert len(keys_waiting(patient)) == 1


def test_a_return_that_came_first_and_takes_back_too_much_waits_for_staff(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 50000)
    back = desk.return_of(sale, "2024-03-04 11:00", (1, 90000))
    desk.take_back(back)
    key = key_of("alltid", back)
    assert key not in [one.key for one in waiting.list_waiting(desk.connection, programme="alltid")]
    desk.record(sale)
    found = waiting.list_waiting(desk.connection, programme="alltid")
    assert (key, "returned-more-than-bought") in [(one.key, one.why) for one in found]
    with pytest.raises(ReturnedMoreThanBought):
        accept(desk, back)
    dismiss(desk, back)
    assert desk.standing(member).balance("bonus") == 500
    assert desk.wrong(member) == []


def test_a_return_that_a_slow_clock_puts_before_its_sale_waits_for_staff(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 12:00", 50000)
    back = desk.return_of(sale, "2024-03-04 11:59", (1, 20000))
    desk.take_back(back)
    desk.record(sale)
    found = waiting.list_waiting(desk.connection, programme="alltid")
    assert (key_of("alltid", back), "time-impossible") in [(one.key, one.why) for one in found]
    assert accept(desk, back).taken_back == {"bonus": 200}
    assert desk.standing(member).balance("bonus") == 300
    assert desk.wrong(member) == []


def test_a_quote_says_that_a_receipt_would_wait(patient: "Desk") -> None:
    receipt = patient.receipt(patient.join().card, "2024-03-04 10:00", 100000)
    said = sales.quote(
        patient.connection,
        programme="alltid",
        receipt=receipt,
        now=patient.at("2024-06-01 10:00"),
    )
    assert (said.nothing, said.clause, said.earned) == ("too-late", "X-3", {})
