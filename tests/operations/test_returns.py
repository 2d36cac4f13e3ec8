"""What comes back takes back exactly what it earned, and gives back what it was paid with."""

from typing import TYPE_CHECKING

import msgspec

from kantis.core.admission import Warrant
from kantis.core.answers import Answer
from kantis.core.events import Opened, OpeningLot
from kantis.core.receipt import Line
from kantis.core.refusals import ReturnedMoreThanBought, TimeImpossible
from kantis.operations import members, sales

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member


def answer(result: sales.Result) -> Answer:
    assert isinstance(result, sales.Recorded), result
    return msgspec.json.decode(result.answer, type=Answer)


def with_old_bonus(desk: "Desk") -> "Member":
    """Give a member with 30.00 valid until 15 January 2025 and 20.00 until 2029-01-15."""
    member = desk.join()
    members.open_balances(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        opening=Opened(
            at=desk.at("2024-03-01 10:01"),
            key="opening",
            lots=(
                OpeningLot("bonus", 3000, desk.at("2020-01-15 12:00").date()),
                OpeningLot("bonus", 2000, desk.at("2024-01-15 12:00").date()),
            ),
        ),
        warrant=Warrant("desk", approved_by="office"),
    )
    return member


def test_the_whole_sale_takes_back_all_of_it(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 100099, 50000)
    desk.record(sale)
    assert desk.standing(member).balance("bonus") == 1500
    back = desk.return_of(sale, "2024-03-05 10:00", (1, 100099), (2, 50000))
    assert answer(desk.take_back(back)[0]).taken_back == {"bonus": 1500}
    standing = desk.standing(member)
    assert (standing.balance("bonus"), standing.debts, standing.sums[24290]) == (0, {}, 0)
    assert desk.lots(member) == []
    assert desk.wrong(member) == []


def test_parts_take_back_parts_that_add_up(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 9999)
    desk.record(sale)
    taken = []
    for hour in (1, 2, 3):
        back = desk.return_of(sale, f"2024-03-05 0{hour}:00", (1, 3333))
        taken.append(answer(desk.take_back(back)[0]).taken_back["bonus"])
    assert taken == [33, 33, 33]
    assert desk.standing(member).balance("bonus") == 0
    assert desk.wrong(member) == []


def test_more_than_was_bought_is_refused_and_books_nothing(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    desk.record(sale)
    desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 6000)))
    rows = desk.rows()
    for lines in (((1, 4001),), ((1, 4000), (1, 1)), ((2, 1),)):
        (refused,) = desk.take_back(desk.return_of(sale, "2024-03-06 10:00", *lines))
        assert isinstance(refused, ReturnedMoreThanBought)
    (refused,) = desk.take_back(desk.return_of(sale, "2024-03-04 09:59", (1, 1)))
    assert isinstance(refused, TimeImpossible)
    assert desk.rows() == rows
    (booked,) = desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (1, 4000)))
    assert answer(booked).taken_back == {"bonus": 40}


def test_two_returns_of_one_line_in_one_batch_know_of_each_other(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    desk.record(sale)
    back = [desk.return_of(sale, "2024-03-05 10:00", (1, 6000)) for _ in range(2)]
    first, second = desk.take_back(*back)
    assert answer(first).taken_back == {"bonus": 60}
    assert isinstance(second, ReturnedMoreThanBought)
    assert second.fields["left_minor"] == 4000


def test_one_that_comes_before_its_sale_waits_and_then_both_are_booked(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    back = desk.return_of(sale, "2024-03-05 10:00", (1, 4000))
    (first,) = desk.take_back(back)
    assert answer(first).nothing == "sale-awaited"
    assert desk.standing(member).balance("bonus") == 0
    assert answer(desk.record(sale)[0]).earned == {"bonus": 100}
    assert desk.standing(member).balance("bonus") == 60
    (again,) = desk.take_back(back)
    assert isinstance(again, sales.Recorded)
    assert isinstance(first, sales.Recorded)
    assert (again.answer, again.replayed) == (first.answer, True)
    assert desk.wrong(member) == []


def test_what_was_paid_with_bonus_comes_back_to_its_lots_with_their_old_expiry(
    desk: "Desk",
) -> None:
    member = with_old_bonus(desk)
    before = desk.lots(member)
    assert [(str(until), amount) for until, amount in before] == [
        ("2025-01-15", 3000),
        ("2029-01-15", 2000),
    ]
    # 40.00 of 50.00 paid with bonus: 30.00 of the oldest, 10.00 of the other; 1 % of 10.00.
    sale = desk.receipt(
        member.card, "2024-03-04 10:00", 2500, 2500, paid={"bonus": 4000, "cash": 1000}
    )
    assert answer(desk.record(sale)[0]).redeemed == {"bonus": 4000}
    assert desk.standing(member).balance("bonus") == 1010

    # Half comes back: 20.00, what was spent last first.
    half = answer(desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 2500)))[0])
    assert (half.given_back, half.taken_back) == ({"bonus": 2000}, {"bonus": 5})
    found = [(str(until), amount) for until, amount in desk.lots(member)]
    assert found == [("2025-01-15", 1000), ("2029-01-15", 2000), ("2029-03-04", 5)]

    desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (2, 2500)))
    assert desk.lots(member) == before
    assert desk.wrong(member) == []


def test_what_was_spent_since_becomes_a_debt(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 500000)
    desk.record(sale)
    desk.sell(member, "2024-03-05 10:00", 4500, paid={"bonus": 4500})
    back = answer(desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (1, 500000)))[0])
    assert back.balances["bonus"].debt == 4500
    assert desk.lots(member) == []
    found = desk.connection.execute(
        "SELECT balance, debt FROM balance WHERE account_id = %s", [member.account_id]
    ).fetchall()
    assert found == [(-4500, 4500)]
    assert desk.wrong(member) == []


def test_goods_bought_with_a_bottle_voucher_can_be_returned_whole(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 200)
    sale = msgspec.structs.replace(
        sale, lines=(Line(1000, "food", "bread"), Line(-800, "deposit", "voucher"))
    )
    desk.record(sale, now=desk.at("2024-03-04 10:00"))
    (result,) = desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 1000)))
    assert not isinstance(result, ReturnedMoreThanBought)
    assert desk.wrong(member) == []


def test_a_line_taken_back_on_the_receipt_cannot_be_returned(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 5000)
    sale = msgspec.structs.replace(
        sale,
        lines=(
            Line(10_000, "food", "ham"),
            Line(-10_000, "food", "ham"),
            Line(5000, "food", "bread"),
        ),
    )
    desk.record(sale, now=desk.at("2024-03-04 10:00"))
    (result,) = desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 10_000)))
    assert isinstance(result, ReturnedMoreThanBought)
    assert desk.wrong(member) == []
