"""Accounts and cards: found, locked in order, opened."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.admission import Warrant
from kantis.core.cards import Card, CardLink
from kantis.core.periods import NEVER
from kantis.core.refusals import AccountUnknown, CardNumberTaken
from kantis.core.standing import Standing

_ACCOUNTS = "SELECT account_id, programme, standing::text, last_event, last_transfer FROM account"

_DUE = f"{_ACCOUNTS} WHERE programme = %s AND next_due_on <= %s"
_FREE = "LIMIT %s FOR NO KEY UPDATE SKIP LOCKED"
_WAITING = "LIMIT %s FOR NO KEY UPDATE"

_decode_standing = msgspec.json.Decoder(Standing)


class Account(Struct):
    """An account under its lock: where it stands, and how many events and transfers it has."""

    account_id: int
    programme: str
    standing: Standing
    last_event: int
    last_transfer: int


class NewCard(Struct, frozen=True):
    """A card to be added, and the account that it stands for."""

    number: str
    kind: str
    role: str
    account_id: int


def lock(connection: psycopg.Connection, account_ids: Iterable[int]) -> dict[int, Account]:
    """Lock accounts in order, then give them as they stand now.

    Locks come before anything else that a transaction reads: at READ COMMITTED the row
    that a lock had to wait for is the row as the other transaction left it.
    """
    rows = connection.execute(
        f"{_ACCOUNTS} WHERE account_id = ANY(%s) ORDER BY account_id FOR NO KEY UPDATE",
        [sorted(set(account_ids))],
    ).fetchall()
    return {row[0]: _account(row) for row in rows}


def read(connection: psycopg.Connection, account_ids: Iterable[int]) -> dict[int, Account]:
    """Give accounts as they stand, without a lock."""
    rows = connection.execute(
        f"{_ACCOUNTS} WHERE account_id = ANY(%s)",
        [list(set(account_ids))],
    ).fetchall()
    return {row[0]: _account(row) for row in rows}


def lock_one(connection: psycopg.Connection, programme: str, account_id: int) -> Account:
    """Lock one account of a programme.

    :raises AccountUnknown:
    """
    return _of_programme(lock(connection, [account_id]), programme, account_id)


def one(connection: psycopg.Connection, programme: str, account_id: int) -> Account:
    """Give one account of a programme, without a lock.

    :raises AccountUnknown:
    """
    return _of_programme(read(connection, [account_id]), programme, account_id)


def _of_programme(found: dict[int, Account], programme: str, account_id: int) -> Account:
    account = found.get(account_id)
    if account is None or account.programme != programme:
        raise AccountUnknown(account=account_id)
    return account


def lock_due(
    connection: psycopg.Connection, programme: str, *, through: date, limit: int
) -> list[Account]:
    """Lock accounts on which the calendar has something to do by a day; none if none is left.

    Several may ask at once: each gets others, the earliest first. Only when all that are left are
    locked by somebody else are they waited for, and given if they are still due then.
    """
    asked = [programme, through, limit]
    free = connection.execute(f"{_DUE} ORDER BY next_due_on, account_id {_FREE}", asked).fetchall()
    rows = free or connection.execute(f"{_DUE} ORDER BY account_id {_WAITING}", asked).fetchall()
    return [_account(row) for row in rows]


def open_accounts(
    connection: psycopg.Connection, *, programme: str, kind: str, count: int
) -> list[Account]:
    """Open accounts on which nothing has happened yet; give them in the order of their ids."""
    rows = connection.execute(
        "INSERT INTO account (programme, kind, standing, next_due_on)"
        " SELECT %s, %s, %s, %s FROM generate_series(1, %s) RETURNING account_id",
        [programme, kind, msgspec.json.encode(Standing()).decode(), NEVER, count],
    ).fetchall()
    return [Account(account_id, programme, Standing(), 0, 0) for (account_id,) in sorted(rows)]


def cards(
    connection: psycopg.Connection, programme: str, numbers: Iterable[str]
) -> dict[str, Card]:
    """Give a programme's cards of these numbers, with the accounts they stood for."""
    rows = connection.execute(
        "SELECT c.card_number, kind, role, issued_at, activated_at, blocked_at, replaced_by,"
        " array_agg(account_id ORDER BY from_at), array_agg(from_at ORDER BY from_at)"
        " FROM card c JOIN card_link USING (card_number)"
        " WHERE programme = %s AND card_number = ANY(%s) GROUP BY c.card_number",
        [programme, list(set(numbers))],
    ).fetchall()
    return {row[0]: _card(row) for row in rows}


def add_cards(
    connection: psycopg.Connection, programme: str, cards: Sequence[NewCard], *, at: datetime
) -> None:
    """Add cards that stand for their accounts from now on.

    :raises CardNumberTaken: there is a card of that number, or there are two among these
    """
    added = connection.execute(
        "INSERT INTO card (card_number, programme, kind, role, issued_at)"
        " SELECT number, %s, kind, role, %s FROM json_to_recordset(%s::text::json)"
        " AS c(number text, kind text, role text) ORDER BY number"
        " ON CONFLICT DO NOTHING RETURNING card_number",
        [programme, at, msgspec.json.encode(cards).decode()],
    ).fetchall()
    free = Counter(number for (number,) in added)
    for taken in Counter(card.number for card in cards) - free:
        raise CardNumberTaken(card=taken)
    link_cards(connection, {card.number: card.account_id for card in cards}, at=at)


def link_cards(
    connection: psycopg.Connection, account_ids: Mapping[str, int], *, at: datetime
) -> None:
    """Let cards, by their numbers, stand for accounts from a moment on."""
    connection.execute(
        "INSERT INTO card_link (card_number, from_at, account_id)"
        " SELECT number, %s, id::bigint FROM json_each_text(%s::text::json) AS l(number, id)",
        [at, msgspec.json.encode(account_ids).decode()],
    )


def note_card_change(
    connection: psycopg.Connection, *, number: str, change: str, at: datetime, warrant: Warrant
) -> None:
    """Keep who did what with a card, and why."""
    connection.execute(
        "INSERT INTO card_change (card_number, change, at, actor, reason, approved_by)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [number, change, at, warrant.actor, warrant.reason, warrant.approved_by],
    )


def change_card(
    connection: psycopg.Connection,
    *,
    number: str,
    activated_at: datetime | None = None,
    blocked_at: datetime | None = None,
    replaced_by: str | None = None,
) -> None:
    """Note that a card was activated, blocked or replaced; the first time counts."""
    connection.execute(
        "UPDATE card SET activated_at = coalesce(activated_at, %s),"
        " blocked_at = coalesce(blocked_at, %s), replaced_by = coalesce(replaced_by, %s)"
        " WHERE card_number = %s",
        [activated_at, blocked_at, replaced_by, number],
    )


def _account(row: tuple[Any, ...]) -> Account:
    account_id, programme, standing, last_event, last_transfer = row
    return Account(
        account_id, programme, _decode_standing.decode(standing), last_event, last_transfer
    )


def _card(row: tuple[Any, ...]) -> Card:
    number, kind, role, issued_at, activated_at, blocked_at, replaced_by, account_ids, froms = row
    return Card(
        number=number,
        kind=kind,
        role=role,
        issued_at=issued_at,
        activated_at=activated_at,
        blocked_at=blocked_at,
        replaced_by=replaced_by,
        links=tuple(map(CardLink, account_ids, froms)),
    )
