"""A receipt is booked once, for ever, whoever sends it how often."""

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from kantis.core.admission import Applicant, Warrant
from kantis.core.answers import Answer
from kantis.core.receipt import Line, Receipt, SaleKey
from kantis.core.refusals import (
    AmountsDoNotAddUp,
    CardNotUsable,
    ClaimNotAllowed,
    CurrencyUnknown,
    KeyReused,
    NotEnough,
    ProofMissing,
    ReceiptDiffers,
    Refusal,
    SaleUnknown,
    StoreUnknown,
    TimeImpossible,
)
from kantis.operations import cards, members, publishing, sales

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member


def answered(result: sales.Result) -> tuple[bytes, bool]:
    assert isinstance(result, sales.Recorded), result
    return bytes(result.answer), result.replayed


def refused(result: sales.Result) -> Refusal:
    assert isinstance(result, Refusal), result
    return result


def test_the_same_receipt_again_gets_its_first_answer_byte_by_byte(desk: "Desk") -> None:
    member = desk.join()
    receipt = desk.receipt(member.card, "2024-03-04 10:00", 500000)
    first, replayed = answered(desk.record(receipt)[0])
    assert not replayed
    assert b'"earned":{"bonus":5000}' in first
    desk.sell(member, "2024-03-05 10:00", 100000)
    rows = desk.rows()
    assert answered(desk.record(receipt)[0]) == (first, True)
    assert desk.rows() == rows
    assert desk.standing(member).balance("bonus") == 6000


def test_an_instant_written_with_another_offset_is_the_same(desk: "Desk") -> None:
    receipt = desk.receipt(desk.join().card, "2024-03-04 10:00", 500000)
    first, _ = answered(desk.record(receipt)[0])
    elsewhere = replace(receipt, at=receipt.at.astimezone(tz=desk.connection.info.timezone))
    assert answered(desk.record(elsewhere)[0]) == (first, True)


def test_other_content_under_the_same_key_is_refused_and_the_field_named(desk: "Desk") -> None:
    member, other = desk.join(), desk.join()
    receipt = desk.receipt(member.card, "2024-03-04 10:00", 500000)
    desk.record(receipt)
    rows = desk.rows()
    for field, changed in {
        "card": replace(receipt, card=other.card),
        "at": replace(receipt, at=desk.at("2024-03-04 10:01")),
        "total_minor": replace(receipt, total_minor=1, lines=(Line(1),)),
        "lines": replace(receipt, lines=(Line(499999), Line(1))),
        "training": replace(receipt, training=True),
        "proof": replace(receipt, proof="pin"),
    }.items():
        differs = refused(desk.record(changed)[0])
        assert isinstance(differs, ReceiptDiffers)
        assert differs.fields["field"] == field
    back = replace(desk.return_of(receipt, "2024-03-04 10:00", (1, 1)), number=receipt.number)
    assert refused(desk.take_back(back)[0]).fields["field"] == "kind"
    assert desk.rows() == rows


def test_a_receipt_under_two_cards_books_once_also_in_one_batch(desk: "Desk") -> None:
    one, two = desk.join(), desk.join()
    receipt = desk.receipt(one.card, "2024-03-04 10:00", 500000)
    results = desk.record(receipt, replace(receipt, card=two.card))
    assert [type(result) for result in results] == [sales.Recorded, ReceiptDiffers]
    assert refused(results[1]).fields["field"] == "card"
    assert desk.standing(one).balance("bonus") == 5000
    assert desk.standing(two).balance("bonus") == 0


def test_a_receipt_twice_in_one_batch_books_once(desk: "Desk") -> None:
    member = desk.join()
    receipt = desk.receipt(member.card, "2024-03-04 10:00", 500000)
    (first, not_replayed), (again, replayed) = map(answered, desk.record(receipt, receipt))
    assert (again, not_replayed, replayed) == (first, False, True)
    assert [event.key for _, event, _ in desk.history(member)][1:] == [
        f"alltid/north/1/2024-03-04/{receipt.number}"
    ]


