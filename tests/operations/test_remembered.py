"""A refusal that depended on the moment stays a refusal for ever, for the same request."""

from typing import TYPE_CHECKING

import msgspec
import pytest

from kantis.core.events import Held
from kantis.core.receipt import Tender
from kantis.core.refusals import KeyReused, NotEnough, ReceiptDiffers, ReturnedMoreThanBought
from kantis.operations import sales, spending

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member

    from kantis.core.answers import Answer


def hold(desk: "Desk", member: "Member", at: str, amount: int) -> "Answer":
    return spending.hold(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        held=Held(
            at=desk.at(at), key="h", hold_id="h", unit="bonus", amount=amount, until_at=desk.at(at)
        ),
        proof="staff",
        warrant=desk.warrant,
    )


def test_a_payment_refused_once_is_refused_also_when_there_is_enough(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-05 10:00", 500, paid={"bonus": 500})
    (refused,) = desk.record(sale)
    assert isinstance(refused, NotEnough)
    desk.sell(member, "2024-03-04 10:00", 100000)
    (again,) = desk.record(sale)
    assert isinstance(again, NotEnough)
    assert again.fields == refused.fields
    assert str(again) == str(refused)
    # The customer pays cash: the same receipt with another tender is judged anew, and then it is
    # the one that this key stands for.
    in_cash = msgspec.structs.replace(sale, tenders=(Tender("cash", 500),))
    (booked,) = desk.record(in_cash)
    assert isinstance(booked, sales.Recorded)
    assert isinstance(desk.record(sale)[0], NotEnough)
    other = msgspec.structs.replace(sale, tenders=(Tender("card", 500),))
    assert isinstance(desk.record(other)[0], ReceiptDiffers)
    assert desk.standing(member).balance("bonus") == 1005
    assert desk.wrong(member) == []


def test_a_hold_refused_once_is_refused_also_when_there_is_enough(desk: "Desk") -> None:
    member = desk.join()
    with pytest.raises(NotEnough) as first:
        hold(desk, member, "2024-03-05 10:00", 500)
    desk.sell(member, "2024-03-05 11:00", 100000)
    with pytest.raises(NotEnough) as again:
        hold(desk, member, "2024-03-05 12:00", 500)
    assert again.value.fields == first.value.fields
    # Another amount is another request: it is judged anew.
    assert hold(desk, member, "2024-03-05 12:00", 600).balances["bonus"].held == 600
    with pytest.raises(KeyReused):
        hold(desk, member, "2024-03-05 12:00", 700)
    assert desk.wrong(member) == []


def test_a_return_of_too_much_is_refused_for_ever(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 500)
    desk.record(sale)
    back = desk.return_of(sale, "2024-03-05 10:00", (1, 501))
    for _ in range(2):
        assert isinstance(desk.take_back(back)[0], ReturnedMoreThanBought)


def test_two_payments_on_one_receipt_need_what_both_take(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    sale = desk.receipt(member.card, "2024-03-05 10:00", 1200)
    twice = msgspec.structs.replace(sale, tenders=(Tender("bonus", 600), Tender("bonus", 600)))
    assert isinstance(desk.record(twice)[0], NotEnough)
    assert desk.standing(member).balance("bonus") == 1000


def test_a_refusal_counts_within_its_own_batch_too(desk: "Desk") -> None:
    member = desk.join()
    paying = desk.receipt(member.card, "2024-03-05 10:00", 500, paid={"bonus": 500})
    earning = desk.receipt(member.card, "2024-03-05 10:00", 100000)
    # All in one second, as tills stamp them: the sort leaves them as they were sent.
    first, booked, again = desk.record(paying, earning, paying)
    assert isinstance(first, NotEnough)
    assert isinstance(booked, sales.Recorded)
    assert isinstance(again, NotEnough)
    assert isinstance(desk.record(paying)[0], NotEnough)
    assert desk.standing(member).balance("bonus") == 1000
    assert desk.wrong(member) == []
