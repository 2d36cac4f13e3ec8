"""Bulk work: processes that share it, each with a connection of its own."""

import atexit
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

import psycopg

from kantis.db.connect import connect
from kantis.operations import upkeep

T = TypeVar("T")

HANDS = min(4, (os.cpu_count() or 1) + 1)
"""Processes that share bulk work: one for each core, and one more while some wait for the disk."""

YOUNG_OBJECTS = 20_000
"""How many objects more there are before the garbage collector looks at the new ones."""

_stack = ExitStack()
_connections: list[psycopg.Connection] = []
"""Of this process, if it is a hand."""


class Hand:
    """A process that does what it is given, one after the other.

    It ends with the process that started it, however that ends; what is under way then is
    rolled back.
    """

    def __init__(self, url: str) -> None:
        """Start it; its connection sees every programme."""
        self.executor = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_begin, initargs=(url,)
        )

    def do(self, work: Callable[[psycopg.Connection], T]) -> Future[T]:
        """Give it something to do with its connection: a function of a module, or a part of one.

        The future raises what `work` does, and `BrokenProcessPool` if the process was killed.
        """
        return self.executor.submit(_do, work)


@contextmanager
def hands(url: str, count: int = HANDS) -> Iterator[list[Hand]]:
    """Start processes that work on the database at `url`; at the end they finish what they have."""
    started = [Hand(url) for _ in range(count)]
    try:
        yield started
    finally:
        for hand in started:
            hand.executor.shutdown(cancel_futures=True)


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
    follow = partial(follow_calendar, programme=programme, through=through, now=now, limit=limit)
    with connect(url) as connection:
        visited = upkeep.tick(
            connection, programme=programme, through=through, now=now, limit=limit
        )
        with hands(url, count - 1 if visited == limit else 0) as others:
            theirs = [hand.do(follow) for hand in others]
            return visited + follow(connection) + sum(one.result() for one in theirs)


def forget_start() -> None:
    """Keep the garbage collector from what is there for good, and let it look less often.

    Work leaves few cycles behind; looking for them took a twentieth of a server's time, and a
    tenth of bulk work's.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # DuckDB complains of what is left when Python ends
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


def _begin(url: str) -> None:
    """Begin to be a hand."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C asks us all: its process says so
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _connections.append(_stack.enter_context(connect(url)))
    forget_start()


def _end_with_parent() -> None:
    """End at once when nobody is there any more who would give us work."""
    parent = parent_process()
    assert parent is not None, "a hand was started"
    parent.join()
    os._exit(1)


def _do(work: Callable[[psycopg.Connection], T]) -> T:
    (connection,) = _connections
    return work(connection)
