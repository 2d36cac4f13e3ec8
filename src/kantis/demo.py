"""A year of real receipts through the real engine: what `kantis demo` does."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import date, datetime
from itertools import groupby

import psycopg
from msgspec import Struct
from psycopg_pool import ConnectionPool

from kantis.core.admission import Applicant, Warrant
from kantis.core.periods import day_start, month_of, month_start
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt
from kantis.core.refusals import Refusal
from kantis.db import programmes
from kantis.db.programmes import Store
from kantis.folder import Folder
from kantis.history.receipts import CHAIN, History, Reading, card_of, store_name
from kantis.operations import members, publishing, sales, upkeep

BATCH = 256
"""Receipts in one transaction: more than at the tills, since nobody waits for an answer."""

LANES = 2
"""Transactions under way at once: while one waits for the database, the other decides."""

AHEAD = 2 * LANES
"""Batches that are read ahead."""

LOADER = Warrant("demo", "a year of public receipts")

APPLICANT = Applicant(born_on=date(1980, 1, 1), organization_number="930258008")
"""Whom every programme lets join; the receipts say nothing of their buyers."""

Progress = Callable[[int], None]
"""Told how many more are done."""


class Loaded(Struct):
    """What loading did: receipts that are new, and those that were there already."""

    new: int = 0
    before: int = 0


class NotTaken(Exception):
    """A receipt of the data set was refused; the terms do not fit the data."""


def prepare(
    connection: psycopg.Connection,
    folder: Folder,
    history: History,
    reading: Reading,
    *,
    now: datetime,
    progress: Progress,
) -> None:
    """Publish the terms, add the stores, enrol the households. What is there stays as it is."""
    for path in folder.terms_files:
        source = path.read_text(encoding="utf-8")
        publishing.publish_terms(connection, source=source, at=now, by=LOADER.actor)
    for store in history.stores():
        publishing.add_store(
            connection, programme=folder.name, store=Store(store_name(store), CHAIN)
        )
    programme = programmes.load(connection, folder.name)
    at = day_start(reading.joined_on, programme.zone)
    terms = programme.on(reading.joined_on).terms
    households = history.households()
    for start in range(0, len(households), BATCH):
        some = households[start : start + BATCH]
        # One commit for many: the operation's own transaction becomes a savepoint.
        with connection.transaction():
            for household in some:
                members.enrol(
                    connection,
                    programme=folder.name,
                    application=members.Application(
                        applicant=APPLICANT,
                        card_kind=terms.card[0].name,
                        card_number=card_of(household),
                    ),
                    request_key=f"demo/{card_of(household)}",
                    at=at,
                    warrant=LOADER,
                )
        progress(len(some))


def load_year(
    pool: ConnectionPool,
    folder: Folder,
    history: History,
    reading: Reading,
    *,
    now: datetime,
    progress: Progress,
) -> Loaded:
    """Book the receipts month by month as they happened, each month's end on its day.

    Stopped and started again it goes on where it was: what is in answers at once.

    :raises NotTaken:
    """
    with pool.connection() as connection:
        programme = programmes.load(connection, folder.name)
    loaded = Loaded()
    currency = programme.on(reading.joined_on).terms.currency
    last_day = programme.day(history.last_at())
    receipts = history.by_time(reading, currency=currency)
    with ExitStack() as stack:
        lanes = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(LANES)]
        for month, some in groupby(receipts, key=lambda one: month_of(programme.day(one.at))):
            under_way: deque[Future[Loaded]] = deque()
            for lane, batch in _batches(some):
                if len(under_way) == AHEAD:
                    _finish(under_way.popleft(), loaded, progress)
                under_way.append(lanes[lane].submit(_book, pool, folder.name, batch, now))
            for future in under_way:
                _finish(future, loaded, progress)
            through = min(month_start(month + 1), last_day)
            with pool.connection() as connection:
                _follow_calendar(connection, programme, through=through, now=now)
    return loaded


def _batches(receipts: Iterable[Receipt]) -> Iterator[tuple[int, list[Receipt]]]:
    """Give batches with their lane; each account's receipts stay in one lane, in their order."""
    waiting: list[list[Receipt]] = [[] for _ in range(LANES)]
    for receipt in receipts:
        lane = int(receipt.card) // 10 % LANES  # the last digit is a check digit
        waiting[lane].append(receipt)
        if len(waiting[lane]) == BATCH:
            yield lane, waiting[lane]
            waiting[lane] = []
    for lane, batch in enumerate(waiting):
        if batch:
            yield lane, batch


def _book(pool: ConnectionPool, programme: str, batch: list[Receipt], now: datetime) -> Loaded:
    with pool.connection() as connection:
        results = sales.record_receipts(
            connection, programme=programme, receipts=batch, now=now, warrant=LOADER
        )
    loaded = Loaded()
    for result in results:
        if isinstance(result, Refusal):
            raise NotTaken(str(result))
        if result.replayed:
            loaded.before += 1
        else:
            loaded.new += 1
    return loaded


def _finish(future: Future[Loaded], loaded: Loaded, progress: Progress) -> None:
    done = future.result()
    loaded.new += done.new
    loaded.before += done.before
    progress(done.new + done.before)


def _follow_calendar(
    connection: psycopg.Connection, programme: Programme, *, through: date, now: datetime
) -> None:
    while (
        upkeep.tick(connection, programme=programme.name, through=through, now=now)
        >= upkeep.ACCOUNTS_AT_ONCE
    ):
        pass
