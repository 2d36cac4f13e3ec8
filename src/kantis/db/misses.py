"""How often somebody asked for what there is not, by windows of time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
from msgspec import Struct

KEPT_MINUTES = 5
"""How long a window is kept when it is over: servers' clocks may differ by so much."""

FORGOTTEN_AT_ONCE = 20
"""Windows that one miss clears away at most; it adds fewer, so that the table stays small."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Limit(Struct, frozen=True):
    """How many misses somebody may have in each window of so many seconds.

    One that does not refuse only tells the operator.
    """

    asker: str
    seconds: int
    allowed: int
    refuses: bool = True


class Counted(Struct, frozen=True):
    """A window after it was counted; `filled` if just this made it full."""

    limit: Limit
    misses: int
    ends_at: datetime
    filled: bool


def window_end(at: datetime, seconds: int) -> datetime:
    """Give the end of the window of so many seconds in which an instant lies."""
    passed = (at - _EPOCH) // timedelta(seconds=1)
    return _EPOCH + timedelta(seconds=passed - passed % seconds + seconds)


def count(
    connection: psycopg.Connection, limits: Sequence[Limit], *, number: int, at: datetime
) -> list[Counted]:
    """Add so many misses to the present window of each limit; forget some that are over."""
    rows = [
        msgspec.structs.asdict(limit) | {"ends_at": window_end(at, limit.seconds)}
        for limit in limits
    ]
    found = connection.execute(
        "WITH forgotten AS ("
        " DELETE FROM miss WHERE (asker, ends_at, seconds) IN ("
        "  SELECT asker, ends_at, seconds FROM miss WHERE ends_at < %(over_at)s"
        "  ORDER BY ends_at LIMIT %(forgotten)s FOR UPDATE SKIP LOCKED))"
        " INSERT INTO miss (asker, ends_at, seconds, misses, allowed)"
        " SELECT asker, ends_at, seconds, %(number)s::bigint, allowed"
        " FROM json_to_recordset(%(rows)s)"
        "  AS l(asker text, ends_at timestamptz, seconds integer, allowed bigint)"
        # In one order, so that two who count at once wait for each other and no more.
        " ORDER BY asker, ends_at, seconds"
        " ON CONFLICT (asker, ends_at, seconds) DO UPDATE"
        "  SET misses = miss.misses + excluded.misses, allowed = excluded.allowed"
        " RETURNING asker, seconds, misses, ends_at",
        {
            "over_at": at - timedelta(minutes=KEPT_MINUTES),
            "forgotten": FORGOTTEN_AT_ONCE,
            "number": number,
            "rows": msgspec.json.encode(rows).decode(),
        },
    ).fetchall()
    by_window = {(limit.asker, limit.seconds): limit for limit in limits}
    return [
        Counted(
            limit := by_window[asker, seconds],
            misses,
            ends_at,
            filled=misses - number < limit.allowed <= misses,
        )
        for asker, seconds, misses, ends_at in found
    ]


def full_until(connection: psycopg.Connection, asker: str, *, at: datetime) -> datetime | None:
    """Give until when somebody has no miss left; None if there is."""
    row = connection.execute(
        "SELECT max(ends_at) FROM miss WHERE asker = %s AND ends_at > %s AND misses >= allowed",
        [asker, at],
    ).fetchone()
    return None if row is None else row[0]
