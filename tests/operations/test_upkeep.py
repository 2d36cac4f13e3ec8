"""The calendar, suspensions and new terms, on a database in which nobody else is counted."""

from typing import TYPE_CHECKING

import pytest

from kantis.core.admission import Warrant
from kantis.core.events import Held
from kantis.core.periods import Period
from kantis.core.refusals import (
    NotEnough,
    SuspensionNotAllowed,
    TermsAlreadyPublished,
    TermsTooLate,
)
from kantis.db import programmes
from kantis.operations import publishing, spending, upkeep

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member


def tick(desk: "Desk", day: str, limit: int = 500) -> int:
    at = desk.at(f"{day} 00:00")
    return upkeep.tick(
        desk.connection, programme=desk.programme, through=at.date(), now=at, limit=limit
    )


def with_bonus(desk: "Desk") -> "Member":
    """Give a member with 10.00, earned on 4 March 2024 and valid until 4 March 2029."""
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    return member


def due_on(desk: "Desk", member: "Member") -> str:
    rows = desk.connection.execute(
        "SELECT next_due_on FROM account WHERE account_id = %s", [member.account_id]
    ).fetchall()
    return str(rows[0][0])


def test_bonus_can_be_spent_to_the_last_second_and_is_gone_in_the_next(desk: "Desk") -> None:
    early, late = with_bonus(desk), with_bonus(desk)
    now = desk.at("2029-03-04 12:00")
    (spent,) = desk.record(
        desk.receipt(early.card, "2029-03-03 23:59:59", 1000, paid={"bonus": 1000}), now=now
    )
    assert not isinstance(spent, NotEnough)
    (refused,) = desk.record(
        desk.receipt(late.card, "2029-03-04 00:00:00", 1, paid={"bonus": 1}), now=now
    )
    assert isinstance(refused, NotEnough)
    # Sent late, after the calendar took the bonus: in its time it was there, so it is paid with
    # it, and nothing expires.
    assert desk.look(late, "2029-03-04 00:00").balances["bonus"].balance == 0
    (paid,) = desk.record(
        desk.receipt(late.card, "2029-03-03 23:59:59", 1000, paid={"bonus": 1000}), now=now
    )
    assert not isinstance(paid, NotEnough)
    assert desk.wrong(early, late) == []


