"""Whether a member may spend: holds, captures and payments, asked before they happen.

A card identifies and never authorizes spending: what proved the spender is in the request,
what is accepted as proof in the terms.
"""

from collections import Counter
from datetime import datetime, timedelta

from kantis.core.events import Held, Released, Sale
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt
from kantis.core.refusals import (
    CardNotUsable,
    HoldTooSmall,
    HoldUnknown,
    InDebt,
    MembershipEnded,
    NotEnough,
    ProofMissing,
    RedemptionSuspended,
    UnitNotSpendable,
)
from kantis.core.standing import Standing
from kantis.core.terms import Redemption


def check_member(standing: Standing) -> None:
    """Check that the membership runs.

    :raises MembershipEnded:
    """
    if standing.joined_at is None or standing.left_at is not None:
        raise MembershipEnded(left_at=standing.left_at)


def pays_with_units(programme: Programme, receipt: Receipt) -> bool:
    """Tell whether a receipt spends, or captures, any unit of the programme."""
    units = programme.on(programme.day(receipt.at)).units
    return any(tender.hold or tender.kind in units for tender in receipt.tenders)


def admit_payments(programme: Programme, standing: Standing, sale: Sale, *, then: Standing) -> Sale:
    """Check every payment with a unit on a sale: its hold, or a proof and enough to spend.

    What a hold set aside is looked for in `then`, the standing at the sale's own time; all
    else has to be there now, in `standing`.

    :raises Refusal: as `authorize_spending` and `authorize_capture`
    """
    units = programme.on(programme.day(sale.at)).units
    unheld: Counter[str] = Counter()
    captured: set[str] = set()
    for tender in sale.receipt.tenders:
        is_unit = tender.kind in units and tender.amount_minor > 0
        if tender.hold and not is_unit:
            raise UnitNotSpendable(unit=tender.kind, hold=tender.hold)
        if tender.hold in captured:
            raise HoldUnknown(hold=tender.hold)
        if tender.hold:
            captured.add(tender.hold)
            authorize_capture(
                programme,
                then,
                hold_id=tender.hold,
                unit=tender.kind,
                amount=tender.amount_minor,
                at=sale.at,
            )
        elif is_unit:
            unheld[tender.kind] += tender.amount_minor
    for unit, amount in unheld.items():
        authorize_spending(
            programme, standing, unit=unit, amount=amount, proof=sale.receipt.proof, at=sale.at
        )
    return sale


def check_unpaid(programme: Programme, receipt: Receipt, why: str) -> None:
    """Refuse a payment with a unit when there is no account that it could come from.

    :raises CardNotUsable:
    """
    if pays_with_units(programme, receipt):
        raise CardNotUsable(card=receipt.card, why=why)


def admit_hold(programme: Programme, standing: Standing, held: Held, *, proof: str) -> Held:
    """Check that an amount may be set aside.

    :raises Refusal: as `authorize_spending`
    """
    redemption = authorize_spending(
        programme, standing, unit=held.unit, amount=held.amount, proof=proof, at=held.at
    )
    until_at = held.at + timedelta(seconds=redemption.hold_seconds)
    return Held(
        at=held.at,
        key=held.key,
        hold_id=held.hold_id,
        unit=held.unit,
        amount=held.amount,
        until_at=until_at,
    )


def admit_release(standing: Standing, released: Released) -> Released:
    """Check that a hold is open.

    :raises HoldUnknown:
    """
    if released.hold_id not in {hold.hold_id for hold in standing.holds}:
        raise HoldUnknown(hold=released.hold_id)
    return released


def authorize_spending(
    programme: Programme, standing: Standing, *, unit: str, amount: int, proof: str, at: datetime
) -> Redemption:
    """Give the clause under which an amount may be spent or held now.

    :raises UnitNotSpendable:
    :raises MembershipEnded:
    :raises RedemptionSuspended:
    :raises ProofMissing:
    :raises InDebt:
    :raises NotEnough:
    """
    day = programme.day(at)
    redemption = _redemption(programme, unit, at)
    check_member(standing)
    if programme.is_suspended(unit, day):
        raise RedemptionSuspended(unit=unit)
    if proof not in redemption.proofs:
        raise ProofMissing(unit=unit, accepted=list(redemption.proofs))
    if debt := standing.debts.get(unit, 0):
        raise InDebt(unit=unit, debt=debt)
    if amount > (available := standing.usable(unit, day)):
        raise NotEnough(unit=unit, asked=amount, available=available)
    return redemption


def authorize_capture(
    programme: Programme, standing: Standing, *, hold_id: str, unit: str, amount: int, at: datetime
) -> None:
    """Check that an open hold covers a payment.

    :raises UnitNotSpendable:
    :raises HoldUnknown: also when the hold is in another unit
    :raises HoldTooSmall:
    """
    _redemption(programme, unit, at)
    hold = next((h for h in standing.holds if h.hold_id == hold_id), None)
    if hold is None or hold.unit != unit:
        raise HoldUnknown(hold=hold_id)
    if amount > hold.amount:
        raise HoldTooSmall(hold=hold_id, asked=amount, held=hold.amount)


def _redemption(programme: Programme, unit: str, at: datetime) -> Redemption:
    for redemption in programme.terms_at(at).redemption:
        if redemption.unit == unit:
            return redemption
    raise UnitNotSpendable(unit=unit)
