"""What the clock asks for."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from psycopg_pool import ConnectionPool

from kantis.core.admission import Warrant
from kantis.core.events import Opened, OpeningLot
from kantis.db.cluster import APP
from kantis.db.connect import EVERY_PROGRAMME, open_pool
from kantis.jobs import follow_calendars
from kantis.operations.members import open_balances


@pytest.fixture
def own_pool(
    fresh_database: Callable[[str], str], set_up_shop: Callable[[str], None]
) -> Iterator[ConnectionPool]:
    """Give a shop of this test's own: others would not like its future."""
    url = fresh_database(APP)
    set_up_shop(url)
    with open_pool(url, sees=EVERY_PROGRAMME) as pool:
        yield pool


def due(pool: ConnectionPool) -> int:
    with pool.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM account WHERE next_due_on <= now()::date"
        ).fetchone()
    assert row is not None
    count: int = row[0]
    return count


def make_all_due(pool: ConnectionPool) -> int:
    """Make every account due in the past, as no operation does."""
    with pool.connection() as connection:
        return connection.execute("UPDATE account SET next_due_on = '2020-01-01'").rowcount


def bring_bonus(pool: ConnectionPool) -> None:
    """Give the member of the cash-and-carry 500 kroner of bonus, and a standing as of today."""
    now = datetime.now(UTC)
    with pool.connection() as connection:
        row = connection.execute(
            "SELECT account_id FROM account WHERE programme = 'alltid'"
        ).fetchone()
        assert row is not None
        open_balances(
            connection,
            programme="alltid",
            account_id=row[0],
            opening=Opened(at=now, key="opening", lots=(OpeningLot("bonus", 50_000, now.date()),)),
            warrant=Warrant("Ola", approved_by="Kari"),
        )


def test_it_comes_to_an_end_also_where_nothing_is_left_to_do(own_pool: ConnectionPool) -> None:
    bring_bonus(own_pool)
    accounts = make_all_due(own_pool)
    assert follow_calendars(own_pool, now=datetime.now(UTC), limit=1) == accounts == 3
    assert due(own_pool) == 0
    assert follow_calendars(own_pool, now=datetime.now(UTC)) == 0


def test_several_at_once_do_it_once(own_pool: ConnectionPool) -> None:
    bring_bonus(own_pool)
    make_all_due(own_pool)
    now = datetime.now(UTC) + timedelta(days=62 * 31)  # what was brought along has expired
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(lambda _: follow_calendars(own_pool, now=now), range(4)))
    with own_pool.connection() as connection:
        expired = connection.execute(
            "SELECT sum(amount)::int FROM posting WHERE book = 'expired'"
        ).fetchone()
    assert expired == (50_000,)
