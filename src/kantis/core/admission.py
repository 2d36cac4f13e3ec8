"""Asked before anything happens: a request becomes an event, or a refusal.

`step` takes every event as a fact, so whether it may happen at all is decided here, on the
standing caught up to the moment. Spending has a module of its own, `kantis.core.spending`.
"""

from collections import Counter
from datetime import date, datetime, timedelta

from msgspec import Struct

from kantis.core.cards import Card, account_at, why_not_usable
from kantis.core.events import (
    Joined,
    Left,
    Opened,
    PastSale,
    Returned,
    RoleTaken,
    StatusChanged,
)
from kantis.core.periods import Period, add_months, elapsed, read_month
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt, Return
from kantis.core.refusals import (
    AlreadyJoined,
    AlreadyOpened,
    AmountsDoNotAddUp,
    ApprovalMissing,
    CardKindUnknown,
    ClaimNotAllowed,
    CurrencyUnknown,
    LeavingCauseUnknown,
    MayNotJoin,
    PoolingNotAllowed,
    ReasonMissing,
    ReturnedMoreThanBought,
    RoleUnknown,
    StatusUnknown,
    SuspensionNotAllowed,
    TermsNotInForce,
    TimeImpossible,
    UnitUnknown,
)
from kantis.core.spending import check_member
from kantis.core.standing import Standing
from kantis.core.terms import Operation, ReviewLadder, Terms

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a till's clock may be ahead of ours."""


class Warrant(Struct, frozen=True):
    """Who does something, why, and who else approved it."""

    actor: str
    reason: str = ""
    approved_by: str = ""


