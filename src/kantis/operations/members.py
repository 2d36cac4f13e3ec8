"""Who joins, what they bring along, what they become, how they leave."""

from datetime import datetime

import msgspec
import psycopg
from msgspec import Struct
from stdnum import get_cc_module

from kantis.core.admission import (
    Applicant,
    Warrant,
    admit_card,
    admit_joining,
    admit_leaving,
    admit_opening,
    admit_status,
)
from kantis.core.answers import Answer, answer_of
from kantis.core.events import Joined, Left, Opened, StatusChanged
from kantis.core.programme import Programme
from kantis.core.refusals import CardNumberTaken
from kantis.core.standing import Standing
from kantis.core.step import caught_up
from kantis.core.terms import Terms
from kantis.db import accounts, programmes, requests, strays
from kantis.db.journal import Journal, happen


class Application(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an applicant asks for, and the number of the card handed over if it has one already."""

    applicant: Applicant
    card_kind: str
    card_number: str = ""


class Enrolled(Struct, frozen=True):
    """An account with its first card."""

    account_id: int
    card_number: str


def enrol(
    connection: psycopg.Connection,
    *,
    programme: str,
    application: Application,
    request_key: str,
    at: datetime,
    warrant: Warrant,
    drawn_number: str = "",
) -> Enrolled:
    """Open an account for an applicant and hand over its first card.

    Receipts that the card was already used for are folded in if it was active.
    What the application says of the person is judged and not kept. `drawn_number` is for an
    application without a card number; it is no part of the request, so that a repeated one,
    for which another number was drawn, is known again.

    :raises MayNotJoin:
    :raises CardKindUnknown:
    :raises CardNumberTaken:
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        terms = programmes.load(connection, programme)
        # The applicant stays out of what is kept, also as a hash: a birth date is soon guessed.
        number = application.applicant.organization_number
        asked = [application.card_kind, application.card_number, number]
        if before := requests.find(connection, programme, request_key, asked):
            return msgspec.json.decode(before, type=Enrolled)
        membership = terms.terms_at(at).membership
        joined = admit_joining(
            terms,
            Standing(),
            application.applicant,
            at=at,
            key=f"joined/{request_key}",
            number_is_valid=number_is_valid(
                terms.terms_at(at), application.applicant.organization_number
            ),
        )
        role = membership.roles[0]
        number = application.card_number or drawn_number
        admit_card(terms, kind=application.card_kind, role=role, at=at, key="")
        account = accounts.open_account(connection, programme=programme, kind=membership.account)
        journal = Journal(connection, now=at)
        decision = journal.move(terms, account, joined, warrant)
        journal.answer(answer_of(joined.key, decision, account.standing))
        journal.save()
        if not accounts.add_card(
            connection,
            number=number,
            programme=programme,
            kind=application.card_kind,
            role=role,
            account_id=account.account_id,
            at=at,
        ):
            raise CardNumberTaken(card=number)
        card = accounts.cards(connection, programme, [number])[number]
        strays.take_receipts_of_card(journal, terms, account, card, warrant)
        enrolled = Enrolled(account.account_id, number)
        requests.keep(connection, programme, request_key, asked, answer=enrolled, at=at)
        return enrolled


def rejoin(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    joined: Joined,
    applicant: Applicant,
    warrant: Warrant,
) -> Answer:
    """Let a former member in again on the account there was, whose purchases still count (K-3.1).

    :raises AlreadyJoined:
    :raises MayNotJoin:
    """

    def admit(terms: Programme, standing: Standing, asked: Joined) -> Joined:
        return admit_joining(
            terms,
            standing,
            applicant,
            at=asked.at,
            key=asked.key,
            number_is_valid=number_is_valid(
                terms.terms_at(asked.at), applicant.organization_number
            ),
        )

    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=joined,
        warrant=warrant,
        decide=admit,
    )


def open_balances(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    opening: Opened,
    warrant: Warrant,
) -> Answer:
    """Bring along what an older system knew of an account: right after joining, once.

    :raises AlreadyOpened:
    :raises UnitUnknown:
    :raises ApprovalMissing:
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=opening,
        warrant=warrant,
        decide=lambda terms, standing, asked: admit_opening(terms, standing, asked, warrant),
    )


def grant_status(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    change: StatusChanged,
    warrant: Warrant,
) -> Answer:
    """Grant or end a status, such as membership of a cooperative, from its moment on (C-7).

    :raises StatusUnknown:
    :raises ApprovalMissing:
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=change,
        warrant=warrant,
        decide=lambda terms, _, asked: admit_status(terms, asked, warrant),
    )


def leave(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    left: Left,
    warrant: Warrant,
) -> Answer:
    """End a membership; what is unused lapses (S-12). `look` tells before how much that is.

    :raises MembershipEnded:
    :raises LeavingCauseUnknown:
    :raises ReasonMissing:
    :raises ApprovalMissing:
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=left,
        warrant=warrant,
        decide=lambda terms, standing, asked: admit_leaving(terms, standing, asked, warrant),
    )


def look(
    connection: psycopg.Connection, *, programme: str, account_id: int, at: datetime
) -> Answer:
    """Say where an account stands at a moment; nothing is written.

    :raises AccountUnknown:
    """
    with connection.transaction():
        terms = programmes.load(connection, programme)
        account = accounts.one(connection, programme, account_id)
    standing, decision = caught_up(terms, account.standing, at=at)
    return answer_of(f"account/{account_id}", decision, standing)


def number_is_valid(terms: Terms, number: str) -> bool:
    """Tell whether an organization number has the form that the terms name (`no.orgnr`)."""
    form = terms.membership.organization_number
    if not form:
        return True
    country, _, name = form.partition(".")
    module = get_cc_module(country, name)
    return module is not None and bool(module.is_valid(number))
