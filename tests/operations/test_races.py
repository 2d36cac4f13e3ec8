"""Several tills and desks at the same moment: threads with connections of their own."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar

from kantis.core.admission import Applicant
from kantis.core.events import Held
from kantis.core.receipt import key_of
from kantis.core.refusals import HoldUnknown, NotEnough, Refusal, ReturnedMoreThanBought
from kantis.db import accounts, strays
from kantis.operations import cards, members, sales, spending, upkeep

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member

T = TypeVar("T")
ROUNDS = 50


def at_once(desk: "Desk", *acts: "Callable[[Desk], T]") -> list[T | Refusal]:
    """Let several act at the same moment, each at a desk of its own; give what each got."""
    barrier = Barrier(len(acts))

    def act(one: "Callable[[Desk], T]") -> T | Refusal:
        with desk.another() as own:
            barrier.wait(timeout=30)
            try:
                return one(own)
            except Refusal as refusal:
                return refusal

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(act, acts))


def test_two_tills_that_spend_one_balance_at_once(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", ROUNDS * 10000)
    assert desk.standing(member).balance("bonus") == ROUNDS * 100
    desk.sell(member, "2024-03-04 11:00", ROUNDS * 100 - 100, paid={"bonus": ROUNDS * 100 - 100})
    with desk.another() as one, desk.another() as two, ThreadPoolExecutor(2) as pool:
        for minute in range(ROUNDS):
            at = f"2024-03-05 10:{minute:02d}"
            barrier = Barrier(2)

            def spend(own: "Desk", at: str = at, barrier: Barrier = barrier) -> sales.Result:
                receipt = own.receipt(member.card, at, 100, paid={"bonus": 100})
                barrier.wait(timeout=30)
                return own.record(receipt)[0]

            results = list(pool.map(spend, (one, two)))
            assert {type(result) for result in results} == {sales.Recorded, NotEnough}
            assert desk.standing(member).balance("bonus") == 0
            desk.sell(member, f"2024-03-05 10:{minute:02d}:30", 10000)  # 1 % of it: 1.00
    assert desk.wrong(member) == []


def test_one_line_returned_twice_at_once(desk: "Desk") -> None:
    member = desk.join()
    for _ in range(10):
        sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
        desk.record(sale)
        back = [desk.return_of(sale, "2024-03-05 10:00", (1, 10000)) for _ in range(2)]
        results = at_once(desk, *(lambda own, one=one: own.take_back(one)[0] for one in back))
        assert {type(result) for result in results} == {sales.Recorded, ReturnedMoreThanBought}
    assert desk.standing(member).balance("bonus") == 0
    assert desk.wrong(member) == []


def test_one_receipt_sent_at_once_by_two_tills(desk: "Desk") -> None:
    member = desk.join()
    for card in [member.card, ""] * 5:
        receipt = desk.receipt(card, "2024-03-04 10:00", 10000)
        results = at_once(desk, *[lambda own, one=receipt: own.record(one)[0]] * 2)
        recorded = [result for result in results if isinstance(result, sales.Recorded)]
        assert sorted(result.replayed for result in recorded) == [False, True]
        assert recorded[0].answer == recorded[1].answer
    assert desk.standing(member).balance("bonus") == 500
    assert desk.wrong(member) == []


def test_batches_that_share_accounts_in_crossed_order_all_get_through(desk: "Desk") -> None:
    some = [desk.join() for _ in range(6)]

    def batch(ordered: "list[Member]") -> "Callable[[Desk], list[sales.Result]]":
        receipts = [desk.receipt(member.card, "2024-03-04 10:00", 10000) for member in ordered * 3]
        return lambda own: own.record(*receipts)

    for results in at_once(desk, batch(some), batch(some[::-1]), batch(some[::2] + some[1::2])):
        assert isinstance(results, list)
        assert all(isinstance(result, sales.Recorded) for result in results)
    assert [desk.standing(member).balance("bonus") for member in some] == [900] * 6
    assert desk.wrong(*some) == []


def test_a_hold_is_captured_once(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 500000)
    for minute in range(0, 50, 10):
        spending.hold(
            desk.connection,
            programme="alltid",
            account_id=member.account_id,
            held=Held(
                at=desk.at(f"2024-03-05 10:{minute:02d}"),
                key=f"hold-{minute}",
                hold_id=f"hold-{minute}",
                unit="bonus",
                amount=1000,
                until_at=desk.at("2024-03-05 11:00"),
            ),
            proof="staff",
            warrant=desk.warrant,
        )
        captures = [
            desk.receipt(
                member.card,
                f"2024-03-05 10:{minute + 5:02d}",
                800,
                paid={"bonus": 800},
                hold=f"hold-{minute}",
            )
            for _ in range(2)
        ]
        results = at_once(desk, *(lambda own, one=one: own.record(one)[0] for one in captures))
        assert {type(result) for result in results} == {sales.Recorded, HoldUnknown}
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.holds) == (5000 - 5 * 800, ())
    assert desk.wrong(member) == []


def test_enrolling_twice_at_once_with_one_request_key_opens_one_account(desk: "Desk") -> None:
    for _ in range(5):
        number = desk.new_number()

        def enrol(own: "Desk", number: str = number) -> members.Enrolled:
            return members.enrol(
                own.connection,
                programme="alltid",
                application=members.Application(
                    applicant=Applicant(organization_number="930258008"),
                    card_kind="customer-card",
                    card_number=number,
                ),
                request_key=number,
                at=own.at("2024-03-01 10:00"),
                warrant=own.warrant,
            )

        first, second = at_once(desk, enrol, enrol)
        assert isinstance(first, members.Enrolled)
        assert second == first


def test_a_tick_by_two_at_once_books_once(lonely: "Desk") -> None:
    some = [lonely.join() for _ in range(20)]
    for member in some:
        lonely.sell(member, "2024-03-04 10:00", 100000)
    through = lonely.at("2029-03-04 00:00").date()

    def tick(own: "Desk") -> int:
        return upkeep.tick(
            own.connection, programme="alltid", through=through, now=lonely.at("2029-03-04 01:00")
        )

    visited = at_once(lonely, tick, tick)
    assert sum(one for one in visited if not isinstance(one, Refusal)) == 20
    assert tick(lonely) == 0
    expired = lonely.connection.execute(
        "SELECT account_id, count(*), sum(amount)::int FROM transfer"
        " JOIN posting USING (account_id, transfer_no)"
        " WHERE kind = 'expired' AND book = 'member' GROUP BY account_id ORDER BY account_id"
    ).fetchall()
    assert expired == [(member.account_id, 1, -1000) for member in some]
    assert lonely.wrong(*some) == []


def test_a_tick_waits_last_for_the_account_that_a_till_has_under_way(lonely: "Desk") -> None:
    busy, idle = lonely.join(), lonely.join()
    for member in (busy, idle):
        lonely.sell(member, "2024-03-04 10:00", 100000)
    at = lonely.at("2029-03-04 00:00")

    def tick(own: "Desk") -> int:
        return upkeep.tick(own.connection, programme="alltid", through=at.date(), now=at)

    with lonely.another() as till, lonely.another() as other, ThreadPoolExecutor(1) as pool:
        with till.connection.transaction():
            accounts.lock_one(till.connection, "alltid", busy.account_id)
            assert tick(other) == 1
            assert other.lots(idle) == []
            waiting = pool.submit(tick, other)
            time.sleep(0.3)
            assert not waiting.done()
        assert waiting.result() == 1
    assert lonely.lots(busy) == []
    assert tick(lonely) == 0
    assert lonely.wrong(busy, idle) == []


def test_a_card_that_is_pooled_while_its_batch_waits_for_the_lock(coop: "Desk") -> None:
    son, mother, other = coop.join(), coop.join(), coop.join()
    batch = [
        coop.receipt(card, "2024-03-06 10:00", 1000) for card in (other.card, son.card, son.card)
    ]
    with ThreadPoolExecutor(1) as pool, coop.another() as family, coop.another() as till:
        with family.connection.transaction():
            accounts.lock(family.connection, [son.account_id])
            results = pool.submit(till.record, *batch)
            await_blocked(coop, till)
            cards.pool_card(
                family.connection,
                programme="coop",
                number=son.card,
                onto=mother.account_id,
                at=coop.at("2024-03-05 10:00"),
                warrant=family.warrant,
            )
        assert all(isinstance(one, sales.Recorded) for one in results.result(timeout=30))
    points = [coop.standing(member).balance("points") for member in (son, mother, other)]
    assert points == [0, 40, 20]
    assert coop.wrong(son, mother, other) == []


def test_a_sale_that_comes_while_its_return_is_being_kept_takes_it_in(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    with ThreadPoolExecutor(1) as pool, desk.another() as counter, desk.another() as till:
        with counter.connection.transaction():
            counter.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 4000)))
            result = pool.submit(till.record, sale)
            await_blocked(desk, till)
        assert isinstance(result.result(timeout=30)[0], sales.Recorded)
    assert desk.standing(member).balance("bonus") == 60
    assert desk.wrong(member) == []


def test_a_return_that_comes_while_its_sale_is_being_booked_does_not_wait_for_it(
    desk: "Desk",
) -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    back = desk.return_of(sale, "2024-03-05 10:00", (1, 4000))
    with ThreadPoolExecutor(1) as pool, desk.another() as counter, desk.another() as till:
        with till.connection.transaction():
            till.record(sale)
            result = pool.submit(counter.take_back, back)
            await_blocked(desk, counter)
        (booked,) = result.result(timeout=30)
    assert isinstance(booked, sales.Recorded)
    assert b'"taken_back":{"bonus":40}' in bytes(booked.answer)
    assert desk.standing(member).balance("bonus") == 60
    assert desk.wrong(member) == []


def await_blocked(desk: "Desk", other: "Desk") -> None:
    """Wait until another desk waits for a lock."""
    pid = other.connection.info.backend_pid
    deadline = time.monotonic() + 30
    while not desk.connection.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchall()[0][0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_receipt_that_is_sent_again_does_not_wait_for_who_has_met_its_key(desk: "Desk") -> None:
    """Staff who take in what waits meet its key first and then lock its account."""
    receipt = desk.receipt(desk.join().card, "2024-03-04 10:00", 10000)
    desk.record(receipt)
    with desk.another() as staff, desk.another() as till, staff.connection.transaction():
        strays.meet(staff.connection, [key_of("alltid", receipt)])
        till.connection.execute("SET lock_timeout = '2s'")
        (again,) = till.record(receipt)
    assert isinstance(again, sales.Recorded)
    assert again.replayed
