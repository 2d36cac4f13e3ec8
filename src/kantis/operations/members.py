"""Who joins, what they bring along, what they become, how they leave."""

from collections.abc import Sequence
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
from kantis.core.standing import Standing
from kantis.core.step import caught_up
from kantis.core.terms import Terms
from kantis.db import accounts, programmes, requests, strays
from kantis.db.accounts import NewCard
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


class Requested(Struct, frozen=True):
    """An application with its request's key, and the number drawn for it if it names no card.

    The number drawn is no part of the request, so that a repeated one, for which another was
    drawn, is known again.
    """

    application: Application
    request_key: str
    drawn_number: str = ""

    @property
    def card_number(self) -> str:
        """Give the number of the card that is handed over."""
        return self.application.card_number or self.drawn_number

    @property
    def asked(self) -> object:
        """Give what is kept of it. The applicant stays out, also as a hash.

        A birth date is soon guessed.
        """
        one = self.application
        return [one.card_kind, one.card_number, one.applicant.organization_number]


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
    """Open an account for one applicant, as `enrol_all` does for several."""
    requested = Requested(application, request_key, drawn_number)
    (enrolled,) = enrol_all(
        connection, programme=programme, requested=[requested], at=at, warrant=warrant
    )
    return enrolled


def enrol_all(
    connection: psycopg.Connection,
    *,
    programme: str,
    requested: Sequence[Requested],
    at: datetime,
    warrant: Warrant,
) -> list[Enrolled]:
    """Open accounts for all applicants or for none, and hand over their first cards.

    Accounts are numbered in the order of the applications. Receipts that a card was already used
    for are folded in if it was active. What an application says of the person is judged and not
    kept.

    :raises MayNotJoin:
    :raises CardKindUnknown:
    :raises CardNumberTaken:
    :raises ValueError: two have the same key
    """
    asked = {one.request_key: one.asked for one in requested}
    if len(asked) < len(requested):
        raise ValueError("a request's key is there twice")
    with connection.transaction():
        programmes.hold_still(connection, programme)
        terms = programmes.load(connection, programme)
        before = requests.find(connection, programme, asked)
        new = [one for one in requested if one.request_key not in before]
        answers = _enrol(connection, terms, new, at=at, warrant=warrant) if new else {}
        requests.keep(connection, programme, asked, answers, at=at)
    known = {key: msgspec.json.decode(answer, type=Enrolled) for key, answer in before.items()}
    told = known | answers
    return [told[one.request_key] for one in requested]


def _enrol(
    connection: psycopg.Connection,
    terms: Programme,
    new: Sequence[Requested],
    *,
    at: datetime,
    warrant: Warrant,
) -> dict[str, Enrolled]:
    """Enrol those whose requests are new; give what is answered by the requests' keys."""
    membership = terms.terms_at(at).membership
    role = membership.roles[0]
    joined = [_admitted(terms, one, role=role, at=at) for one in new]
    opened = accounts.open_accounts(
        connection, programme=terms.name, kind=membership.account, count=len(new)
    )
    journal = Journal(connection, now=at)
    for account, event in zip(opened, joined, strict=True):
        decision = journal.move(terms, account, event, warrant)
        journal.answer(answer_of(event.key, decision, account.standing))
    journal.save()
    handed_over = [
        NewCard(one.card_number, one.application.card_kind, role, account.account_id)
        for one, account in zip(new, opened, strict=True)
    ]
    accounts.add_cards(connection, terms.name, handed_over, at=at)
    cards = accounts.cards(connection, terms.name, [card.number for card in handed_over])
    owners = [
        (account, cards[one.number]) for account, one in zip(opened, handed_over, strict=True)
    ]
    strays.take_receipts_of_cards(journal, terms, owners, warrant)
    return {
        one.request_key: Enrolled(card.account_id, card.number)
        for one, card in zip(new, handed_over, strict=True)
    }


def _admitted(terms: Programme, one: Requested, *, role: str, at: datetime) -> Joined:
    applicant = one.application.applicant
    joined = admit_joining(
        terms,
        Standing(),
        applicant,
        at=at,
        key=f"joined/{one.request_key}",
        number_is_valid=number_is_valid(terms.terms_at(at), applicant.organization_number),
    )
    admit_card(terms, kind=one.application.card_kind, role=role, at=at, key="")
    return joined


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
