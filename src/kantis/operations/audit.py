"""Prove the books: transfers balance, lots and balances follow from them, standing is the fold."""

from collections.abc import Iterator

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.replay import Fold, corrections, refold
from kantis.db import accounts, past, programmes, reports


class Finding(Struct, frozen=True):
    """A check that was made; `wrong` is empty if it holds."""

    check: str
    wrong: tuple[str, ...] = ()


def audit_books(connection: psycopg.Connection) -> Iterator[Finding]:
    """Check what the database alone can tell, over everything."""
    for check, query in reports.CHECKS.items():
        with connection.transaction():
            rows = reports.contradictions(connection, query)
        yield Finding(check, tuple(str(row) for row in rows))


def audit_account(
    connection: psycopg.Connection, *, programme: str, account_id: int
) -> tuple[str, ...]:
    """Fold an account's history anew; give what differs from what is remembered."""
    with connection.transaction():
        terms = programmes.load(connection, programme)
        account = accounts.lock_one(connection, programme, account_id)
        history = past.history(connection, account_id)
        posted = past.transfers_of(connection, account_id)
    through = account.standing.through_on
    course = refold(Fold(terms), (event for _, event, _ in history), through=through)
    wrong = []
    if course.standing != account.standing:
        wrong.append(f"account {account_id}: the standing is not the fold of its history")
    if corrections(posted, course.transfers()):
        wrong.append(f"account {account_id}: the postings are not those of the fold")
    for (number, _, kept), (_, decision) in zip(history, course.decided, strict=True):
        if kept != msgspec.structs.replace(decision, calendar=None):
            wrong.append(f"account {account_id}, event {number}: the decision is another")
    return tuple(wrong)


def accounts_of(connection: psycopg.Connection, *, programme: str) -> Iterator[int]:
    """Give the accounts that there are to audit."""
    return reports.account_ids(connection, programme)