def test_what_the_calendar_took_is_not_given_to_a_late_payment(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    assert tick(lonely, "2029-03-04") == 1
    rows = lonely.rows()
    (refused,) = lonely.record(
        lonely.receipt(member.card, "2029-03-03 23:59:59", 1000, paid={"bonus": 1000}),
        now=lonely.at("2029-03-04 12:00"),
    )
    assert isinstance(refused, NotEnough)
    assert lonely.rows() == rows


def test_a_tick_visits_what_is_due_and_nothing_else(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    # Reviewed until the purchase is forgotten; then nothing changes until its bonus expires.
    assert due_on(lonely, member) == "2024-04-01"
    assert tick(lonely, "2024-03-31") == 0
    assert [tick(lonely, f"2024-0{month}-01") for month in (4, 5, 6, 7)] == [1, 1, 1, 0]
    assert due_on(lonely, member) == "2029-03-04"
    assert tick(lonely, "2029-03-03") == 0
    assert lonely.standing(member).balance("bonus") == 1000
    assert tick(lonely, "2029-03-04") == 1
    assert lonely.standing(member).balance("bonus") == 0
    assert tick(lonely, "2029-03-04") == 0
    assert lonely.wrong(member) == []


def test_a_tick_does_no_more_at_once_than_it_is_told(lonely: "Desk") -> None:
    some = [with_bonus(lonely) for _ in range(5)]
    assert [tick(lonely, "2029-03-04", limit=2) for _ in range(4)] == [2, 2, 1, 0]
    assert lonely.wrong(*some) == []


def test_a_late_receipt_after_a_tick_moves_what_the_tick_did(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    tick(lonely, "2029-03-04")
    lonely.record(
        lonely.receipt(member.card, "2024-03-04 09:00", 50000), now=lonely.at("2029-03-05 10:00")
    )
    standing = lonely.standing(member)
    assert standing.balance("bonus") == 0
    assert str(standing.through_on) == "2029-03-04"
    assert lonely.wrong(member) == []


def test_what_is_held_expires_when_the_hold_has_ended(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    at = lonely.at("2029-03-03 23:55")
    spending.hold(
        lonely.connection,
        programme="alltid",
        account_id=member.account_id,
        held=Held(at=at, key="h", hold_id="h", unit="bonus", amount=600, until_at=at),
        proof="staff",
        warrant=lonely.warrant,
    )
    tick(lonely, "2029-03-04")
    assert lonely.standing(member).balance("bonus") == 600
    tick(lonely, "2029-03-05")
    assert lonely.standing(member).balance("bonus") == 0
    assert lonely.wrong(member) == []


def test_a_suspension_puts_expiry_off_and_the_tick_follows(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    period = Period(lonely.at("2029-03-01 00:00").date(), lonely.at("2029-03-11 00:00").date())
    for _ in range(2):
        upkeep.suspend(
            lonely.connection,
            programme="alltid",
            period=period,
            now=lonely.at("2029-02-28 10:00"),
            warrant=Warrant("office", "flood"),
        )
    # From the same first day, but longer: 20 days in all.
    upkeep.suspend(
        lonely.connection,
        programme="alltid",
        period=Period(period.start, lonely.at("2029-03-21 00:00").date()),
        now=lonely.at("2029-02-28 11:00"),
        warrant=Warrant("office", "the flood lasts"),
    )
    assert lonely.rows()["suspension"] == 2
    for day, balance in {"2029-03-04": 1000, "2029-03-23": 1000, "2029-03-24": 0}.items():
        tick(lonely, day)
        assert lonely.standing(member).balance("bonus") == balance, day
    assert lonely.wrong(member) == []


def test_a_suspension_that_was_rolled_back_is_not_taken_for_the_next_one(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    start = lonely.at("2029-03-01 00:00").date()

    def suspend(end: str) -> None:
        # As another process does: this one does not look at the programme in between.
        programmes.suspend(
            lonely.connection,
            programme="alltid",
            period=Period(start, lonely.at(f"{end} 00:00").date()),
            actor="office",
            reason="flood",
            approved_by="",
            at=lonely.at("2029-02-28 10:00"),
        )

    def balance(day: str) -> int:
        return lonely.look(member, f"{day} 00:00").balances["bonus"].balance

    with lonely.connection.transaction(force_rollback=True):
        suspend("2029-03-11")
        assert (balance("2029-03-13"), balance("2029-03-14")) == (1000, 0)
    suspend("2029-03-21")
    assert (balance("2029-03-23"), balance("2029-03-24")) == (1000, 0)


def test_a_new_version_makes_accounts_due_on_its_first_day(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    tick(lonely, "2024-07-01")
    rows = lonely.connection.execute(
        "SELECT source FROM terms_version WHERE programme = 'alltid'"
    ).fetchall()
    source = rows[0][0].replace("valid_from = 2016-01-01", "valid_from = 2024-08-01")
    half = source.replace("percent = 1\n", "percent = 2\n")
    new = {"source": half, "at": lonely.at("2024-07-01 10:00"), "by": "publisher"}
    assert publishing.publish_terms(lonely.connection, **new)
    assert not publishing.publish_terms(lonely.connection, **new)
    with pytest.raises(TermsAlreadyPublished):
        publishing.publish_terms(lonely.connection, **{**new, "source": source})
    assert due_on(lonely, member) == "2024-08-01"
    assert tick(lonely, "2024-08-01") == 1
    assert due_on(lonely, member) == "2029-03-04"
    # Judged by the terms in force at the time of the purchase, whenever it comes.
    assert lonely.sell(member, "2024-08-01 00:00", 10000).earned == {"bonus": 200}
    assert lonely.sell(member, "2024-07-31 23:59", 10000).earned == {"bonus": 100}
    assert lonely.wrong(member) == []


def test_terms_for_days_that_accounts_have_lived_through_are_refused(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    ((source,),) = lonely.connection.execute(
        "SELECT source FROM terms_version WHERE programme = 'alltid'"
    ).fetchall()
    source = source.replace("valid_from = 2016-01-01", "valid_from = 2024-03-04")
    with pytest.raises(TermsTooLate):
        publishing.publish_terms(
            lonely.connection, source=source, at=lonely.at("2024-03-05 10:00"), by="publisher"
        )
    later = source.replace("valid_from = 2024-03-04", "valid_from = 2024-03-05")
    assert publishing.publish_terms(
        lonely.connection, source=later, at=lonely.at("2024-03-05 10:00"), by="publisher"
    )
    assert lonely.wrong(member) == []


def test_nothing_is_suspended_on_days_that_an_account_has_lived_through(lonely: "Desk") -> None:
    member = with_bonus(lonely)
    now = lonely.at("2024-03-05 23:58")
    # A till's clock may be five minutes ahead: its receipt is of tomorrow.
    lonely.record(lonely.receipt(member.card, "2024-03-06 00:02", 100), now=now)

    def suspend(first: str) -> None:
        upkeep.suspend(
            lonely.connection,
            programme="alltid",
            period=Period(lonely.at(first).date(), lonely.at("2024-03-20 00:00").date()),
            now=now,
            warrant=Warrant("anna", "flood", approved_by="berit"),
        )

    with pytest.raises(SuspensionNotAllowed):
        suspend("2024-03-05 00:00")
    suspend("2024-03-06 00:00")
    assert lonely.wrong(member) == []
