"""Misses are counted by windows of time; the moment comes from outside."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from kantis.db import misses
from kantis.db.connect import connect
from kantis.db.misses import FORGOTTEN_AT_ONCE, Limit
from kantis.db.programmes import Token
from kantis.operations.limits import (
    PROGRAMME_TIMES,
    STORE_TIMES,
    Limits,
    Misses,
    count_unknown_cards,
    count_wrong_token,
)

FIVE = Limits(unknown_cards_per_minute=5, unknown_cards_per_hour=8, wrong_tokens_per_minute=3)
AT = datetime(2026, 3, 4, 10, 30, 20, tzinfo=UTC)
MINUTE_END = datetime(2026, 3, 4, 10, 31, tzinfo=UTC)
HOUR_END = datetime(2026, 3, 4, 11, tzinfo=UTC)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as connection:
        connection.execute("DELETE FROM miss")
        yield connection


@pytest.fixture
def count(connection: psycopg.Connection) -> Callable[..., Misses]:
    """Count misses of a till of a store of its own, unless said otherwise."""
    own = secrets.token_hex(8)

    def count(number: int = 1, *, at: datetime = AT, till: str = own, store: str = own) -> Misses:
        token = Token("alltid", store, "1", "till", f"token/{till}")
        return count_unknown_cards(connection, token=token, number=number, at=at, limits=FIVE)

    return count


def test_so_many_misses_are_told_and_no_more(count: Callable[..., Misses]) -> None:
    assert [count().untold_until for _ in range(5)] == [None] * 5
    assert count().untold_until == MINUTE_END


def test_a_window_is_filled_once(count: Callable[..., Misses]) -> None:
    filled = [count().filled for _ in range(7)]
    assert [len(windows) for windows in filled] == [0, 0, 0, 0, 1, 0, 0]
    (window,) = filled[4]
    assert (window.limit.seconds, window.misses, window.ends_at) == (60, 5, MINUTE_END)


def test_the_next_minute_begins_anew_and_the_hour_goes_on(count: Callable[..., Misses]) -> None:
    count(5)
    later = AT + timedelta(minutes=1)
    assert count(3, at=later).untold_until is None
    assert count(at=later).untold_until == HOUR_END
    assert count(at=AT + timedelta(hours=1)).untold_until is None


def test_the_last_moment_of_a_minute_is_of_that_minute() -> None:
    assert misses.window_end(MINUTE_END - timedelta(microseconds=1), 60) == MINUTE_END
    assert misses.window_end(MINUTE_END, 60) == MINUTE_END + timedelta(minutes=1)


def test_several_at_once_are_told_only_if_all_may_be(count: Callable[..., Misses]) -> None:
    assert count(4).untold_until is None
    assert count(2).untold_until == MINUTE_END


def test_tills_of_a_store_have_a_limit_together(count: Callable[..., Misses]) -> None:
    untold = [count(5, till=f"{n}", store="shared").untold_until for n in range(STORE_TIMES + 1)]
    assert untold == [None] * STORE_TIMES + [MINUTE_END]


def test_a_programme_warns_and_refuses_nobody(count: Callable[..., Misses]) -> None:
    each = [count(5, till=f"{n}", store=f"s{n}") for n in range(PROGRAMME_TIMES + 1)]
    assert {one.untold_until for one in each} == {None}
    warned = [
        window.limit.asker
        for one in each
        for window in one.filled
        if window.limit.asker.startswith("programme/") and window.limit.seconds == 60
    ]
    assert warned == ["programme/alltid"]


def test_those_who_ask_at_once_are_told_no_more_than_the_limit(database_url: str) -> None:
    own = secrets.token_hex(8)
    token = Token("alltid", own, "1", "till", f"token/{own}")

    def one(_: int) -> bool:
        with connect(database_url) as connection:
            counted = count_unknown_cards(connection, token=token, number=1, at=AT, limits=FIVE)
        return counted.untold_until is None

    with ThreadPoolExecutor(8) as tills:
        assert sum(tills.map(one, range(24))) == 5


def test_wrong_tokens_are_counted_by_address(connection: psycopg.Connection) -> None:
    def wrong(address: str) -> datetime | None:
        return count_wrong_token(connection, address=address, at=AT, limits=FIVE).untold_until

    assert [wrong("10.0.0.1") for _ in range(5)] == [None, None, None, MINUTE_END, MINUTE_END]
    assert wrong("10.0.0.2") is None


def test_windows_that_are_over_are_forgotten(connection: psycopg.Connection) -> None:
    # Hours of guessing from many addresses, then one miss now and then.
    for number in range(3 * FORGOTTEN_AT_ONCE):
        limit = Limit(f"address/{number}", 60, 10)
        misses.count(connection, [limit], number=1, at=AT - timedelta(hours=2))
    left = []
    for _ in range(4):
        misses.count(connection, [Limit("address/now", 60, 10)], number=1, at=AT)
        row = connection.execute("SELECT count(*) FROM miss").fetchone()
        left.append(row and row[0])
    assert left == [41, 21, 1, 1]
