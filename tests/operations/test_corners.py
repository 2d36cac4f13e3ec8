"""Corners in which two things meet: each was once free for a mistake."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from kantis.core.admission import Warrant
from kantis.core.events import Held, Left, Opened, OpeningLot, Released
from kantis.core.periods import Period
from kantis.core.receipt import SaleKey, Tender
from kantis.core.refusals import (
    AmountsDoNotAddUp,
    NotEnough,
    RedemptionSuspended,
    ReturnedMoreThanBought,
    SaleUnknown,
    TimeImpossible,
    UnitNotSpendable,
)
from kantis.db import programmes
from kantis.db.programmes import Store
from kantis.operations import cards, members, publishing, sales, spending, upkeep

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member


def tick(desk: "Desk", day: str) -> None:
    at = desk.at(f"{day} 00:00")
    upkeep.tick(desk.connection, programme=desk.programme, through=at.date(), now=at)


def hold(desk: "Desk", member: "Member", at: str, amount: int) -> None:
    spending.hold(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        held=Held(
            at=desk.at(at),
            key=f"held/{at}",
            hold_id=f"held/{at}",
            unit="bonus",
            amount=amount,
            until_at=desk.at(at),
        ),
        proof="staff",
        warrant=desk.warrant,
    )


def leave(desk: "Desk", member: "Member", at: str) -> None:
    members.leave(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        left=Left(at=desk.at(at), key="left", cause="member"),
        warrant=desk.warrant,
    )


def await_blocked(desk: "Desk", other: "Desk") -> None:
    """Wait until another desk waits for a lock."""
    pid = other.connection.info.backend_pid
    deadline = time.monotonic() + 30
    while not desk.connection.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchall()[0][0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def books(desk: "Desk", member: "Member") -> dict[str, int]:
    """Give what is on each book for an account, but for what came to nothing."""
    return dict(
        desk.connection.execute(
            "SELECT book, sum(amount)::int FROM posting WHERE account_id = %s"
            " GROUP BY book HAVING sum(amount) <> 0 ORDER BY book",
            [member.account_id],
        ).fetchall()
    )


def test_what_comes_back_is_taken_off_the_books_that_it_came_from(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    assert books(desk, member) == {"issued": -1000, "member": 1000}
    paid = desk.receipt(member.card, "2024-03-05 10:00", 10600, paid={"bonus": 600, "cash": 10000})
    desk.record(paid)
    assert books(desk, member) == {"issued": -1100, "member": 500, "spent": 600}
    desk.take_back(desk.return_of(paid, "2024-03-06 10:00", (1, 10600)))
    assert books(desk, member) == {"issued": -1000, "member": 1000}
    assert desk.wrong(member) == []


def test_of_two_lots_only_the_one_whose_day_has_come_expires(lonely: "Desk") -> None:
    member = lonely.join()
    lonely.sell(member, "2024-03-04 10:00", 100000)
    lonely.sell(member, "2024-03-05 10:00", 20000)
    for day, balance in {"2029-03-03": 1200, "2029-03-04": 200, "2029-03-05": 0}.items():
        tick(lonely, day)
        assert lonely.standing(member).balance("bonus") == balance
    assert lonely.wrong(member) == []


def test_a_lot_that_a_suspension_has_put_behind_another_does_not_hide_it(lonely: "Desk") -> None:
    upkeep.suspend(
        lonely.connection,
        programme="alltid",
        period=Period(lonely.at("2024-03-01 00:00").date(), lonely.at("2024-04-01 00:00").date()),
        now=lonely.at("2024-02-28 10:00"),
        warrant=Warrant("office", "flood"),
    )
    member = lonely.join("2024-04-05 10:00")
    members.open_balances(
        lonely.connection,
        programme="alltid",
        account_id=member.account_id,
        opening=Opened(
            at=lonely.at("2024-04-05 11:00"),
            key="opening",
            lots=(
                OpeningLot(
                    "bonus",
                    1000,
                    lonely.at("2024-01-01 00:00").date(),
                    lonely.at("2024-04-10 00:00").date(),
                ),
                OpeningLot(
                    "bonus",
                    30,
                    lonely.at("2024-04-02 00:00").date(),
                    lonely.at("2024-04-20 00:00").date(),
                ),
            ),
        ),
        warrant=Warrant("desk", approved_by="office"),
    )
    for day, balance in {
        "2024-04-19": 1030,
        "2024-04-20": 1000,
        "2024-05-10": 1000,
        "2024-05-11": 0,
    }.items():
        tick(lonely, day)
        assert lonely.standing(member).balance("bonus") == balance, day
    assert lonely.wrong(member) == []


def test_what_a_former_member_gets_back_lapses(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    paid = desk.receipt(member.card, "2024-03-05 10:00", 600, paid={"bonus": 600})
    desk.record(paid)
    leave(desk, member, "2024-03-06 10:00")
    assert desk.standing(member).balance("bonus") == 0
    desk.take_back(desk.return_of(paid, "2024-03-07 10:00", (1, 600)))
    assert books(desk, member) == {"issued": -1000, "lapsed": 1000}
    assert desk.lots(member) == []
    assert desk.wrong(member) == []


def test_a_return_of_what_was_bought_long_ago_leaves_no_trace_in_the_months(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    desk.record(sale)
    desk.sell(member, "2024-06-04 10:00", 500)
    desk.take_back(desk.return_of(sale, "2024-06-05 10:00", (1, 10000)))
    assert desk.standing(member).sums == {2024 * 12 + 5: 500}
    assert desk.wrong(member) == []


def test_a_hold_is_for_no_payment_but_in_its_unit(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    hold(desk, member, "2024-03-05 10:00", 1000)
    cash = desk.receipt(
        member.card,
        "2024-03-05 10:05",
        1000,
        paid={"cash": 1000},
        hold="held/2024-03-05 10:00",
    )
    (refused,) = desk.record(cash)
    assert isinstance(refused, UnitNotSpendable)
    assert len(desk.standing(member).holds) == 1


def test_what_a_hold_kept_past_its_end_is_gone_when_the_hold_is(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    hold(desk, member, "2029-03-03 23:55", 600)
    for at, usable, held in (
        ("2029-03-03 23:59", 400, 600),
        ("2029-03-04 00:09", 0, 600),
        ("2029-03-04 00:10", 0, 0),
    ):
        balance = desk.look(member, at).balances["bonus"]
        assert (balance.usable, balance.held) == (usable, held), at
    late = desk.receipt(member.card, "2029-03-04 00:11", 600, paid={"bonus": 600})
    (refused,) = desk.record(late, now=desk.at("2029-03-04 00:12"))
    assert not isinstance(refused, sales.Recorded)
    assert desk.wrong(member) == []


def test_what_a_released_hold_kept_past_its_end_is_gone_at_once(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    hold(desk, member, "2029-03-03 23:55", 600)
    spending.release(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        released=Released(
            at=desk.at("2029-03-04 00:05"), key="release", hold_id="held/2029-03-03 23:55"
        ),
        warrant=desk.warrant,
    )
    assert desk.standing(member).balance("bonus") == 0
    assert desk.wrong(member) == []


def test_what_is_held_lapses_too_when_a_member_leaves(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    hold(desk, member, "2024-03-05 10:00", 600)
    leave(desk, member, "2024-03-05 10:05")
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.holds) == (0, ())
    assert books(desk, member) == {"issued": -1000, "lapsed": 1000}
    assert desk.wrong(member) == []


@pytest.mark.parametrize(
    ("amounts", "back"),
    [
        ((10000, 10000), ((1, 10000), (1, 10000))),  # one line twice, while a like one is left
        ((10000, 10000, -10000), ((1, 10000), (2, 10000))),  # one of two was taken back at once
    ],
)
def test_a_line_is_not_brought_back_for_a_like_one(
    desk: "Desk", amounts: tuple[int, ...], back: tuple[tuple[int, int], ...]
) -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", *amounts)
    desk.record(sale)
    (refused,) = desk.take_back(desk.return_of(sale, "2024-03-05 10:00", *back))
    assert isinstance(refused, ReturnedMoreThanBought)


def test_a_return_is_booked_on_the_entity_that_sold(desk: "Desk") -> None:
    for store in (Store("partner", entity="partner"), Store("north")):
        publishing.add_store(desk.connection, programme="alltid", store=store)
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    sale = replace(
        desk.receipt(member.card, "2024-03-05 10:00", 10600, paid={"bonus": 600, "cash": 10000}),
        store="partner",
    )
    desk.record(sale)
    desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (1, 10600)))
    rows = desk.connection.execute(
        "SELECT kind, entity FROM transfer WHERE account_id = %s ORDER BY transfer_no",
        [member.account_id],
    ).fetchall()
    assert rows == [
        ("earned", "cash-and-carry"),
        ("redeemed", "partner"),
        ("earned", "partner"),
        ("given-back", "partner"),
        ("taken-back", "partner"),
    ]


def test_tenders_add_up_to_the_total(desk: "Desk") -> None:
    member = desk.join()
    receipt = desk.receipt(member.card, "2024-03-04 10:00", 10000, paid={"cash": 10000})
    for off in (-1, 1):
        (refused,) = desk.record(replace(receipt, tenders=(Tender("cash", 10000 + off),)))
        assert isinstance(refused, AmountsDoNotAddUp)
        assert refused.fields["tenders_minor"] == 10000 + off


def test_what_a_desk_asks_for_happens_after_what_a_till_ahead_has_sent(desk: "Desk") -> None:
    member = desk.join()
    now = desk.at("2024-03-05 10:00")
    desk.record(desk.receipt(member.card, "2024-03-05 10:04", 100000), now=now)
    hold(desk, member, "2024-03-05 10:00", 600)
    *_, (_, held, _) = desk.history(member)
    assert isinstance(held, Held)
    assert held.at == now + timedelta(minutes=4, microseconds=1)
    assert held.until_at == held.at + timedelta(minutes=15)
    assert desk.wrong(member) == []


def test_a_desk_waits_while_the_terms_are_being_changed(lonely: "Desk") -> None:
    member = lonely.join()
    lonely.sell(member, "2024-03-04 10:00", 100000)
    day = lonely.at("2024-03-05 00:00").date()
    with ThreadPoolExecutor(1) as pool, lonely.another() as office, lonely.another() as till:
        with office.connection.transaction():
            programmes.change_alone(office.connection, "alltid")
            held = pool.submit(hold, till, member, "2024-03-05 10:00", 600)
            await_blocked(lonely, till)
            programmes.suspend(
                office.connection,
                programme="alltid",
                period=Period(day, day + timedelta(days=1)),
                actor="office",
                reason="flood",
                approved_by="",
                at=lonely.at("2024-03-05 10:00"),
            )
        with pytest.raises(RedemptionSuspended):
            held.result(timeout=30)


def test_a_return_that_waited_and_is_too_much_goes_on_waiting(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 100000)
    desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 100001)))
    desk.take_back(desk.return_of(sale, "2024-03-05 11:00", (1, 40000)))
    desk.record(sale)
    assert desk.standing(member).balance("bonus") == 600
    assert desk.wrong(member) == []


def test_a_receipt_from_before_its_card_was_activated_stays_without_an_account(
    coop: "Desk",
) -> None:
    member = coop.join("2024-03-01 10:00")
    for at in ("2024-03-01 11:00", "2024-03-01 13:00"):
        coop.record(coop.receipt(member.card, at, 1000))
    cards.activate_card(
        coop.connection,
        programme="coop",
        number=member.card,
        at=coop.at("2024-03-01 12:00"),
        warrant=coop.warrant,
    )
    assert coop.standing(member).balance("points") == 20
    assert coop.wrong(member) == []


def test_a_late_receipt_orders_no_card_again(plussa: "Desk") -> None:
    member = plussa.join("2024-03-01 10:00")
    for day in (4, 11):
        plussa.sell(member, f"2024-03-{day:02d} 10:00", 400000)
    plussa.sell(member, "2024-04-02 10:00", 100)

    def ordered() -> list[tuple[str, int]]:
        return plussa.connection.execute(
            "SELECT card, sum(count)::int FROM card_order WHERE account_id = %s GROUP BY card",
            [member.account_id],
        ).fetchall()

    assert ordered() == [("black", 1)]
    plussa.sell(member, "2024-03-20 10:00", 100)
    assert ordered() == [("black", 1)]
    assert plussa.wrong(member) == []


def test_a_quote_for_a_late_receipt_is_what_it_then_gets(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-10 10:00", 900000)
    desk.sell(member, "2024-03-12 10:00", 100)  # on level 2 since the 11th
    late = desk.receipt(member.card, "2024-03-10 11:00", 10000)
    quoted = sales.quote(
        desk.connection, programme="alltid", receipt=late, now=desk.at("2024-03-12 11:00")
    )
    assert quoted.earned == {"bonus": 100}
    assert desk.sell(member, "2024-03-10 11:00", 10000, number=late.number).earned == quoted.earned


def test_of_two_desks_that_hold_one_balance_the_second_waits_and_is_refused(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    with ThreadPoolExecutor(1) as pool, desk.another() as one, desk.another() as two:
        with one.connection.transaction():
            hold(one, member, "2024-03-05 10:00", 600)
            second = pool.submit(hold, two, member, "2024-03-05 10:01", 600)
            await_blocked(desk, two)
        with pytest.raises(NotEnough):
            second.result(timeout=30)
    assert desk.look(member, "2024-03-05 10:02").balances["bonus"].held == 600
    assert desk.wrong(member) == []


def issue(desk: "Desk", member: "Member", number: str) -> None:
    cards.issue_card(
        desk.connection,
        programme="alltid",
        issue=cards.Issue(
            account_id=member.account_id, kind="customer-card", role="main", number=number
        ),
        request_key=number,
        at=desk.at("2024-03-04 10:00"),
        warrant=desk.warrant,
    )


def test_a_receipt_waits_while_its_card_is_being_handed_over(desk: "Desk") -> None:
    member, number = desk.join(), desk.new_number()
    receipt = desk.receipt(number, "2024-03-04 10:01", 10000)
    with ThreadPoolExecutor(1) as pool, desk.another() as counter, desk.another() as till:
        with counter.connection.transaction():
            issue(counter, member, number)
            recorded = pool.submit(till.record, receipt)
            await_blocked(desk, till)
        recorded.result(timeout=30)
    assert desk.standing(member).balance("bonus") == 100
    assert desk.wrong(member) == []


def test_a_card_is_handed_over_after_the_receipt_that_is_being_recorded(desk: "Desk") -> None:
    member, number = desk.join(), desk.new_number()
    receipt = desk.receipt(number, "2024-03-04 10:01", 10000)
    with ThreadPoolExecutor(1) as pool, desk.another() as counter, desk.another() as till:
        with till.connection.transaction():
            till.record(receipt)
            issued = pool.submit(issue, counter, member, number)
            await_blocked(desk, counter)
        issued.result(timeout=30)
    assert desk.standing(member).balance("bonus") == 100
    assert desk.wrong(member) == []


def test_an_activation_takes_in_only_what_was_bought_before_the_card_moved(coop: "Desk") -> None:
    member, other = coop.join("2024-03-01 10:00"), coop.join("2024-03-01 10:00")
    for at in ("2024-03-01 11:00", "2024-03-01 13:00"):
        coop.record(coop.receipt(member.card, at, 1000))
    cards.pool_card(
        coop.connection,
        programme="coop",
        number=member.card,
        onto=other.account_id,
        at=coop.at("2024-03-01 12:00"),
        warrant=coop.warrant,
    )
    cards.activate_card(
        coop.connection,
        programme="coop",
        number=member.card,
        at=coop.at("2024-03-01 10:30"),
        warrant=coop.warrant,
    )
    assert [coop.standing(one).balance("points") for one in (member, other)] == [20, 0]
    assert coop.wrong(member, other) == []


def test_a_receipt_of_a_card_that_nobody_has_is_not_claimed(lonely: "Desk") -> None:
    ((source,),) = lonely.connection.execute(
        "SELECT source FROM terms_version WHERE programme = 'alltid'"
    ).fetchall()
    before, claims, after = source.partition("[claims]")
    before = before.replace("valid_from = 2016-01-01", "valid_from = 2024-02-01")
    publishing.publish_terms(
        lonely.connection,
        source=before + claims + after.replace("allowed = false", "allowed = true", 1),
        at=lonely.at("2024-01-15 10:00"),
        by="publisher",
    )
    member = lonely.join()
    sale = lonely.receipt(lonely.new_number(), "2024-03-04 10:00", 10000)
    lonely.record(sale)
    with pytest.raises(SaleUnknown):
        sales.claim_receipt(
            lonely.connection,
            programme="alltid",
            account_id=member.account_id,
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            at=lonely.at("2024-03-05 10:00"),
            warrant=lonely.warrant,
        )


def test_one_debt_after_another_adds_up(desk: "Desk") -> None:
    member = desk.join()
    bought = [desk.receipt(member.card, "2024-03-04 10:00", 10000) for _ in range(2)]
    desk.record(*bought)
    desk.sell(member, "2024-03-04 11:00", 200, paid={"bonus": 200})
    for sale, debt in zip(bought, (100, 200), strict=True):
        desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 10000)))
        assert desk.standing(member).debts == {"bonus": debt}
    rows = desk.connection.execute(
        "SELECT balance, debt FROM balance WHERE account_id = %s", [member.account_id]
    ).fetchall()
    assert rows == [(-200, 200)]
    assert desk.wrong(member) == []


def test_a_late_receipt_moves_a_payment_to_the_lot_that_expires_first(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-10 10:00", 10000)
    desk.sell(member, "2024-03-12 10:00", 60, paid={"bonus": 60})
    desk.sell(member, "2024-03-08 10:00", 10000)
    assert [(str(until), left) for until, left in desk.lots(member)] == [
        ("2029-03-08", 40),
        ("2029-03-10", 100),
    ]
    moved = desk.connection.execute(
        "SELECT book, valid_until::text, amount FROM posting"
        " JOIN transfer USING (account_id, transfer_no)"
        " WHERE account_id = %s AND kind = 'redeemed' AND corrects ORDER BY valid_until",
        [member.account_id],
    ).fetchall()
    assert moved == [("member", "2029-03-08", -60), ("member", "2029-03-10", 60)]
    assert desk.wrong(member) == []


def test_a_till_whose_clock_is_behind_captures_a_hold(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    hold(desk, member, "2024-03-05 10:05", 600)
    paid = desk.receipt(
        member.card,
        "2024-03-05 10:03",
        600,
        paid={"bonus": 600},
        hold="held/2024-03-05 10:05",
    )
    (recorded,) = desk.record(paid)
    assert isinstance(recorded, sales.Recorded)
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.holds) == (400, ())
    assert desk.wrong(member) == []


def test_a_return_from_tomorrow_does_not_wait_for_its_sale(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    back = desk.return_of(sale, "2024-03-05 10:06", (1, 10000))
    (refused,) = desk.take_back(back, now=desk.at("2024-03-05 10:00"))
    assert isinstance(refused, TimeImpossible)
    (kept,) = desk.take_back(back, now=desk.at("2024-03-05 10:01"))
    assert isinstance(kept, sales.Recorded)


def test_a_quote_refuses_a_payment_that_the_receipt_would_be_refused_for(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    receipt = desk.receipt(member.card, "2024-03-05 10:00", 1001, paid={"bonus": 1001})
    with pytest.raises(NotEnough):
        sales.quote(
            desk.connection, programme="alltid", receipt=receipt, now=desk.at("2024-03-05 10:00")
        )