class Applicant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an application says. It is judged and not kept: names live apart from the ledger."""

    born_on: date | None = None
    organization_number: str = ""
    trade: str = ""


def check_approval(
    terms: Terms,
    operation: Operation,
    warrant: Warrant,
) -> None:
    """Check that another person approved, where the terms ask for it.

    :raises ApprovalMissing: also when who asks and who approves are one person
    """
    for approval in terms.approval:
        if approval.operation == operation and warrant.approved_by in {"", warrant.actor}:
            raise ApprovalMissing(operation=operation, clause=approval.clause)
    check_is_other(warrant)


def check_is_other(warrant: Warrant) -> None:
    """Check that nobody approves what they do themselves, also where no approval is asked for.

    :raises ApprovalMissing:
    """
    if warrant.approved_by == warrant.actor:
        raise ApprovalMissing(approved_by=warrant.approved_by)


def check_time(programme: Programme, at: datetime, *, now: datetime) -> None:
    """Check that something did not happen in the future or before the first terms.

    :raises TimeImpossible:
    """
    if at - now > CLOCK_TOLERANCE:
        raise TimeImpossible(at=at, now=now)
    try:
        programme.terms_at(at)
    except TermsNotInForce as refusal:
        first = programme.versions[0].terms.valid_from
        raise TimeImpossible(at=at, first_terms=first) from refusal


def check_clock(at: datetime, *, now: datetime) -> None:
    """Check that a till which says when something happens now has a clock near ours.

    :raises TimeImpossible:
    """
    if abs(at - now) > CLOCK_TOLERANCE:
        raise TimeImpossible(at=at, now=now)


# --- membership ----------------------------------------------------------------------------


def admit_joining(
    programme: Programme,
    standing: Standing,
    applicant: Applicant,
    *,
    at: datetime,
    key: str,
    number_is_valid: bool,
) -> Joined:
    """Judge an applicant; the caller has checked the organization number's form.

    :raises AlreadyJoined:
    :raises MayNotJoin: with the clause and what is missing
    """
    membership = programme.terms_at(at).membership
    age = membership.minimum_age_years
    if standing.joined_at is not None and standing.left_at is None:
        raise AlreadyJoined(joined_at=standing.joined_at)
    today = programme.day(at)
    born_on = applicant.born_on
    # Whoever is born later than today is too young, and in the year 9999 add_months would fail.
    if age and (born_on is None or born_on > today or add_months(born_on, 12 * age) > today):
        raise MayNotJoin(clause=membership.clause, minimum_age_years=age)
    if membership.organization_number and not number_is_valid:
        raise MayNotJoin(clause=membership.clause, organization_number="not valid")
    if applicant.trade in membership.not_trades:
        raise MayNotJoin(clause=membership.clause, trade=applicant.trade)
    return Joined(at=at, key=key)


def admit_card(programme: Programme, *, kind: str, role: str, at: datetime, key: str) -> RoleTaken:
    """Check that the terms know a kind of card and the role of who gets it.

    :raises CardKindUnknown:
    :raises RoleUnknown:
    """
    terms = programme.terms_at(at)
    if kind not in {card.name for card in terms.card}:
        raise CardKindUnknown(kind=kind, known=[card.name for card in terms.card])
    if role not in terms.membership.roles:
        raise RoleUnknown(role=role, known=list(terms.membership.roles))
    return RoleTaken(at=at, key=key, role=role)


def check_pooling(programme: Programme, *, at: datetime) -> None:
    """Check that a card may collect on somebody else's account (C-6, S-13).

    :raises PoolingNotAllowed:
    """
    pooling = programme.terms_at(at).pooling
    if not pooling.allowed:
        raise PoolingNotAllowed(clause=pooling.clause)


def admit_opening(
    programme: Programme, standing: Standing, opening: Opened, warrant: Warrant
) -> Opened:
    """Check balances brought along from an older system: first of all, known, approved.

    :raises MembershipEnded: nobody has joined
    :raises AlreadyOpened: something has already been earned, bought or opened
    :raises UnitUnknown: or the tier is unknown
    :raises ApprovalMissing:
    """
    terms = programme.terms_at(opening.at)
    check_member(standing)
    if standing.is_opened or standing.sums or standing.lots or standing.debts:
        raise AlreadyOpened
    units = programme.on(programme.day(opening.at)).units
    for lot in opening.lots:
        if lot.unit not in units or lot.amount <= 0:
            raise UnitUnknown(unit=lot.unit, amount=lot.amount, known=sorted(units))
    tiers = {tier.name for tier in terms.tier}
    if opening.tier and opening.tier not in tiers:
        raise UnitUnknown(tier=opening.tier, known=sorted(tiers))
    if opening.tier and opening.tier_until is None and isinstance(terms.ladder, ReviewLadder):
        raise UnitUnknown(tier=opening.tier, missing="tier_until")
    for month in opening.sums:
        if read_month(month) is None:
            raise UnitUnknown(month=month)
    check_approval(terms, "open_balances", warrant)
    return opening


def admit_status(programme: Programme, change: StatusChanged, warrant: Warrant) -> StatusChanged:
    """Check that the terms know a status.

    :raises StatusUnknown:
    :raises ApprovalMissing:
    """
    terms = programme.terms_at(change.at)
    known = [status.name for status in terms.status]
    if change.status not in known:
        raise StatusUnknown(status=change.status, known=known)
    check_approval(terms, "grant_status", warrant)
    return change


def admit_leaving(
    programme: Programme, standing: Standing, leaving: Left, warrant: Warrant
) -> Left:
    """Check the cause for which a membership is ended.

    :raises MembershipEnded:
    :raises LeavingCauseUnknown:
    :raises ReasonMissing:
    :raises ApprovalMissing:
    """
    terms = programme.terms_at(leaving.at)
    check_member(standing)
    block = next((b for b in terms.leaving if b.cause == leaving.cause), None)
    if block is None:
        raise LeavingCauseUnknown(cause=leaving.cause, known=[b.cause for b in terms.leaving])
    if block.reason_needed and not warrant.reason.strip():
        raise ReasonMissing(cause=leaving.cause, clause=block.clause)
    check_approval(terms, "leave", warrant)
    return leaving


def admit_suspension(
    programme: Programme, period: Period, *, now: datetime, warrant: Warrant
) -> Period:
    """Check that redemption may be suspended for days that are not over yet (S-16).

    :raises SuspensionNotAllowed:
    :raises ReasonMissing:
    :raises ApprovalMissing:
    """
    terms = programme.terms_at(now)
    if terms.suspension is None or not programme.day(now) <= period.start < period.end:
        raise SuspensionNotAllowed(start=period.start, end=period.end)
    if not warrant.reason.strip():
        raise ReasonMissing(clause=terms.suspension.clause)
    check_approval(terms, "suspend", warrant)
    return period


def check_claim(programme: Programme, *, at: datetime) -> None:
    """Check that a purchase without a card may be claimed afterwards (K-1.4).

    :raises ClaimNotAllowed:
    """
    claims = programme.terms_at(at).claims
    if not claims.allowed:
        raise ClaimNotAllowed(clause=claims.clause)


# --- sales and returns ---------------------------------------------------------------------


def account_of(
    programme: Programme, cards: dict[str, Card], receipt: Receipt
) -> tuple[int | None, str]:
    """Give the account that the card read stood for then, or the code of why there is none."""
    if not receipt.card:
        return None, "no-card"
    card = cards.get(receipt.card)
    if card is None or programme.is_before(receipt.at):
        return None, "card-unknown"
    if (account_id := account_at(card, at=receipt.at)) is None:
        return None, "card-unknown"
    terms = programme.on(programme.day(receipt.at)).terms
    nothing = why_not_usable(terms, card, at=receipt.at)
    return (None, nothing) if nothing else (account_id, "")


def too_late(programme: Programme, at: datetime, *, now: datetime) -> str:
    """Give the clause by which a receipt or return comes too late to be booked by itself.

    Empty if it is in time. The terms in force when it was made say how long it may take.
    """
    lateness = programme.terms_at(at).lateness
    return lateness.clause if lateness and elapsed(at, now) > timedelta(days=lateness.days) else ""


def admit_waiting(programme: Programme, *, now: datetime, warrant: Warrant) -> None:
    """Check that staff may decide on what waits for them.

    :raises ReasonMissing:
    :raises ApprovalMissing:
    """
    if not warrant.reason.strip():
        raise ReasonMissing
    check_approval(programme.terms_at(now), "accept_waiting", warrant)


def check_receipt(programme: Programme, receipt: Receipt, *, now: datetime) -> None:
    """Check what the types cannot say: sums, currency, time.

    :raises TimeImpossible:
    :raises AmountsDoNotAddUp:
    :raises CurrencyUnknown:
    """
    check_time(programme, receipt.at, now=now)
    lines_minor = sum([line.amount_minor for line in receipt.lines])
    if lines_minor != receipt.total_minor:
        raise AmountsDoNotAddUp(total_minor=receipt.total_minor, lines_minor=lines_minor)
    if receipt.tenders:
        tenders_minor = sum([tender.amount_minor for tender in receipt.tenders])
        if tenders_minor != receipt.total_minor:
            raise AmountsDoNotAddUp(total_minor=receipt.total_minor, tenders_minor=tenders_minor)
    version = programme.on(programme.day(receipt.at))
    paid = [t.amount_minor for t in receipt.tenders if t.kind in version.units]
    if paid and (min(paid) <= 0 or sum(paid) > receipt.total_minor):
        # Change would turn bonus into cash (S-9).
        raise AmountsDoNotAddUp(total_minor=receipt.total_minor, paid_with_units=sum(paid))
    currency = version.terms.currency
    if receipt.currency != currency:
        raise CurrencyUnknown(currency=receipt.currency, expected=currency)


def check_return(past: PastSale, document: Return) -> None:
    """Check that no line comes back beyond what was bought and is still out.

    A line taken back on the receipt itself counts against those of the same product.

    :raises ReturnedMoreThanBought:
    """
    lines = past.sale.receipt.lines
    back = Counter(past.returned)
    alike: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(lines, start=1):
        alike[line.category, line.product] += line.amount_minor - back[number]
    for one in document.lines:
        line = lines[one.line - 1] if one.line <= len(lines) else Line(0)
        key = (line.category, line.product)
        left = min(line.amount_minor - back[one.line], alike[key])
        if one.amount_minor > left:
            raise ReturnedMoreThanBought(
                line=one.line, asked_minor=one.amount_minor, left_minor=max(left, 0)
            )
        back[one.line] += one.amount_minor
        alike[key] -= one.amount_minor


def admit_return(programme: Programme, returned: Returned, *, now: datetime) -> Returned:
    """Check a return whose sale is known.

    :raises TimeImpossible: also when it would lie before its sale
    :raises ReturnedMoreThanBought:
    """
    check_time(programme, returned.at, now=now)
    past = returned.past
    assert past is not None, "the sale of a return is looked up first"
    if returned.at < past.sale.at:
        raise TimeImpossible(at=returned.at, sold_at=past.sale.at)
    check_return(past, returned.document)
    return returned