def test_a_batch_is_folded_in_order_whatever_order_it_came_in(desk: "Desk") -> None:
    member = desk.join()
    receipts = [
        desk.receipt(member.card, "2024-03-06 10:00", 10000),  # level 2: 3 %
        desk.receipt(member.card, "2024-03-04 10:00", 800000),
        desk.receipt(member.card, "2024-03-05 10:00", 20000),
    ]
    answers = [answered(result)[0] for result in desk.record(*receipts)]
    for answer, bonus in zip(answers, (300, 8000, 600), strict=True):
        assert b'"earned":{"bonus":%d}' % bonus in answer
    assert desk.wrong(member) == []


def test_a_refused_receipt_leaves_the_others_of_its_batch_booked(desk: "Desk") -> None:
    member, other = desk.join(), desk.join()
    good = desk.receipt(member.card, "2024-03-04 10:00", 100000)
    bad: list[tuple[type[Refusal], Receipt]] = [
        (AmountsDoNotAddUp, replace(good, number="a", total_minor=1)),
        (CurrencyUnknown, replace(good, number="b", currency="SEK")),
        (StoreUnknown, replace(good, number="c", store="nowhere")),
        (TimeImpossible, replace(good, number="d", at=desk.at("2099-01-01 10:00"))),
        (TimeImpossible, replace(good, number="e", at=desk.at("2015-12-31 23:59:59"))),
        (
            ProofMissing,
            desk.receipt(member.card, "2024-03-05 10:00", 100, paid={"bonus": 100}, proof="pin"),
        ),
        (
            NotEnough,
            desk.receipt(member.card, "2024-03-05 10:00", 1001, paid={"bonus": 1001}),
        ),
        (CardNotUsable, desk.receipt("4444", "2024-03-05 10:00", 100, paid={"bonus": 100})),
    ]
    last = desk.receipt(other.card, "2024-03-05 11:00", 100000)
    results = desk.record(good, *(receipt for _, receipt in bad), last)
    assert [type(result) for result in results[1:-1]] == [refusal for refusal, _ in bad]
    assert isinstance(results[0], sales.Recorded)
    assert isinstance(results[-1], sales.Recorded)
    assert desk.standing(member).balance("bonus") == 1000
    assert desk.standing(other).balance("bonus") == 1000
    assert desk.wrong(member, other) == []


