"""What desks ask: members and cards. Numbers and keys that nobody brought are made here."""

import secrets
from typing import Annotated

from litestar import get, post
from litestar.params import FromPath, JSONBody, PathParameter
from msgspec import Struct
from stdnum import ean

from kantis.api.access import Asker, now, this_second
from kantis.api.problems import PROBLEMS
from kantis.api.tills import IdempotencyKey
from kantis.api.wire import (
    EnrolAsked,
    IssueAsked,
    LeaveAsked,
    OpeningAsked,
    PoolAsked,
    ReplaceAsked,
    StatusAsked,
    WaitingDecided,
    Why,
    account_in,
    card_in,
)
from kantis.core.answers import Answer
from kantis.core.cards import Card
from kantis.core.events import Left, Opened, OpeningLot, StatusChanged
from kantis.db.strays import Stray
from kantis.operations import cards, members, waiting
from kantis.operations.cards import Issue
from kantis.operations.members import Application, Enrolled

TAGS = ["desks"]


class Dismissed(Struct, frozen=True):
    """What is never booked."""

    key: str


AccountNumber = Annotated[str, PathParameter(description="The account's id")]


@get("/waiting", sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def list_waiting(till: Asker) -> list[Stray]:
    """Show the receipts and returns that wait for staff, oldest first."""
    return till.ask(lambda c: waiting.list_waiting(c, programme=till.programme))


@post("/waiting/accept", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def accept_waiting(data: JSONBody[WaitingDecided], till: Asker) -> Answer:
    """Book what waits in its place, as if it had come in time."""
    return till.ask(
        lambda c: waiting.accept(
            c,
            programme=till.programme,
            key=data.key,
            at=now(),
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post("/waiting/dismiss", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def dismiss_waiting(data: JSONBody[WaitingDecided], till: Asker) -> Dismissed:
    """Decide that what waits is never booked; its key stays used."""
    till.ask(
        lambda c: waiting.dismiss(
            c,
            programme=till.programme,
            key=data.key,
            at=now(),
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )
    return Dismissed(data.key)


@post("/members", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def enrol_member(
    data: JSONBody[EnrolAsked], till: Asker, idempotency_key: IdempotencyKey
) -> Enrolled:
    """Open an account and hand over its first card. What is said of the person is not kept."""
    application = Application(
        applicant=data.applicant, card_kind=data.card_kind, card_number=data.card_number or ""
    )
    return till.ask(
        lambda c: members.enrol(
            c,
            programme=till.programme,
            application=application,
            request_key=till.own(idempotency_key),
            at=this_second(),
            warrant=till.warrant(data.reason, data.approved_by),
            drawn_number=draw_card_number(),
        )
    )


@post("/cards", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def issue_card(data: JSONBody[IssueAsked], till: Asker, idempotency_key: IdempotencyKey) -> Card:
    """Hand over a further card of an account."""
    issue = Issue(
        account_id=data.account_id, kind=data.kind, role=data.role, number=data.number or ""
    )
    return till.ask(
        lambda c: cards.issue_card(
            c,
            programme=till.programme,
            issue=issue,
            request_key=till.own(idempotency_key),
            at=this_second(),
            warrant=till.warrant(data.reason, data.approved_by),
            drawn_number=draw_card_number(),
        )
    )


@post(
    "/cards/{number:str}/activate",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def activate_card(number: FromPath[str], data: JSONBody[Why], till: Asker) -> Card:
    """Let a card work from now on instead of only after the hours that the terms say."""
    return till.ask(
        lambda c: cards.activate_card(
            c,
            programme=till.programme,
            number=card_in(number),
            at=now(),
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post(
    "/cards/{number:str}/block", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS
)
def block_card(number: FromPath[str], till: Asker) -> Card:
    """Block a card from now on; the first time counts. No body is needed."""
    return till.ask(
        lambda c: cards.block_card(
            c,
            programme=till.programme,
            number=card_in(number),
            at=now(),
            warrant=till.warrant(),
        )
    )


@post(
    "/cards/{number:str}/replace",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def replace_card(number: FromPath[str], data: JSONBody[ReplaceAsked], till: Asker) -> Card:
    """Block a card and hand over its successor; repeated, the same successor is given."""
    return till.ask(
        lambda c: cards.replace_card(
            c,
            programme=till.programme,
            number=card_in(number),
            new_number=data.number or "",
            drawn_number=draw_card_number(),
            at=now(),
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post(
    "/cards/{number:str}/pool", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS
)
def pool_card(number: FromPath[str], data: JSONBody[PoolAsked], till: Asker) -> Card:
    """Let a card collect on another account from now on, if the terms let points be pooled."""
    return till.ask(
        lambda c: cards.pool_card(
            c,
            programme=till.programme,
            number=card_in(number),
            onto=data.onto,
            at=now(),
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post(
    "/members/{account_id:str}/status",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def change_status(
    account_id: AccountNumber,
    data: JSONBody[StatusAsked],
    till: Asker,
    idempotency_key: IdempotencyKey,
) -> Answer:
    """Grant or end a status, from now on."""
    change = StatusChanged(
        at=now(),
        key=f"status/{till.own(idempotency_key)}",
        status=data.status,
        granted=data.granted,
    )
    return till.ask(
        lambda c: members.grant_status(
            c,
            programme=till.programme,
            account_id=account_in(account_id),
            change=change,
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post(
    "/members/{account_id:str}/leave",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def end_membership(
    account_id: AccountNumber,
    data: JSONBody[LeaveAsked],
    till: Asker,
    idempotency_key: IdempotencyKey,
) -> Answer:
    """End a membership; what is unused lapses."""
    left = Left(at=now(), key=f"left/{till.own(idempotency_key)}", cause=data.cause)
    return till.ask(
        lambda c: members.leave(
            c,
            programme=till.programme,
            account_id=account_in(account_id),
            left=left,
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


@post(
    "/members/{account_id:str}/opening",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def open_balances(
    account_id: AccountNumber,
    data: JSONBody[OpeningAsked],
    till: Asker,
    idempotency_key: IdempotencyKey,
) -> Answer:
    """Bring along what an older system knew of an account: right after joining, once."""
    opening = Opened(
        at=now(),
        key=f"opened/{till.own(idempotency_key)}",
        lots=tuple(
            OpeningLot(lot.unit, lot.amount, lot.earned_on, lot.valid_until) for lot in data.lots
        ),
        tier=data.tier,
        tier_until=data.tier_until,
        sums=data.sums_minor,
        fees_charged=data.fees_charged,
    )
    return till.ask(
        lambda c: members.open_balances(
            c,
            programme=till.programme,
            account_id=account_in(account_id),
            opening=opening,
            warrant=till.warrant(data.reason, data.approved_by),
        )
    )


def draw_card_number() -> str:
    """Draw 12 random digits and add the check digit that scanners know (EAN-13)."""
    digits = f"{secrets.randbelow(10**12):012d}"
    return digits + str(ean.calc_check_digit(digits))
