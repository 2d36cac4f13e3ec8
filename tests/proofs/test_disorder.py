"""The same receipts, the same books: in order, or shuffled, doubled, late and with returns.

Real receipts of a sample of households; the seed is printed and can be given back as
`KANTIS_SEED`.
"""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import psycopg
import pytest

from kantis import demo
from kantis.core.periods import day_start
from kantis.core.receipt import Receipt, Return, ReturnLine, SaleKey
from kantis.core.refusals import Refusal
from kantis.core.replay import replay
from kantis.core.standing import Standing
from kantis.core.step import caught_up
from kantis.db import accounts, past, programmes, reports
from kantis.db.cluster import APP
from kantis.db.connect import connect
from kantis.folder import Folder, find_folder
from kantis.history.receipts import History, Reading, demo_folder, read_reading
from kantis.operations import audit, sales, upkeep

ROOT = Path(__file__).parents[2]
EVERY = {"kplussa": 9, "coop": 40, "alltid": 40}
"""Of which so many-th households: 275 and twice 62. The long run takes all 2,469 of each."""

NOW = datetime(2026, 1, 15, tzinfo=UTC)
UNTIL = date(2018, 3, 1)
DOUBLED, LATE, RETURNED = 0.10, 0.05, 0.10

Document = Receipt | Return


def some_returns(receipts: Sequence[Receipt], chance: random.Random) -> list[Return]:
    """Bring back a tenth of the lines, whole or in part, up to a month after the sale."""
    found = []
    for receipt in receipts:
        lines = tuple(
            ReturnLine(number, chance.randint(1, line.amount_minor))
            for number, line in enumerate(receipt.lines, start=1)
            if line.amount_minor > 0 and chance.random() < RETURNED
        )
        if lines:
            at = receipt.at + timedelta(minutes=chance.randint(1, 60 * 24 * 30))
            found.append(
                Return(
                    store=receipt.store,
                    till="2",
                    business_day=at.date(),
                    number=f"back-{receipt.number}",
                    at=at,
                    sale=SaleKey(receipt.store, receipt.till, receipt.business_day, receipt.number),
                    lines=lines,
                )
            )
    return found


def in_disorder(documents: Sequence[Document], chance: random.Random) -> list[Document]:
    """Shuffle within days, double some, and let some come a month late."""
    arrivals = [(one.at + timedelta(hours=chance.randint(0, 48)), one) for one in documents]
    arrivals += [
        (at + timedelta(hours=chance.randint(0, 72)), one)
        for at, one in arrivals
        if chance.random() < DOUBLED
    ]
    late = [(at + timedelta(days=30) * (chance.random() < LATE), one) for at, one in arrivals]
    return [one for _, one in sorted(late, key=lambda arrival: arrival[0])]


def book(
    connection: psycopg.Connection, name: str, documents: Sequence[Document], *, ticking: bool
) -> None:
    """Book in batches; with `ticking` the calendar has always been followed to the latest day."""
    reached = date.min
    for start in range(0, len(documents), 64):
        some = documents[start : start + 64]
        receipts = [one for one in some if isinstance(one, Receipt)]
        returns = [one for one in some if isinstance(one, Return)]
        results = sales.record_receipts(
            connection, programme=name, receipts=receipts, now=NOW, warrant=demo.LOADER
        ) + sales.record_returns(
            connection, programme=name, returns=returns, now=NOW, warrant=demo.LOADER
        )
        reached = max(reached, *(one.at.date() for one in some))
        if ticking:
            while upkeep.tick(connection, programme=name, through=reached, now=NOW):
                pass
        refused = [str(result) for result in results if isinstance(result, Refusal)]
        assert not refused
    while upkeep.tick(connection, programme=name, through=UNTIL, now=NOW):
        pass


def books(connection: psycopg.Connection, name: str) -> tuple[dict[str, object], list[Standing]]:
    """Give the totals, and each account's standing at the end, in the order of joining."""
    programme = programmes.load(connection, name)
    end = day_start(UNTIL, programme.zone)
    for finding in audit.audit_books(connection):
        assert finding.wrong == (), finding.check
    standings, histories = [], []
    for account_id in audit.accounts_of(connection, programme=name):
        assert audit.audit_account(connection, programme=name, account_id=account_id) == ()
        standing = accounts.one(connection, name, account_id).standing
        standings.append(caught_up(programme, standing, at=end)[0])
        histories.append([event for _, event, _ in past.history(connection, account_id)])
    totals = msgspec.to_builtins(reports.totals(connection, name, on=UNTIL))
    assert isinstance(totals, dict)
    # A card is printed when a purchase raises the tier, though a return that comes later takes the
    # rise back: how many were, depends on what was known when. None that is due is missing, and
    # how many are due does not depend on it.
    due = replay(programme, histories, until=UNTIL).cards_ordered
    assert totals["cards_ordered"] >= due
    return totals | {"cards_ordered": due}, standings


def prepared(url: str, folder: Folder, history: History, reading: Reading) -> None:
    with connect(url) as connection:
        demo.prepare(connection, folder, history, reading, now=NOW, progress=lambda _: None)


@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("programme", ["kplussa", "coop", "alltid"])
@pytest.mark.parametrize("returning", [False, True], ids=["sales", "sales-and-returns"])
def test_disorder_ends_in_the_same_books(
    programme: str,
    returning: bool,
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    make_database: Callable[[str], Callable[[str], str]],
) -> None:
    every = long_or_short(1, EVERY[programme])
    folder = find_folder(ROOT / "programmes" / programme)
    history, reading = History(demo_folder(), every=every), read_reading(folder.path)
    currency = folder.programme().on(reading.joined_on).terms.currency
    receipts = [one.receipt(currency) for one in history.by_time(reading)]
    documents: list[Document] = [*receipts]
    if returning:
        documents += some_returns(receipts, chance)
    ordered = sorted(documents, key=lambda one: (one.at, isinstance(one, Return), one.number))

    found = []
    arrived = in_disorder(documents, chance)
    for name, arriving in (("ordered", ordered), ("disorder", arrived)):
        url = make_database(name)(APP)
        prepared(url, folder, history, reading)
        with connect(url) as connection:
            book(connection, programme, arriving, ticking=name == "disorder")
            found.append(books(connection, programme))

    assert found[0] == found[1]
    evidence(
        households=len(found[0][1]),
        receipts=len(receipts),
        returns=len(documents) - len(receipts),
        arrived=len(arrived),
        came_late=sum(late < early for early, late in pairwise(one.at for one in arrived)),
    )
