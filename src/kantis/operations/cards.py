"""Cards: handed over, activated, blocked, replaced, pooled."""

from datetime import datetime

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.admission import Warrant, admit_card, check_pooling
from kantis.core.answers import answer_of
from kantis.core.cards import Card, account_at
from kantis.core.refusals import CardNotUsable, CardUnknown
from kantis.db import accounts, programmes, requests, strays
from kantis.db.accounts import NewCard
from kantis.db.journal import Journal


class Issue(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A card handed over to somebody in a role of an account, with its number if it has one."""

    account_id: int
    kind: str
    role: str
    number: str = ""


def issue_card(
    connection: psycopg.Connection,
    *,
    programme: str,
    issue: Issue,
    request_key: str,
    at: datetime,
    warrant: Warrant,
    drawn_number: str = "",
) -> Card:
    """Hand over a card. Receipts that it was already used for are folded in if it was active.

    `drawn_number` is for an issue without a number; it is no part of the request (see `enrol`).

    :raises AccountUnknown:
    :raises CardKindUnknown:
    :raises RoleUnknown:
    :raises CardNumberTaken:
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        account = accounts.lock_one(connection, programme, issue.account_id)
        terms = programmes.load(connection, programme)
        asked = {request_key: issue}
        if before := requests.find(connection, programme, asked):
            return msgspec.json.decode(before[request_key], type=Card)
        number = issue.number or drawn_number
        taken = admit_card(
            terms, kind=issue.kind, role=issue.role, at=at, key=f"issued/{request_key}"
        )
        journal = Journal(connection, now=at)
        decision = journal.move(terms, account, taken, warrant)
        journal.answer(answer_of(taken.key, decision, account.standing))
        journal.save()
        new = NewCard(number, issue.kind, issue.role, account.account_id)
        accounts.add_cards(connection, programme, [new], at=at)
        accounts.note_card_change(
            connection, number=number, change="issued", at=at, warrant=warrant
        )
        card = accounts.cards(connection, programme, [number])[number]
        strays.take_receipts_of_cards(journal, terms, [(account, card)], warrant)
        requests.keep(connection, programme, asked, {request_key: card}, at=at)
        return card


def activate_card(
    connection: psycopg.Connection, *, programme: str, number: str, at: datetime, warrant: Warrant
) -> Card:
    """Activate a card in the store (C-5); receipts made since then are folded in.

    :raises CardUnknown:
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        card = _find(connection, programme, number)
        account_id = account_at(card, at=at)
        if account_id is None:
            raise CardUnknown(card=number)
        account = accounts.lock_one(connection, programme, account_id)
        accounts.change_card(connection, number=number, activated_at=at)
        accounts.note_card_change(
            connection, number=number, change="activated", at=at, warrant=warrant
        )
        card = _find(connection, programme, number)
        terms = programmes.load(connection, programme)
        journal = Journal(connection, now=at)
        strays.take_receipts_of_cards(journal, terms, [(account, card)], warrant)
        return card


def block_card(
    connection: psycopg.Connection, *, programme: str, number: str, at: datetime, warrant: Warrant
) -> Card:
    """Block a lost card from a moment on; what it earned stays with the account (O-9).

    :raises CardUnknown:
    """
    with connection.transaction():
        _find(connection, programme, number)
        accounts.change_card(connection, number=number, blocked_at=at)
        accounts.note_card_change(
            connection, number=number, change="blocked", at=at, warrant=warrant
        )
        return _find(connection, programme, number)


def replace_card(
    connection: psycopg.Connection,
    *,
    programme: str,
    number: str,
    new_number: str = "",
    drawn_number: str = "",
    at: datetime,
    warrant: Warrant,
) -> Card:
    """Block a lost or damaged card and hand over another for the same person; points follow.

    A card is replaced once: asked again, the card that replaced it is given. `drawn_number`
    is for when no `new_number` is asked for.

    :raises CardUnknown:
    :raises CardNotUsable: another card than `new_number` has replaced it
    :raises CardNumberTaken:
    """
    with connection.transaction():
        old = _find(connection, programme, number)
        account_id = account_at(old, at=at)
        if account_id is None:
            raise CardUnknown(card=number)
        accounts.lock_one(connection, programme, account_id)
        # Read again under the lock: another desk may have replaced it meanwhile.
        if (before := _find(connection, programme, number).replaced_by) is not None:
            if new_number not in {"", before}:
                raise CardNotUsable(card=number, replaced_by=before)
            return _find(connection, programme, before)
        successor = new_number or drawn_number
        new = NewCard(successor, old.kind, old.role, account_id)
        accounts.add_cards(connection, programme, [new], at=at)
        accounts.change_card(connection, number=number, blocked_at=at, replaced_by=successor)
        accounts.note_card_change(
            connection, number=number, change="replaced", at=at, warrant=warrant
        )
        return _find(connection, programme, successor)


def pool_card(
    connection: psycopg.Connection,
    *,
    programme: str,
    number: str,
    onto: int,
    at: datetime,
    warrant: Warrant,
) -> Card:
    """Let a card collect on another account from now on, if its holder wishes (C-6, S-13).

    :raises CardUnknown:
    :raises AccountUnknown:
    :raises PoolingNotAllowed:
    """
    with connection.transaction():
        check_pooling(programmes.load(connection, programme), at=at)
        card = _find(connection, programme, number)
        ids = {onto, *(link.account_id for link in card.links)}
        accounts.lock(connection, ids)
        accounts.one(connection, programme, onto)
        accounts.link_cards(connection, {number: onto}, at=at)
        accounts.note_card_change(
            connection, number=number, change="pooled", at=at, warrant=warrant
        )
        return _find(connection, programme, number)


def _find(connection: psycopg.Connection, programme: str, number: str) -> Card:
    card = accounts.cards(connection, programme, [number]).get(number)
    if card is None:
        raise CardUnknown(card=number)
    return card
