"""What the calendar does, and what holds it up."""

from datetime import date, datetime

import psycopg

from kantis.core.admission import Warrant, admit_suspension
from kantis.core.periods import Period, day_start
from kantis.core.refusals import SuspensionNotAllowed, TimeImpossible
from kantis.db import accounts, programmes
from kantis.db.journal import Journal

ACCOUNTS_AT_ONCE = 500
"""Accounts that one transaction of the calendar visits at most."""


def tick(
    connection: psycopg.Connection,
    *,
    programme: str,
    through: date,
    now: datetime,
    limit: int = ACCOUNTS_AT_ONCE,
) -> int:
    """Follow the calendar on up to `limit` accounts that have something due by a local day.

    Gives how many were visited; 0 means that nothing is left. Safe to run at any time, and by
    several at once, who share the work: what one has done or is doing is left out by the others.

    :raises TimeImpossible: the day has not come yet
    """
    with connection.transaction():
        programmes.hold_still(connection, programme)
        terms = programmes.load(connection, programme)
        if through > terms.day(now):
            raise TimeImpossible(through=through, today=terms.day(now))
        due = accounts.lock_due(connection, programme, through=through, limit=limit)
        journal = Journal(connection, now=now)
        at = day_start(through, terms.zone)
        for account in due:
            # Also one that is as far already: what was published since made it due, and only
            # this makes it not due any more.
            journal.follow_calendar(terms, account, at=at)
        journal.save()
        return len(due)


def suspend(
    connection: psycopg.Connection,
    *,
    programme: str,
    period: Period,
    now: datetime,
    warrant: Warrant,
) -> None:
    """Suspend redemption on some days; nothing expires meanwhile and their number is added (S-16).

    :raises SuspensionNotAllowed:
    :raises ReasonMissing:
    :raises ApprovalMissing:
    """
    with connection.transaction():
        programmes.change_alone(connection, programme)
        terms = programmes.load(connection, programme)
        admit_suspension(terms, period, now=now, warrant=warrant)
        passed_on = programmes.lived_through(connection, programme)
        if passed_on is not None and passed_on > period.start:
            # A till's clock ahead of ours: what has expired there would not have.
            raise SuspensionNotAllowed(start=period.start, passed_on=passed_on)
        programmes.suspend(
            connection,
            programme=programme,
            period=period,
            actor=warrant.actor,
            reason=warrant.reason,
            approved_by=warrant.approved_by,
            at=now,
        )
