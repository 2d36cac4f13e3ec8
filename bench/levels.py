"""Receipts and quotes through the till API: how many a second, how fast, in how much memory."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial

from msgspec import Struct

from bench import households
from bench.drive import Cost, Driven, Found, Sample, Tills, check_all_kept
from bench.load import Load
from bench.place import Database, kantis_serving, new_kantis
from bench.shop import number_text, store_of
from bench.sizes import Sizes
from kantis.core.receipt import SaleKey, key_of
from kantis.db.cluster import Cluster
from kantis.db.connect import connect
from kantis.db.past import hash_of

RECEIPTS, QUOTES = "/v1/receipts", "/v1/quotes"

CONNECTIONS = (8, 64, 256)

USUAL = 64
"""Connections, where only one number of them is looked at."""

QUOTES_A_SECOND = 500

SOAK_A_SECOND = 2_000
"""A busy evening of a national chain; at full speed the disk would be full before memory is."""

_AT_ONCE = 10_000
"""Keys in one question."""

_MIB = 2**20


class Level(Struct, frozen=True):
    """One load, measured: requests a second and their latencies in milliseconds.

    `acknowledged` includes the warm-up; if they were receipts, all were found in the database.
    """

    connections: int
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    acknowledged: int
    refused: dict[str, int]
    cost: Cost | None


class Quotes(Struct, frozen=True):
    """Quotes that arrive by chance, so many a second, and as many as can be had."""

    arriving: Level
    most: Level


class Memory(Struct, frozen=True):
    """The server's memory under load in MiB: medians of its first and its last third.

    `growth` is the last third as a multiple of the first.
    """

    seconds: float
    receipts: int
    first_third_mib: float
    last_third_mib: float
    most_mib: float
    growth: float


@contextmanager
def open_tills(cluster: Cluster, name: str, *, size: int) -> Iterator[Tills]:
    """Serve a programme's tills on a database of their own, with so many households."""
    database = new_kantis(cluster, name)
    tokens = households.open_stores(database)
    households.make_models(database)
    households.copy_households(database, first=0, until=size, bare=False)
    with kantis_serving(database) as server:
        yield Tills(server, database, tokens, size)


def book(
    tills: Tills, *, connections: int, seconds: float, warm_seconds: float, rate: float = 0
) -> Driven:
    """Book receipts and find each acknowledged one in the database.

    :raises Lost:
    """
    tills.database.checkpoint()
    driven = tills.send(
        RECEIPTS, connections=connections, seconds=seconds, warm_seconds=warm_seconds, rate=rate
    )
    check_all_kept(driven, partial(_find, tills.database))
    return driven


def level_of(driven: Driven) -> Level:
    """Give what a load came to."""
    loaded = driven.loaded
    return Level(
        connections=driven.load.connections,
        per_second=loaded.per_second,
        p50_ms=loaded.p50_ms,
        p99_ms=loaded.p99_ms,
        p999_ms=loaded.p999_ms,
        max_ms=loaded.max_ms,
        acknowledged=loaded.acknowledged,
        refused=loaded.others,
        cost=driven.cost,
    )


def measure_receipts(tills: Tills, sizes: Sizes) -> Iterator[Level]:
    """Book as many receipts as can be had on few, some and many connections.

    :raises Lost:
    """
    for connections in CONNECTIONS:
        yield level_of(
            book(
                tills,
                connections=connections,
                seconds=sizes.level_seconds,
                warm_seconds=sizes.warm_seconds,
            )
        )


def measure_quotes(tills: Tills, sizes: Sizes) -> Quotes:
    """Ask for quotes."""
    times = {"seconds": sizes.quote_seconds, "warm_seconds": sizes.warm_seconds}
    tills.database.checkpoint()
    arriving = tills.send(QUOTES, connections=USUAL, rate=QUOTES_A_SECOND, **times)
    most = tills.send(QUOTES, connections=USUAL, rate=0, **times)
    return Quotes(level_of(arriving), level_of(most))


def measure_memory(tills: Tills, *, seconds: float, warm_seconds: float) -> Memory | None:
    """Look at the server's memory while receipts arrive; None where the system does not tell.

    :raises Lost:
    """
    driven = book(
        tills, connections=USUAL, seconds=seconds, warm_seconds=warm_seconds, rate=SOAK_A_SECOND
    )
    warm = [sample for sample in driven.samples if sample.seconds >= warm_seconds]
    third = len(warm) // 3
    if not third:
        return None
    first, last = _median_mib(warm[:third]), _median_mib(warm[-third:])
    return Memory(
        seconds=seconds,
        receipts=driven.loaded.acknowledged,
        first_third_mib=first,
        last_third_mib=last,
        most_mib=max(sample.rss_bytes for sample in warm) / _MIB,
        growth=last / first,
    )


def _median_mib(samples: list[Sample]) -> float:
    return statistics.median(sample.rss_bytes for sample in samples) / _MIB


def _find(database: Database, load: Load, numbers: Sequence[int]) -> Found:
    """Look for receipts by their keys, and for all that a load's till has booked.

    Not as the application, whose statements are counted.
    """
    hashes = [hash_of(_key(load, number)) for number in numbers]
    there = 0
    with connect(database.superuser_url) as connection:
        for start in range(0, len(hashes), _AT_ONCE):
            row = connection.execute(
                "SELECT count(*) FROM receipt_key WHERE key_hash = ANY(%s)",
                [hashes[start : start + _AT_ONCE]],
            ).fetchone()
            assert row is not None, "an aggregate has a row"
            there += int(str(row[0]))
        row = connection.execute(
            "SELECT count(*), count(DISTINCT key) FROM event"
            " WHERE split_part(key, '/', 3) = %s AND kind = 'sale'",
            [load.till],
        ).fetchone()
    assert row is not None, "an aggregate has a row"
    return there, int(row[0]), int(row[1])


def _key(load: Load, number: int) -> str:
    day = load.business_day
    sale = SaleKey(store_of(number), load.till, date.fromisoformat(day), number_text(number))
    return key_of(households.PROGRAMME, sale)
