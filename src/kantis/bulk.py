"""Bulk work: processes that share it, each with a connection of its own."""

import atexit
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from functools import cache, partial
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import psycopg

from kantis.db.connect import connect
from kantis.operations import upkeep

T = TypeVar("T")

HANDS = min(4, (os.cpu_count() or 1) + 1)
"""Processes that share bulk work: one for each core, and one more while some wait for the disk."""

YOUNG_OBJECTS = 20_000
"""How many objects more there are before the garbage collector looks at the new ones."""

_own = ExitStack()
"""What this process keeps open until it ends, if it is a hand."""


class Hand:
    """A process that does what it is given, one after the other.

    It ends with the process that started it, however that ends; what is under way then is
    rolled back.
    """

    def __init__(self, url: str) -> None:
        """Start it; it works on the database at `url`, and sees every programme."""
        self._url = url
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)
        with _deaf_to_ctrl_c():
            self._given: list[Future[Any]] = [self._executor.submit(forget_start)]

    def do(self, work: Callable[[psycopg.Connection], T]) -> Future[T]:
        """Give it something to do with its connection: a function of a module, or a part of one.

        The future raises what `work` does, `psycopg.OperationalError` if there is no connection,
        and `BrokenProcessPool` if the process was killed.
        """
        future = self._executor.submit(_do, self._url, work)
        self._given = [one for one in self._given if not one.done()] + [future]
        return future

    def give_up(self) -> None:
        """Take back what it has not begun."""
        for one in self._given:
            one.cancel()

    def end(self) -> None:
        """Let it end what it has begun, and wait for it."""
        self._executor.shutdown(cancel_futures=True)


@contextmanager
def hands(url: str, count: int = HANDS) -> Iterator[list[Hand]]:
    """Start processes that work on the database at `url`; each ends what it has begun, no more."""
    started = [Hand(url) for _ in range(count)]
    try:
        yield started
    finally:
        for hand in started:
            hand.give_up()
        for hand in started:
            hand.end()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: who has started them hears it and ends them.

    It is inherited, so that it holds from the first moment on.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def share(some: Sequence[Hand], work: Callable[[psycopg.Connection], int]) -> int:
    """Let each do the same again and again until it gives 0; give the sum.

    One step after the other, so that we can be stopped in between.
    """
    total = 0
    under_way = {hand.do(work): hand for hand in some}
    while under_way:
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            hand = under_way.pop(future)
            if done := future.result():
                total += done
                under_way[hand.do(work)] = hand
    return total


def follow_calendar(
    connection: psycopg.Connection,
    *,
    programme: str,
    through: date,
    now: datetime,
    limit: int = upkeep.ACCOUNTS_AT_ONCE,
) -> int:
    """Follow the calendar on all accounts that have something due by a local day, `limit` at once.

    Gives how many were visited. Several may do it at once and share the accounts.

    :raises TimeImpossible: the day has not come yet
    """
    visited = 0
    while done := upkeep.tick(
        connection, programme=programme, through=through, now=now, limit=limit
    ):
        visited += done
    return visited


def follow_calendar_together(
    url: str,
    *,
    programme: str,
    through: date,
    now: datetime,
    limit: int = upkeep.ACCOUNTS_AT_ONCE,
    count: int = HANDS,
) -> int:
    """Follow the calendar as `follow_calendar` does, by `count` processes if much is due.

    :raises TimeImpossible: the day has not come yet
    """
    tick = partial(upkeep.tick, programme=programme, through=through, now=now, limit=limit)
    with connect(url) as connection:
        visited = tick(connection)
        if visited < limit:  # no process is worth its start
            return visited + follow_calendar(
                connection, programme=programme, through=through, now=now, limit=limit
            )
    with hands(url, count) as some:
        return visited + share(some, tick)


def forget_start() -> None:
    """Keep the garbage collector from what is there for good, and let it look less often.

    Work leaves few cycles behind; looking for them took a twentieth of a server's time, and a
    tenth of bulk work's.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # DuckDB complains of what is left when Python ends
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


def _begin() -> None:
    """Begin to be a hand."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End at once when nobody is there any more who would give us work."""
    parent = parent_process()
    assert parent is not None, "a hand was started"
    parent.join()
    os._exit(1)


@cache
def _connected(url: str) -> psycopg.Connection:
    return _own.enter_context(connect(url))


def _do(url: str, work: Callable[[psycopg.Connection], T]) -> T:
    return work(_connected(url))
