"""Late, shuffled, doubled: the same receipts end in the same books."""

from datetime import timedelta
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kantis.core.events import Held, Sale
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import HoldUnknown, InDebt, Refusal
from kantis.core.standing import Decision, Standing
from kantis.db import past, programmes
from kantis.operations import sales, spending, upkeep

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member

POSTED = (
    "SELECT t.event_no, kind, value_on, corrects, sum(amount)::int FROM transfer t"
    " JOIN posting p USING (account_id, transfer_no)"
    " WHERE account_id = %s AND book IN ('member', 'debt')"
    " GROUP BY transfer_no, t.event_no, kind, value_on, corrects ORDER BY transfer_no"
)


def posted(desk: "Desk", member: "Member") -> list[tuple[int, str, str, bool, int]]:
    rows = desk.connection.execute(POSTED, [member.account_id]).fetchall()
    return [(event, kind, str(on), corrects, amount) for event, kind, on, corrects, amount in rows]


def tiers(desk: "Desk", member: "Member") -> list[tuple[str, str, str]]:
    rows = desk.connection.execute(
        "SELECT from_on, old, new FROM tier_change WHERE account_id = %s"
        " ORDER BY from_on, change_no",
        [member.account_id],
    ).fetchall()
    return [(str(on), old, new) for on, old, new in rows]


def decisions(desk: "Desk", member: "Member") -> list[tuple[str, Decision]]:
    return [
        (event.key.rpartition("/")[2], decision)
        for _, event, decision in desk.history(member)
        if "joined" not in event.key
    ]


