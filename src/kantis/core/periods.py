"""Days, months and the programme's local time: the only place that reckons dates.

A month is counted as one whole number, `year × 12 + month − 1`, so that
"the twelve months before" is a subtraction.
"""

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

NEVER = date.max
"""The end of a validity that has none."""

ONE_DAY = timedelta(days=1)


class Period(NamedTuple):
    """Days from `start` to before `end`; `end` is `NEVER` while it is open."""

    start: date
    end: date


def local_day(at: datetime, zone: ZoneInfo) -> date:
    """Give the calendar day at `at` in `zone`."""
    return at.astimezone(zone).date()


def day_start(day: date, zone: ZoneInfo) -> datetime:
    """Give the instant (UTC) at which `day` begins in `zone`."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def elapsed(start: datetime, end: datetime) -> timedelta:
    """Give the time that passed between two instants, whatever the clocks did meanwhile.

    Python's own subtraction counts by the clock on the wall when both have one zone.
    """
    return end.astimezone(UTC) - start.astimezone(UTC)


def month_of(day: date) -> int:
    """Give the number of the month that `day` lies in."""
    return day.year * 12 + day.month - 1


def month_start(month: int) -> date:
    """Give the first day of a month."""
    return date(month // 12, month % 12 + 1, 1)


def month_label(month: int) -> str:
    """Give a month as text.

    >>> month_label(month_of(date(2017, 6, 30)))
    '2017-06'
    """
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def read_month(label: str) -> int | None:
    """Read a month from text, None if it is not one.

    >>> month_label(read_month("2017-06") or 0), read_month("2017-6")
    ('2017-06', None)
    """
    try:
        return month_of(date.fromisoformat(f"{label}-01"))
    except ValueError:
        return None


def next_month_start(day: date) -> date:
    """Give the first day of the month after `day`'s."""
    return month_start(month_of(day) + 1)


def add_months(day: date, months: int) -> date:
    """Give the same day `months` later, clamped to that month's last day.

    >>> add_months(date(2020, 1, 31), 1)
    datetime.date(2020, 2, 29)
    """
    month = month_of(day) + months
    year, number = month // 12, month % 12 + 1
    return date(year, number, min(day.day, monthrange(year, number)[1]))
