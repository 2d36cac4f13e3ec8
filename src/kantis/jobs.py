"""What the clock asks for: jobs in PostgreSQL, run by any number of workers."""

import logging
from datetime import UTC, datetime

from procrastinate import App, PsycopgConnector
from psycopg_pool import ConnectionPool

from kantis.bulk import follow_calendar
from kantis.db import programmes
from kantis.operations.audit import seal
from kantis.operations.upkeep import ACCOUNTS_AT_ONCE

EVERY_MINUTE = "* * * * *"
EVERY_QUARTER = "*/15 * * * *"

log = logging.getLogger(__name__)


def follow_calendars(pool: ConnectionPool, *, now: datetime, limit: int = ACCOUNTS_AT_ONCE) -> int:
    """Follow the calendar of every programme up to its own today; give the accounts visited.

    Safe to run by several at once: what one has done is not due any more for another.
    """
    with pool.connection() as connection:
        days = {
            name: programmes.load(connection, name).day(now)
            for name in programmes.names(connection)
        }
    visited = 0
    for name, today in days.items():
        with pool.connection() as connection:
            visited += follow_calendar(
                connection, programme=name, through=today, now=now, limit=limit
            )
    return visited


def build_jobs(url: str, pool: ConnectionPool) -> App:
    """Build the queue on the database at `url`; tasks use `pool`, which stays the caller's."""
    jobs = App(
        connector=PsycopgConnector(
            conninfo=url, min_size=1, max_size=4, timeout=5, reconnect_timeout=5
        )
    )

    # At most one waiting: a worker that was away has nothing to catch up with. No lock: several
    # may run at once, and one that a killed worker held would never be let go.
    @jobs.periodic(cron=EVERY_MINUTE)
    @jobs.task(name="follow-calendars", queueing_lock="calendars")
    def follow(timestamp: int) -> int:
        del timestamp
        return follow_calendars(pool, now=datetime.now(UTC))

    @jobs.periodic(cron=EVERY_QUARTER)
    @jobs.task(name="seal-books", queueing_lock="seals")
    def seal_books(timestamp: int) -> None:
        del timestamp
        with pool.connection() as connection:
            latest = seal(connection, at=datetime.now(UTC))
        # Into the log, which is kept elsewhere: a tail cut off the books shows against it.
        log.info("the books are sealed: %s", latest)

    return jobs
