"""Who may do what with whose approval; and a refusal leaves everything as it was."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from kantis.core.admission import Applicant, Warrant
from kantis.core.events import Held, Joined, Left, Opened, OpeningLot, Released, StatusChanged
from kantis.core.periods import ONE_DAY, Period
from kantis.core.receipt import Tender
from kantis.core.refusals import (
    AccountUnknown,
    AlreadyJoined,
    AlreadyOpened,
    AmountsDoNotAddUp,
    ApprovalMissing,
    CardKindUnknown,
    CardNumberTaken,
    CardUnknown,
    ClaimNotAllowed,
    HoldUnknown,
    KeyReused,
    LeavingCauseUnknown,
    MayNotJoin,
    NotEnough,
    PoolingNotAllowed,
    ProofMissing,
    ReasonMissing,
    Refusal,
    RoleUnknown,
    StatusUnknown,
    StoreUnknown,
    SuspensionNotAllowed,
    TermsNotInForce,
    TimeImpossible,
    UnitNotSpendable,
)
from kantis.operations import cards, members, publishing, sales, spending, upkeep

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member

NOBODY = 0


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
]


@pytest.mark.parametrize(
    ("refusal", "attempt"), REFUSED, ids=[f"{n}-{r.code}" for n, (r, _) in enumerate(REFUSED)]
)
def test_what_is_refused_leaves_everything_as_it_was(
    desk: "Desk", refusal: type[Refusal], attempt: Attempt
) -> None:
    member = desk.join()
    desk.sell(member, "2024-03-04 10:00", 100000)
    before = (desk.rows(), desk.standing(member))
    with pytest.raises(refusal):
        attempt(desk, member)
    assert (desk.rows(), desk.standing(member)) == before


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