def test_a_refused_receipt_whose_return_waits_refuses_itself_only(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt(member.card, "2024-03-04 10:00", 100000)
    desk.take_back(desk.return_of(sale, "2024-03-05 10:00", (1, 100000)))
    wrong = replace(sale, currency="SEK")
    other = desk.receipt(member.card, "2024-03-04 11:00", 100000)
    results = desk.record(wrong, other)
    assert isinstance(results[0], CurrencyUnknown)
    assert isinstance(results[1], sales.Recorded)
    desk.record(sale)
    assert desk.standing(member).balance("bonus") == 1000
    assert desk.wrong(member) == []


@pytest.mark.parametrize("taken_by", ["issue", "enrol", "activate"])
def test_receipts_that_came_before_their_card_was_recorded_are_folded_in(
    desk: "Desk", taken_by: str
) -> None:
    member = desk.join()
    number = desk.new_number()
    sale = desk.receipt(number, "2024-03-05 10:00", 100000)
    first, _ = answered(desk.record(sale)[0])
    assert b'"nothing":"card-unknown"' in first
    # What came back of it meanwhile waits with it; what is without any card does not.
    waiting = desk.take_back(desk.return_of(sale, "2024-03-06 10:00", (1, 40000)))
    assert b'"nothing":"sale-without-card"' in answered(waiting[0])[0]
    desk.record(desk.receipt("", "2024-03-05 11:00", 100000))
    if taken_by == "enrol":
        enrolled = members.enrol(
            desk.connection,
            programme="alltid",
            application=members.Application(
                applicant=Applicant(organization_number="930258016"),
                card_kind="customer-card",
                card_number=number,
            ),
            request_key=number,
            at=desk.at("2024-03-04 10:00"),
            warrant=desk.warrant,
        )
        member = replace(member, account_id=enrolled.account_id, card=number)
    else:
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
    if taken_by == "activate":
        cards.activate_card(
            desk.connection,
            programme="alltid",
            number=number,
            at=desk.at("2024-03-04 10:00"),
            warrant=desk.warrant,
        )
    assert desk.standing(member).balance("bonus") == 600
    assert answered(desk.record(sale)[0]) == (first, True)
    assert desk.wrong(member) == []


def test_a_card_issued_after_the_purchase_does_not_earn_for_it(desk: "Desk") -> None:
    member = desk.join()
    number = desk.new_number()
    desk.record(desk.receipt(number, "2024-03-04 09:59:59", 100000))
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
    assert desk.standing(member).balance("bonus") == 0


def test_enrolling_twice_with_one_request_key_opens_one_account(desk: "Desk") -> None:
    number = desk.new_number()
    application = members.Application(
        applicant=Applicant(organization_number="930258008"), card_kind="customer-card"
    )

    def enrol(asked: members.Application, drawn: str) -> members.Enrolled:
        return members.enrol(
            desk.connection,
            programme="alltid",
            application=asked,
            request_key=number,
            at=desk.at("2024-03-01 10:00"),
            warrant=desk.warrant,
            drawn_number=drawn,
        )

    first = enrol(application, number)
    rows = desk.rows()
    assert enrol(application, desk.new_number()) == first
    with pytest.raises(KeyReused):
        enrol(replace(application, applicant=Applicant(organization_number="930258016")), number)
    assert desk.rows() == rows


def test_a_claim_is_refused_where_the_terms_do_not_allow_it(desk: "Desk") -> None:
    member = desk.join()
    sale = desk.receipt("", "2024-03-04 10:00", 100000)
    desk.record(sale)
    with pytest.raises(ClaimNotAllowed):
        sales.claim_receipt(
            desk.connection,
            programme="alltid",
            account_id=member.account_id,
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            at=desk.at("2024-03-05 10:00"),
            warrant=Warrant("desk"),
        )


def test_a_purchase_without_a_card_is_claimed_once_where_the_terms_allow_it(
    lonely: "Desk",
) -> None:
    rows = lonely.connection.execute(
        "SELECT source FROM terms_version WHERE programme = 'alltid'"
    ).fetchall()
    before, claims, after = rows[0][0].partition("[claims]")
    before = before.replace("valid_from = 2016-01-01", "valid_from = 2024-02-01")
    source = before + claims + after.replace("allowed = false", "allowed = true", 1)
    publishing.publish_terms(
        lonely.connection, source=source, at=lonely.at("2024-01-15 10:00"), by="publisher"
    )
    member, other = lonely.join(), lonely.join()
    sale = lonely.receipt("", "2024-03-04 10:00", 100000)
    (first,) = lonely.record(sale)
    back = lonely.return_of(sale, "2024-03-04 11:00", (1, 40000))
    lonely.take_back(back)

    def claim(claimer: "Member") -> Answer:
        return sales.claim_receipt(
            lonely.connection,
            programme="alltid",
            account_id=claimer.account_id,
            sale=back.sale,
            at=lonely.at("2024-03-05 10:00"),
            warrant=lonely.warrant,
        )

    assert claim(member).earned == {"bonus": 1000}
    assert lonely.standing(member).balance("bonus") == 600
    rows_before = lonely.rows()
    for again in (member, other):
        with pytest.raises(SaleUnknown):
            claim(again)
    assert lonely.rows() == rows_before
    assert answered(lonely.record(sale)[0]) == (answered(first)[0], True)
    assert lonely.wrong(member, other) == []


def test_a_quote_is_what_the_receipt_then_gets_and_writes_nothing(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 800000)
    receipt = desk.receipt(member.card, "2024-03-05 10:00", 100000)
    rows = desk.rows()
    quoted = sales.quote(
        desk.connection, programme="alltid", receipt=receipt, now=desk.at("2024-03-05 10:00")
    )
    assert desk.rows() == rows
    assert quoted.earned == {"bonus": 3000}
    assert quoted == desk.sell(member, "2024-03-05 10:00", 100000, number=receipt.number)
    with pytest.raises(StoreUnknown):
        sales.quote(
            desk.connection,
            programme="alltid",
            receipt=replace(receipt, store="nowhere", card=""),
            now=desk.at("2024-03-05 10:00"),
        )
