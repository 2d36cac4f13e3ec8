"""Who may do what with whose approval; and a refusal leaves everything as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kantis.core.admission import Applicant, Warrant
from kantis.core.events import Held, Joined, Left, Opened, OpeningLot, Released, StatusChanged
from kantis.core.periods import ONE_DAY, Period
from kantis.core.receipt import SaleKey, Tender
from kantis.core.refusals import (
    AccountUnknown,
    AlreadyJoined,
    AlreadyOpened,
    AmountsDoNotAddUp,
    ApprovalMissing,
    CardKindUnknown,
    CardNotUsable,
    CardNumberTaken,
    CardUnknown,
    ClaimNotAllowed,
    CurrencyUnknown,
    HoldTooSmall,
    HoldUnknown,
    InDebt,
    KeyReused,
    LeavingCauseUnknown,
    MayNotJoin,
    MembershipEnded,
    NotEnough,
    NotWaiting,
    PoolingNotAllowed,
    ProofMissing,
    ReasonMissing,
    ReceiptDiffers,
    RedemptionSuspended,
    Refusal,
    ReturnedMoreThanBought,
    RoleUnknown,
    SaleUnknown,
    StatusUnknown,
    StoreNotYours,
    StoreUnknown,
    SuspensionNotAllowed,
    TermsAlreadyPublished,
    TermsNotInForce,
    TermsTooLate,
    TimeImpossible,
    UnitNotSpendable,
    UnitUnknown,
    all_refusals,
)
from kantis.core.standing import Standing
from kantis.operations import cards, members, publishing, sales, spending, upkeep, waiting

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member

NOBODY = 0
NOON = "2024-03-05 12:00"
PROGRAMMES = Path(__file__).parents[2] / "programmes"

BEFORE: list[tuple["Member", tuple[dict[str, int], Standing]]] = []
"""About whom, and what there was, when everything was prepared for a refusal."""


def what_there_is(desk: "Desk", member: "Member") -> tuple[dict[str, int], Standing]:
    return desk.rows(), desk.standing(member)


def prepared(desk: "Desk", member: "Member") -> None:
    """Say that all which follows is refused."""
    BEFORE.append((member, what_there_is(desk, member)))


def opening(desk: "Desk", key: str = "opening") -> Opened:
    lot = OpeningLot("bonus", 5000, desk.at("2023-01-15 12:00").date())
    return Opened(at=desk.at("2024-03-01 10:01"), key=key, lots=(lot,))


def open_balances(desk: "Desk", member: "Member", warrant: Warrant, key: str = "opening") -> None:
    members.open_balances(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        opening=opening(desk, key),
        warrant=warrant,
    )


def test_balances_are_opened_only_with_the_approval_of_another_person(desk: "Desk") -> None:
    member = desk.join()
    for warrant in (Warrant("anna"), Warrant("anna", approved_by="anna")):
        with pytest.raises(ApprovalMissing):
            open_balances(desk, member, warrant)
    open_balances(desk, member, Warrant("anna", "moved from the old system", "berit"))
    kept = desk.connection.execute(
        "SELECT actor, reason, approved_by FROM event WHERE account_id = %s AND kind = 'opened'",
        [member.account_id],
    ).fetchall()
    assert kept == [("anna", "moved from the old system", "berit")]
    assert desk.standing(member).balance("bonus") == 5000


def test_a_membership_is_ended_for_a_breach_only_with_a_reason(desk: "Desk") -> None:
    member = desk.join()
    left = Left(at=desk.at("2024-03-05 10:00"), key="left", cause="breach")

    def leave(warrant: Warrant) -> None:
        members.leave(
            desk.connection,
            programme="alltid",
            account_id=member.account_id,
            left=left,
            warrant=warrant,
        )

    for reason in ("", "  "):
        with pytest.raises(ReasonMissing):
            leave(Warrant("anna", reason))
    leave(Warrant("anna", "sold the card"))
    assert desk.standing(member).left_at == left.at


def test_nobody_approves_what_they_do_themselves_also_where_no_approval_is_asked_for(
    desk: "Desk",
) -> None:
    member = desk.join()
    alone = Warrant("anna", "because", "anna")
    receipt = desk.receipt(member.card, "2024-03-04 10:00", 10000)
    rows = desk.rows()
    with pytest.raises(ApprovalMissing):
        members.leave(
            desk.connection,
            programme="alltid",
            account_id=member.account_id,
            left=Left(at=desk.at("2024-03-05 10:00"), key="left", cause="member"),
            warrant=alone,
        )
    with pytest.raises(ApprovalMissing):
        upkeep.suspend(
            desk.connection,
            programme="alltid",
            period=Period(desk.at("2024-03-05 10:00").date(), desk.at("2024-03-06 10:00").date()),
            now=desk.at("2024-03-04 10:00"),
            warrant=alone,
        )
    (refused,) = sales.record_receipts(
        desk.connection,
        programme="alltid",
        receipts=[receipt],
        now=desk.at("2024-03-04 10:00"),
        warrant=alone,
    )
    assert isinstance(refused, ApprovalMissing)
    assert desk.rows() == rows


Attempt = Callable[["Desk", "Member"], object]


def enrol(**changes: str) -> Attempt:
    """Attempt an application that is in order but for `changes`."""

    def attempt(desk: "Desk", _: "Member") -> object:
        return members.enrol(
            desk.connection,
            programme=changes.get("programme", "alltid"),
            application=members.Application(
                applicant=Applicant(
                    organization_number=changes.get("organization_number", "930258016"),
                    trade=changes.get("trade", ""),
                ),
                card_kind=changes.get("card_kind", "customer-card"),
                card_number=changes.get("card_number", desk.new_number()),
            ),
            request_key=desk.new_number(),
            at=desk.at(changes.get("at", "2024-03-04 10:00")),
            warrant=desk.warrant,
        )

    return attempt


def issue(**changes: str | int) -> Attempt:
    def attempt(desk: "Desk", member: "Member") -> object:
        return cards.issue_card(
            desk.connection,
            programme="alltid",
            issue=cards.Issue(
                account_id=int(changes.get("account_id", member.account_id)),
                kind=str(changes.get("kind", "customer-card")),
                role=str(changes.get("role", "main")),
                number=str(changes.get("number", member.card)),
            ),
            request_key=desk.new_number(),
            at=desk.at("2024-03-04 10:00"),
            warrant=desk.warrant,
        )

    return attempt


def hold(unit: str = "bonus", amount: int = 100, proof: str = "staff") -> Attempt:
    def attempt(desk: "Desk", member: "Member") -> object:
        at = desk.at("2024-03-05 10:00")
        return spending.hold(
            desk.connection,
            programme="alltid",
            account_id=member.account_id,
            held=Held(at=at, key="h", hold_id="h", unit=unit, amount=amount, until_at=at),
            proof=proof,
            warrant=desk.warrant,
        )

    return attempt


def release(desk: "Desk", member: "Member") -> object:
    return spending.release(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        released=Released(at=desk.at("2024-03-05 10:00"), key="r", hold_id="nothing"),
        warrant=desk.warrant,
    )


def leave(desk: "Desk", member: "Member") -> object:
    return members.leave(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        left=Left(at=desk.at("2024-03-05 10:00"), key="left", cause="boredom"),
        warrant=desk.warrant,
    )


def reuse_key(desk: "Desk", member: "Member") -> object:
    number = desk.history(member)[0][1].key
    return members.leave(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        left=Left(at=desk.at("2024-03-05 10:00"), key=number, cause="member"),
        warrant=desk.warrant,
    )


def grant(desk: "Desk", member: "Member") -> object:
    return members.grant_status(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        change=StatusChanged(
            at=desk.at("2024-03-05 10:00"), key="s", status="cooperative", granted=True
        ),
        warrant=desk.warrant,
    )


def rejoin(desk: "Desk", member: "Member") -> object:
    return members.rejoin(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        joined=Joined(at=desk.at("2024-03-05 10:00"), key="again"),
        applicant=Applicant(organization_number="930258008"),
        warrant=desk.warrant,
    )


def open_again(desk: "Desk", member: "Member") -> None:
    open_balances(desk, member, Warrant("anna", approved_by="berit"), key="again")


def pool(desk: "Desk", member: "Member") -> object:
    return cards.pool_card(
        desk.connection,
        programme="alltid",
        number=member.card,
        onto=member.account_id,
        at=desk.at("2024-03-05 10:00"),
        warrant=desk.warrant,
    )


def block(desk: "Desk", _: "Member") -> object:
    return cards.block_card(
        desk.connection,
        programme="alltid",
        number="4444",
        at=desk.at("2024-03-05 10:00"),
        warrant=desk.warrant,
    )


def activate_elsewhere(desk: "Desk", member: "Member") -> object:
    return cards.activate_card(
        desk.connection,
        programme="kplussa",
        number=member.card,
        at=desk.at("2024-03-05 10:00"),
        warrant=desk.warrant,
    )


def replace_by_itself(desk: "Desk", member: "Member") -> object:
    return cards.replace_card(
        desk.connection,
        programme="alltid",
        number=member.card,
        new_number=member.card,
        at=desk.at("2024-03-05 10:00"),
        warrant=desk.warrant,
    )


def claim(desk: "Desk", member: "Member") -> object:
    sale = desk.receipt("", "2024-03-04 10:00", 100)
    return sales.claim_receipt(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        sale=desk.return_of(sale, "2024-03-04 10:00").sale,
        at=desk.at("2024-03-05 10:00"),
        warrant=desk.warrant,
    )


def suspend(start: str, reason: str = "flood") -> Attempt:
    def attempt(desk: "Desk", _: "Member") -> None:
        upkeep.suspend(
            desk.connection,
            programme="alltid",
            period=Period(desk.at(f"{start} 00:00").date(), desk.at("2024-03-09 00:00").date()),
            now=desk.at("2024-03-05 10:00"),
            warrant=Warrant("anna", reason),
        )

    return attempt


def add_till(desk: "Desk", _: "Member") -> None:
    publishing.add_till(
        desk.connection,
        programme="alltid",
        store="nowhere",
        label="1",
        kind="till",
        token="t",  # noqa: S106 - of a test
        at=desk.at("2024-03-05 10:00"),
    )


def raised(result: sales.Result) -> None:
    """Raise what a till would get as a 4xx."""
    if isinstance(result, Refusal):
        raise result


def sell(*amounts: int, at: str = "2024-03-05 10:00", **changes: object) -> Attempt:
    """Send a receipt, changed in some fields."""

    def attempt(desk: "Desk", member: "Member") -> None:
        receipt = desk.receipt(member.card, at, *amounts or (500,))
        raised(desk.record(msgspec.structs.replace(receipt, **changes))[0])

    return attempt


def pay(amount: int, kind: str = "bonus", hold: str = "", proof: str = "staff") -> Attempt:
    tenders = (Tender(kind, amount, hold),)
    return sell(amount, tenders=tenders, proof=proof)


def in_debt(desk: "Desk", member: "Member") -> None:
    """Bring back what gave the bonus, after the bonus was spent; then spend again."""
    sale = desk.receipt(member.card, "2024-03-04 11:00", 100000)
    desk.record(sale)
    desk.sell(member, "2024-03-04 12:00", 2000, paid={"bonus": 2000})
    desk.take_back(desk.return_of(sale, "2024-03-04 13:00", (1, 100000)))
    prepared(desk, member)
    pay(100)(desk, member)


def ended(desk: "Desk", member: "Member") -> None:
    members.leave(
        desk.connection,
        programme="alltid",
        account_id=member.account_id,
        left=Left(at=desk.at("2024-03-05 09:00"), key="left", cause="member"),
        warrant=desk.warrant,
    )
    prepared(desk, member)
    pay(100)(desk, member)


def hold_too_small(desk: "Desk", member: "Member") -> None:
    hold(amount=100)(desk, member)
    prepared(desk, member)
    sell(101, at="2024-03-05 10:01", tenders=(Tender("bonus", 101, "h"),))(desk, member)


def differing(desk: "Desk", member: "Member") -> None:
    sale = desk.receipt(member.card, "2024-03-05 10:00", 500)
    desk.record(sale)
    prepared(desk, member)
    other = msgspec.structs.replace(sale, training=True)
    raised(desk.record(other)[0])


def too_much_back(desk: "Desk", member: "Member") -> None:
    sale = desk.receipt(member.card, "2024-03-05 10:00", 500)
    desk.record(sale)
    prepared(desk, member)
    raised(desk.take_back(desk.return_of(sale, "2024-03-05 11:00", (1, 501)))[0])


def return_of_a_return(desk: "Desk", member: "Member") -> None:
    sale = desk.receipt(member.card, "2024-03-05 10:00", 500)
    desk.record(sale)
    back = desk.return_of(sale, "2024-03-05 11:00", (1, 100))
    desk.take_back(back)
    prepared(desk, member)
    key = SaleKey(back.store, back.till, back.business_day, back.number)
    again = desk.return_of(sale, "2024-03-05 12:00", (1, 100))
    raised(desk.take_back(msgspec.structs.replace(again, sale=key))[0])


def test_nothing_is_spent_while_redemption_is_suspended(lonely: "Desk") -> None:
    desk, member = lonely, lonely.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    upkeep.suspend(
        desk.connection,
        programme="alltid",
        period=Period(desk.at("2024-03-06 00:00").date(), desk.at("2024-03-08 00:00").date()),
        now=desk.at("2024-03-05 10:00"),
        warrant=Warrant("anna", "flood", "bert"),
    )
    before = what_there_is(desk, member)
    receipt = desk.receipt(member.card, "2024-03-07 10:00", 100, paid={"bonus": 100})
    assert isinstance(desk.record(receipt)[0], RedemptionSuspended)
    assert what_there_is(desk, member) == before


def open_unknown(desk: "Desk", _: "Member") -> None:
    other = desk.join()
    prepared(desk, other)
    members.open_balances(
        desk.connection,
        programme="alltid",
        account_id=other.account_id,
        opening=Opened(
            at=desk.at("2024-03-01 10:01"),
            key="o",
            lots=(OpeningLot("gold", 1, desk.at("2024-01-01 00:00").date()),),
        ),
        warrant=Warrant("anna", approved_by="bert"),
    )


def open_alone(desk: "Desk", _: "Member") -> None:
    other = desk.join()
    prepared(desk, other)
    open_balances(desk, other, Warrant("anna"))


def publish(change: str, to: str) -> Attempt:
    def attempt(desk: "Desk", _: "Member") -> None:
        source = (PROGRAMMES / "alltid" / "2016-01-01.toml").read_text("utf-8")
        publishing.publish_terms(
            desk.connection, source=source.replace(change, to), at=desk.at(NOON), by="publisher"
        )

    return attempt


def accept_nothing(desk: "Desk", _: "Member") -> None:
    waiting.accept(
        desk.connection,
        programme="alltid",
        key="alltid/north/1/2024-03-04/none",
        at=desk.at(NOON),
        warrant=Warrant("anna", "why"),
    )


REFUSED: list[tuple[type[Refusal], Attempt]] = [
    (MayNotJoin, enrol(organization_number="930258009")),
    (MayNotJoin, enrol(trade="wholesaler")),
    (CardKindUnknown, enrol(card_kind="golden")),
    (CardNumberTaken, lambda desk, member: enrol(card_number=member.card)(desk, member)),
    (TermsNotInForce, enrol(at="2015-12-31 23:59")),
    (TermsNotInForce, enrol(programme="nowhere")),
    (AccountUnknown, issue(account_id=NOBODY)),
    (CardKindUnknown, issue(kind="golden")),
    (RoleUnknown, issue(role="cook")),
    (CardNumberTaken, issue()),
    (ProofMissing, hold(proof="card")),
    (NotEnough, hold(amount=10**6)),
    (UnitNotSpendable, hold(unit="points")),
    (HoldUnknown, release),
    (LeavingCauseUnknown, leave),
    (KeyReused, reuse_key),
    (StatusUnknown, grant),
    (AlreadyJoined, rejoin),
    (AlreadyOpened, open_again),
    (PoolingNotAllowed, pool),
    (CardUnknown, block),
    (CardUnknown, activate_elsewhere),
    (CardNumberTaken, replace_by_itself),
    (ClaimNotAllowed, claim),
    (SuspensionNotAllowed, suspend("2024-03-04")),
    (SuspensionNotAllowed, suspend("2024-03-09")),
    (ReasonMissing, suspend("2024-03-06", " ")),
    (StoreUnknown, add_till),
    (StoreUnknown, sell(store="nowhere")),
    (AmountsDoNotAddUp, sell(total_minor=501)),
    (AmountsDoNotAddUp, sell(tenders=(Tender("cash", 499),))),
    (CurrencyUnknown, sell(currency="EUR")),
    (TimeImpossible, sell(at="2030-01-01 10:00")),
    (TimeImpossible, sell(at="2015-12-31 10:00")),
    (ReceiptDiffers, differing),
    (NotEnough, pay(10**6)),
    (NotEnough, sell(1200, tenders=(Tender("bonus", 600), Tender("bonus", 600)), proof="staff")),
    (ProofMissing, pay(100, proof="")),
    (UnitNotSpendable, pay(100, kind="cash", hold="h")),
    (HoldUnknown, pay(100, hold="nothing")),
    (HoldTooSmall, hold_too_small),
    (CardNotUsable, sell(500, card="4040404040404", tenders=(Tender("bonus", 500),))),
    (InDebt, in_debt),
    (MembershipEnded, ended),
    (ReturnedMoreThanBought, too_much_back),
    (SaleUnknown, return_of_a_return),
    (UnitUnknown, open_unknown),
    (ApprovalMissing, open_alone),
    (TermsAlreadyPublished, publish("Clause numbers", "Numbers")),
    (TermsTooLate, publish("valid_from = 2016-01-01", "valid_from = 2020-01-01")),
    (NotWaiting, accept_nothing),
]

ELSEWHERE = {StoreNotYours, RedemptionSuspended}
"""Refused by the API before an operation is asked; and on a database of its own, above."""


def test_there_is_an_attempt_for_every_code() -> None:
    assert {refusal for refusal, _ in REFUSED} == set(all_refusals()) - ELSEWHERE


@pytest.mark.parametrize(
    ("refusal", "attempt"), REFUSED, ids=[f"{n}-{r.code}" for n, (r, _) in enumerate(REFUSED)]
)
def test_what_is_refused_leaves_everything_as_it_was(
    desk: "Desk", refusal: type[Refusal], attempt: Attempt
) -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    prepared(desk, member)
    with pytest.raises(refusal):
        attempt(desk, member)
    about, before = BEFORE.pop()
    assert what_there_is(desk, about) == before


def test_bonus_buys_no_change_and_a_negative_payment_earns_nothing(desk: "Desk") -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 1_000_000)
    before = desk.rows()
    for total, paid in ((100, {"bonus": 10_000}), (10_000, {"bonus": -10_000})):
        receipt = desk.receipt(member.card, "2024-03-05 10:00", total, paid=paid)
        cash = Tender("cash", total - paid["bonus"])
        odd = msgspec.structs.replace(
            receipt, tenders=(Tender("bonus", paid["bonus"]), cash), proof="staff"
        )
        (result,) = desk.record(odd, now=desk.at("2024-03-05 11:00"))
        assert isinstance(result, AmountsDoNotAddUp)
    assert desk.rows() == before


def test_a_day_that_has_not_come_is_not_ticked(desk: "Desk") -> None:
    at = desk.at("2024-03-05 10:00")
    with pytest.raises(TimeImpossible):
        upkeep.tick(desk.connection, programme="alltid", through=at.date() + ONE_DAY, now=at)