def test_a_late_receipt_is_corrected_for_and_the_correction_names_it(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-10 10:00", 500000)
    desk.sell(member, "2024-03-12 10:00", 10000)
    assert desk.standing(member).balance("bonus") == 5100
    assert tiers(desk, member) == [("2024-03-01", "", "level-1")]

    # With these 3,000 of the 9th, 8,000 were reached on the 10th: 3 % on the 12th.
    late = desk.sell(member, "2024-03-09 10:00", 300000)
    assert late.earned == {"bonus": 3000}
    assert late.tier == "level-2"
    assert posted(desk, member) == [
        (2, "earned", "2024-03-10", False, 5000),
        (3, "earned", "2024-03-12", False, 100),
        (4, "earned", "2024-03-09", True, 3000),
        (4, "earned", "2024-03-12", True, 200),
    ]
    assert tiers(desk, member) == [
        ("2024-03-01", "", "level-1"),
        ("2024-03-11", "level-1", "level-2"),
    ]
    assert desk.wrong(member) == []


def test_a_late_receipt_ends_as_the_same_in_order(desk: "Desk") -> None:
    in_order, late = desk.join(), desk.join()
    days = [
        ("2024-03-04 10:00", 790000),
        ("2024-03-05 10:00", 10000),
        ("2024-03-06 10:00", 20000),
        ("2024-04-30 23:59", 100000),
        ("2024-05-01 00:00", 100000),
    ]
    for number, (at, amount) in enumerate(days):
        desk.sell(in_order, at, amount, number=f"{in_order.card}-{number}")
    for number in (0, 2, 3, 4, 1):
        at, amount = days[number]
        desk.sell(late, at, amount, number=f"{late.card}-{number}")
    same_as_in_order(desk, in_order, late)
    assert desk.standing(late).balance("bonus") == 7900 + 100 + 600 + 3000 + 1000


def test_what_was_answered_stays_when_what_is_decided_changes(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-10 10:00", 500000)
    second = desk.receipt(member.card, "2024-03-12 10:00", 10000)
    (first,) = desk.record(second)
    desk.sell(member, "2024-03-09 10:00", 300000)
    (again,) = desk.record(second)
    assert isinstance(first, sales.Recorded)
    assert isinstance(again, sales.Recorded)
    assert again == sales.Recorded(first.answer, replayed=True)
    by_number = dict(decisions(desk, member))
    assert by_number[second.number].total_earned("bonus") == 300


def test_a_late_receipt_after_a_conversion_moves_the_conversion(plussa: "Desk") -> None:
    member = plussa.join("2024-01-10 10:00")
    plussa.sell(member, "2024-01-20 10:00", 99900)
    plussa.sell(member, "2024-02-10 10:00", 100)
    plussa.sell(member, "2024-03-10 10:00", 100)  # February ended with 1,000 points
    assert plussa.standing(member).balance("plussa-money") == 500
    plussa.sell(member, "2024-01-21 10:00", 100100)  # January with 2,000: two thousands then
    standing = plussa.standing(member)
    assert (standing.balance("points"), standing.balance("plussa-money")) == (2, 1000)
    assert [(str(on), amount) for on, amount in plussa.lots(member) if amount >= 500] == [
        ("2025-03-05", 1000)
    ]
    assert plussa.wrong(member) == []


def test_a_late_return_before_another_of_the_same_line_is_as_in_order(desk: "Desk") -> None:
    in_order, late = desk.join(), desk.join()
    for member, turn in ((in_order, (0, 1)), (late, (1, 0))):
        sale = desk.receipt(member.card, "2024-03-04 10:00", 3300, number=f"{member.card}-s")
        desk.record(sale)
        back = [
            replace(desk.return_of(sale, at, (1, 1650)), number=f"{member.card}-{number}")
            for number, at in enumerate(("2024-03-05 10:00", "2024-03-06 10:00"))
        ]
        for index in turn:
            desk.take_back(back[index])
    # 33 øre: 16 with the first half, 17 with the second.
    taken = [decision.transfers[0].amount for _, decision in decisions(desk, late)[1:]]
    assert taken == [-16, -17]
    same_as_in_order(desk, in_order, late)


def same_as_in_order(desk: "Desk", in_order: "Member", other: "Member") -> None:
    """Check that two members whose receipts differ only in their prefix have the same books."""

    def without_key(decisions: list[tuple[str, Decision]]) -> list[tuple[str, Decision]]:
        return [(number.partition("-")[2], decision) for number, decision in decisions]

    def standing(member: "Member") -> Standing:
        found = desk.standing(member)
        assert found.last is not None
        return replace(found, last=(*found.last[:2], ""))

    assert standing(other) == standing(in_order)
    assert desk.lots(other) == desk.lots(in_order)
    assert tiers(desk, other) == tiers(desk, in_order)
    assert without_key(decisions(desk, other)) == without_key(decisions(desk, in_order))
    assert desk.wrong_accounts(in_order, other) == []


class Bought(msgspec.Struct, frozen=True):
    """Two equal lines on some minute, and after how many more half of which line comes back."""

    minute: int
    amount: int
    back: list[tuple[int, int]]


MINUTES = 60 * 24 * 60
purchases = st.lists(
    st.builds(
        Bought,
        minute=st.integers(0, 100 * 24 * 60),
        amount=st.sampled_from([100, 3300, 9999, 399999, 400000, 1250000]),
        back=st.lists(st.tuples(st.integers(0, MINUTES), st.integers(1, 2)), max_size=2),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda bought: bought.minute,
)


def documents_of(desk: "Desk", member: "Member", bought: list[Bought]) -> list[Receipt | Return]:
    """Give receipts and returns in the order in which they happened."""
    start = desk.at("2024-03-02 10:00")
    found: list[Receipt | Return] = []
    for number, one in enumerate(bought):
        at = f"{start + timedelta(minutes=one.minute):%Y-%m-%d %H:%M}"
        name = f"{member.card}-{number}"
        sale = desk.receipt(member.card, at, one.amount, one.amount, number=name)
        found.append(sale)
        for part, (minutes, line) in enumerate(one.back):
            back_at = f"{start + timedelta(minutes=one.minute + minutes):%Y-%m-%d %H:%M}"
            back = desk.return_of(sale, back_at, (line, one.amount // 2))
            found.append(replace(back, number=f"{name}-{part}"))
    return sorted(found, key=lambda one: (one.at, isinstance(one, Return), one.number))


def send(desk: "Desk", documents: list[Receipt | Return]) -> None:
    """Send documents as tills do: what follows each other and is alike goes in one batch."""
    for are_sales, batch in groupby(documents, key=lambda one: isinstance(one, Receipt)):
        some = list(batch)
        if are_sales:
            results = desk.record(*(one for one in some if isinstance(one, Receipt)))
        else:
            results = desk.take_back(*(one for one in some if isinstance(one, Return)))
        assert all(isinstance(result, sales.Recorded) for result in results), results


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(bought=purchases, order=st.randoms(use_true_random=False), at_once=st.booleans())
def test_any_order_with_doubles_ends_as_in_order(
    desk: "Desk", plussa: "Desk", *, bought: list[Bought], order: Random, at_once: bool
) -> None:
    for one_desk in (desk, plussa):
        in_order, shuffled = one_desk.join(), one_desk.join()
        for document in documents_of(one_desk, in_order, bought):
            send(one_desk, [document])
        documents = documents_of(one_desk, shuffled, bought)
        documents += order.choices(documents, k=2)
        order.shuffle(documents)
        for batch in [documents] if at_once else [[document] for document in documents]:
            send(one_desk, batch)
        same_as_in_order(one_desk, in_order, shuffled)


def test_a_receipt_from_before_the_calendar_that_was_followed_is_late(desk: "Desk") -> None:
    early, late = desk.join(), desk.join()
    for member in (early, late):
        desk.sell(member, "2024-03-10 10:00", 100000)
    desk.sell(early, "2024-03-20 10:00", 2_500_000)

    at = desk.at("2024-04-02 00:00")
    upkeep.tick(desk.connection, programme="alltid", through=at.date(), now=at)
    (answer,) = desk.record(
        desk.receipt(late.card, "2024-03-20 10:00", 2_500_000), now=desk.at("2024-04-02 10:00")
    )

    assert not isinstance(answer, Refusal)
    assert desk.look(late, "2024-04-02 11:00").tier == "level-3"
    assert desk.look(early, "2024-04-02 11:00").tier == "level-3"
    assert desk.wrong(early, late) == []


# --- what a late event is folded from -------------------------------------------------------


def snapshots(desk: "Desk", member: "Member") -> list[str]:
    rows = desk.connection.execute(
        "SELECT month_on FROM snapshot WHERE account_id = %s ORDER BY month_on",
        [member.account_id],
    ).fetchall()
    return [str(month_on) for (month_on,) in rows]


def test_a_late_event_is_folded_from_the_start_of_its_month(desk: "Desk") -> None:
    member = desk.join("2024-01-10 10:00")
    for month in range(1, 7):
        for day in (12, 14, 16):
            desk.sell(member, f"2024-{month:02d}-{day} 10:00", 10000)
    assert snapshots(desk, member) == [f"2024-{month:02d}-01" for month in range(2, 7)]

    def folded_since(at: str) -> tuple[str, int]:
        sale = Sale(
            at=desk.at(at), key="late", receipt=desk.receipt(member.card, at, 100), chain=""
        )
        terms = programmes.load(desk.connection, "alltid")
        found = past.past_before(desk.connection, terms, member.account_id, sale)
        return str(found.since_on), len(found.events)

    assert folded_since("2024-06-13 10:00") == ("2024-06-01", 3)
    assert folded_since("2024-04-01 00:00") == ("2024-04-01", 9)
    assert folded_since("2024-03-31 23:59") == ("2024-03-01", 12)
    assert folded_since("2024-01-11 10:00") == ("0001-01-01", 19)


def test_snapshots_after_a_late_event_are_written_anew(desk: "Desk") -> None:
    in_order, other = desk.join("2024-01-10 10:00"), desk.join("2024-01-10 10:00")
    days = [f"2024-{month:02d}-12 10:00" for month in (1, 2, 4, 6)]
    for at in days:
        desk.sell(in_order, at, 400000)
    for at in (days[0], days[2], days[3], days[1]):
        desk.sell(other, at, 400000)

    def standings(member: "Member") -> list[tuple[str, Standing]]:
        rows = desk.connection.execute(
            "SELECT month_on, standing::text FROM snapshot WHERE account_id = %s ORDER BY 1",
            [member.account_id],
        ).fetchall()
        found = [(str(on), msgspec.json.decode(text, type=Standing)) for on, text in rows]
        return [(on, replace(standing, last=None)) for on, standing in found]

    assert [on for on, _ in standings(other)] == ["2024-02-01", "2024-04-01", "2024-06-01"]
    assert standings(other) == standings(in_order)
    assert desk.wrong(in_order, other) == []


def test_a_return_whose_sale_lies_before_the_snapshot_finds_it(desk: "Desk") -> None:
    in_order, other = desk.join("2024-01-10 10:00"), desk.join("2024-01-10 10:00")
    for member in (in_order, other):
        sale = desk.receipt(member.card, "2024-01-12 10:00", 100000)
        desk.record(sale)
        first = desk.return_of(sale, "2024-01-20 10:00", (1, 33333))
        second = desk.return_of(sale, "2024-04-01 10:00", (1, 33333))
        third = desk.return_of(sale, "2024-06-01 10:00", (1, 33334))
        for one in (first, second, third) if member is in_order else (first, third, second):
            desk.take_back(one)
    assert desk.standing(other).balance("bonus") == 0
    assert desk.wrong(in_order, other) == []
    same_as_in_order(desk, in_order, other)


# --- what was held is captured also late ---------------------------------------------------


def hold(desk: "Desk", member: "Member", at: str, amount: int) -> str:
    hold_id = desk.new_number()
    spending.hold(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        held=Held(
            at=desk.at(at),
            key=f"held/{hold_id}",
            hold_id=hold_id,
            unit="bonus",
            amount=amount,
            until_at=desk.at(at),
        ),
        proof="staff",
        warrant=desk.warrant,
    )
    return hold_id


def test_a_capture_that_arrives_after_its_hold_ran_out_counts_as_in_time(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    held = hold(desk, member, "2024-03-05 10:00", 800)
    paid = desk.receipt(member.card, "2024-03-05 10:05", 800, paid={"bonus": 800}, hold=held)
    again = desk.receipt(member.card, "2024-03-05 10:06", 800, paid={"bonus": 800}, hold=held)
    # Meanwhile the hold has run out, and half of it is spent elsewhere.
    desk.sell(member, "2024-03-08 10:00", 600, paid={"bonus": 600})
    assert desk.standing(member).balance("bonus") == 400
    (booked,) = desk.record(paid)
    assert isinstance(booked, sales.Recorded)
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.debts) == (-400, {"bonus": 400})
    assert isinstance(desk.record(again)[0], HoldUnknown)
    assert desk.wrong(member) == []


def test_a_capture_by_a_till_whose_clock_is_behind_the_hold_counts_late_too(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    held = hold(desk, member, "2024-03-05 10:00", 800)
    paid = desk.receipt(member.card, "2024-03-05 09:59:30", 800, paid={"bonus": 800}, hold=held)
    desk.sell(member, "2024-04-08 10:00", 100)
    (booked,) = desk.record(paid)
    assert isinstance(booked, sales.Recorded)
    assert desk.standing(member).balance("bonus") == 201
    assert desk.wrong(member) == []


def test_a_hold_that_had_run_out_when_its_receipt_was_made_is_not_captured(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    held = hold(desk, member, "2024-03-05 10:00", 800)
    desk.sell(member, "2024-04-08 10:00", 100)
    late = desk.receipt(member.card, "2024-04-07 10:05", 800, paid={"bonus": 800}, hold=held)
    assert isinstance(desk.record(late)[0], HoldUnknown)
    assert desk.wrong(member) == []


def test_a_receipt_of_training_captures_no_hold(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    held = hold(desk, member, "2024-03-05 10:00", 800)
    real = desk.receipt(member.card, "2024-03-05 10:05", 800, paid={"bonus": 800}, hold=held)
    training = msgspec.structs.replace(real, number=desk.new_number(), training=True)
    again = msgspec.structs.replace(training, number=desk.new_number())
    results = [desk.record(receipt)[0] for receipt in (training, real, again)]
    assert [type(result) for result in results] == [sales.Recorded, sales.Recorded, HoldUnknown]
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.holds) == (200, ())
    assert desk.wrong(member) == []


def test_nothing_is_spent_while_a_debt_stands_and_earnings_pay_it_first(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 100000)
    desk.record(sale)
    desk.sell(member, "2024-03-05 10:00", 1000, paid={"bonus": 1000})
    desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (1, 100000)))
    assert desk.standing(member).debts == {"bonus": 1000}
    payment = desk.receipt(member.card, "2024-03-06 11:00", 1, paid={"bonus": 1})
    assert isinstance(desk.record(payment)[0], InDebt)
    desk.sell(member, "2024-03-07 10:00", 60000)
    assert desk.standing(member).debts == {"bonus": 400}
    desk.sell(member, "2024-03-07 11:00", 60000)
    assert desk.lots(member) == [(desk.at("2029-03-07 00:00").date(), 200)]
    assert desk.wrong(member) == []
