"""A year of real receipts through the real engine: what `kantis demo` does."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from datetime import date, datetime
from functools import partial
from itertools import groupby

import psycopg
from msgspec import Struct

from kantis.bulk import hands, share
from kantis.core.admission import Applicant, Warrant
from kantis.core.periods import day_start, month_of, month_start
from kantis.core.refusals import Refusal
from kantis.db import programmes
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.folder import Folder
from kantis.history.receipts import CHAIN, History, Purchase, Reading, card_of, store_name
from kantis.operations import members, publishing, sales, upkeep

BATCH = 256
"""Receipts in one transaction: more than at the tills, since nobody waits for an answer."""

AHEAD = 2
"""Batches that each process has before it."""

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
        members.enrol_all(
            connection,
            programme=folder.name,
            requested=[
                members.Requested(
                    members.Application(
                        applicant=APPLICANT,
                        card_kind=terms.card[0].name,
                        card_number=card_of(household),
                    ),
                    request_key=f"demo/{card_of(household)}",
                )
                for household in some
            ],
            at=at,
            warrant=LOADER,
        )
        progress(len(some))


def load_year(
    url: str,
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
    with connect(url) as connection:
        programme = programmes.load(connection, folder.name)
    loaded = Loaded()
    currency = programme.on(reading.joined_on).terms.currency
    last_day = programme.day(history.last_at())
    purchases = history.by_time(reading)
    with hands(url) as lanes:
        for month, some in groupby(purchases, key=lambda one: month_of(programme.day(one.at))):
            under_way: deque[Future[Loaded]] = deque()
            for lane, batch in _batches(some, lanes=len(lanes), every=history.every):
                if len(under_way) == AHEAD * len(lanes):
                    _finish(under_way.popleft(), loaded, progress)
                book = partial(_book, folder.name, currency, batch, now)
                under_way.append(lanes[lane].do(book))
            for future in under_way:
                _finish(future, loaded, progress)
            through = min(month_start(month + 1), last_day)
            share(lanes, partial(upkeep.tick, programme=folder.name, through=through, now=now))
    return loaded


def _batches(
    purchases: Iterable[Purchase], *, lanes: int, every: int
) -> Iterator[tuple[int, list[Purchase]]]:
    """Give batches with their lane; each account's receipts stay in one lane, in their order."""
    waiting: list[list[Purchase]] = [[] for _ in range(lanes)]
    for one in purchases:
        lane = one.household // every % lanes
        waiting[lane].append(one)
        if len(waiting[lane]) == BATCH:
            yield lane, waiting[lane]
            waiting[lane] = []
    for lane, batch in enumerate(waiting):
        if batch:
            yield lane, batch


def _book(
    programme: str,
    currency: str,
    batch: list[Purchase],
    now: datetime,
    connection: psycopg.Connection,
) -> Loaded:
    receipts = [one.receipt(currency) for one in batch]
    results = sales.record_receipts(
        connection, programme=programme, receipts=receipts, now=now, warrant=LOADER
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
