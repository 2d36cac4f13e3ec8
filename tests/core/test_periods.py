from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kantis.core.periods import (
    add_months,
    day_start,
    local_day,
    month_label,
    month_of,
    month_start,
    next_month_start,
)

days = st.dates(date(1900, 1, 1), date(2200, 1, 1))
ONE_SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("name", ["Europe/Helsinki", "Europe/Oslo", "Europe/Sofia"])
def test_each_day_of_thirty_years_begins_on_itself_and_ends_with_the_next(name: str) -> None:
    zone = ZoneInfo(name)
    first = date(2010, 1, 1)
    for number in range((date(2041, 1, 1) - first).days):
        day = first + timedelta(days=number)
        begins_at = day_start(day, zone)
        assert local_day(begins_at, zone) == day
        assert local_day(begins_at - ONE_SECOND, zone) == day - timedelta(days=1)


def test_the_days_on_which_clocks_change_have_23_and_25_hours() -> None:
    zone = ZoneInfo("Europe/Oslo")

    def hours(day: date) -> timedelta:
        return day_start(day + timedelta(days=1), zone) - day_start(day, zone)

    assert hours(date(2024, 3, 31)) == timedelta(hours=23)
    assert hours(date(2024, 10, 27)) == timedelta(hours=25)
    assert hours(date(2024, 6, 30)) == timedelta(hours=24)


def test_a_day_is_the_programmes_day_whatever_the_offset_of_the_till() -> None:
    zone = ZoneInfo("Europe/Helsinki")
    assert local_day(datetime.fromisoformat("2017-06-30T21:30:00Z"), zone) == date(2017, 7, 1)
    assert local_day(datetime.fromisoformat("2017-07-01T05:00:00+09:00"), zone) == date(2017, 6, 30)


@pytest.mark.parametrize(
    ("day", "months", "expected"),
    [
        (date(2020, 1, 31), 1, date(2020, 2, 29)),
        (date(2021, 1, 31), 1, date(2021, 2, 28)),
        (date(2020, 2, 29), 12, date(2021, 2, 28)),
        (date(2020, 1, 15), 60, date(2025, 1, 15)),
        (date(2020, 12, 31), 2, date(2021, 2, 28)),
        (date(2020, 3, 31), -1, date(2020, 2, 29)),
    ],
)
def test_months_are_clamped_to_the_last_day(day: date, months: int, expected: date) -> None:
    assert add_months(day, months) == expected


@given(days, st.integers(-1200, 1200))
def test_months_later_lies_in_that_month(day: date, months: int) -> None:
    later = add_months(day, months)
    assert month_of(later) == month_of(day) + months
    assert later.day <= day.day


@given(days)
def test_a_month_begins_on_its_first_day(day: date) -> None:
    month = month_of(day)
    assert month_start(month) == day.replace(day=1)
    assert next_month_start(day) == month_start(month + 1)
    assert month_label(month) == day.isoformat()[:7]
