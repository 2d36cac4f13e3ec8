"""Prove the books: they balance, nothing was changed behind the seals, standing is the fold."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import psycopg
from msgspec import Struct

from kantis.core.programme import Programme
from kantis.core.refusals import AccountUnknown
from kantis.core.replay import Fold, corrections, refold
from kantis.core.standing import Transfer
from kantis.db import accounts, checks, past, programmes, reports
from kantis.db.accounts import Account
from kantis.db.journal import kept_decision
from kantis.db.past import Written

ACCOUNTS_AT_ONCE = 50
"""Accounts that are read together; they are locked while they are read."""


class Finding(Struct, frozen=True):
    """A check that was made; `wrong` is empty if it holds."""

    check: str
    wrong: tuple[str, ...] = ()


class Seal(Struct, frozen=True):
    """The latest seal over all that was posted: its number and its hash in hexadecimal digits."""

    number: int
    hash: str

    def __str__(self) -> str:
        """Write a seal as it is kept elsewhere and given back to `check_seal`."""
        return f"{self.number}:{self.hash}"


def audit_books(connection: psycopg.Connection) -> Iterator[Finding]:
    """Check what the database alone can tell, over everything."""
    for check, query in checks.CHECKS.items():
        with connection.transaction():
            rows = checks.contradictions(connection, query)
        yield Finding(check, tuple(", ".join(map(str, row)) for row in rows))


def audit_accounts(
    connection: psycopg.Connection, *, programme: str, account_ids: Sequence[int]
) -> tuple[tuple[str, ...], int]:
    """Fold accounts' histories anew; give what differs from what is remembered.

    The second figure is how many events were folded.

    :raises AccountUnknown:
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        terms = programmes.load(connection, programme)
        found = accounts.lock(connection, account_ids)
        if missing := set(account_ids) - found.keys():
            raise AccountUnknown(account=min(missing))
        histories = past.written(connection, account_ids)
        posted = past.transfers_of(connection, account_ids)
    wrong: list[str] = []
    for account_id, account in found.items():
        history = histories.get(account_id, [])
        wrong += _differences(terms, account, history, posted.get(account_id, []))
    return tuple(wrong), sum(map(len, histories.values()))


def audit_account(
    connection: psycopg.Connection, *, programme: str, account_id: int
) -> tuple[str, ...]:
    """Fold one account's history anew; give what differs from what is remembered.

    :raises AccountUnknown:
    """
    wrong, _ = audit_accounts(connection, programme=programme, account_ids=[account_id])
    return wrong


def accounts_of(connection: psycopg.Connection, *, programme: str) -> Iterator[int]:
    """Give the accounts that there are to audit."""
    return reports.account_ids(connection, programme)


def seal(connection: psycopg.Connection, *, at: datetime) -> Seal | None:
    """Seal what was posted since the last seal; give the latest seal, None if nothing was ever.

    Runs beside the tills. What is posted meanwhile is left for the next seal.
    """
    with connection.transaction():
        checks.seal(connection, at=at)
        latest = checks.head(connection)
    return None if latest is None else Seal(latest[0], latest[1].hex())


def check_seal(connection: psycopg.Connection, kept: str) -> Finding:
    """Check that a seal that was kept elsewhere is still among ours: nothing before it was changed.

    :raises ValueError: it is not written as `seal` gives it
    """
    number, _, digest = kept.partition(":")
    with connection.transaction():
        there = checks.has_seal(connection, int(number), bytes.fromhex(digest))
    wrong = () if there else (f"there is no seal {kept}: what it sealed was changed",)
    return Finding("the seal that was kept elsewhere is ours", wrong)


def _differences(
    terms: Programme, account: Account, history: list[Written], posted: list[Transfer]
) -> Iterator[str]:
    name, through = f"account {account.account_id}", account.standing.through_on
    course = refold(Fold(terms), (event for _, event, _ in history), through=through)
    if course.standing != account.standing:
        yield f"{name}: the standing is not the fold of its history"
    if corrections(posted, course.transfers()):
        yield f"{name}: the postings are not those of the fold"
    for (number, _, kept), (_, decision) in zip(history, course.decided, strict=True):
        if kept != kept_decision(decision):
            yield f"{name}, event {number}: the decision is another"
