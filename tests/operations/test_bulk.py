"""Processes that share bulk work."""

import time
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from functools import partial
from multiprocessing import active_children
from typing import TYPE_CHECKING, Any

import pytest

from kantis.bulk import follow_calendar, follow_calendar_together, hands

if TYPE_CHECKING:
    from tests.operations.conftest import Desk, Member


def some_with_bonus(desk: "Desk", count: int) -> "list[Member]":
    some = [desk.join() for _ in range(count)]
    for amount, member in enumerate(some, start=1):
        desk.sell(member, "2024-03-04 10:00", 10000 * amount)
    return some


def due_at(at: datetime) -> dict[str, Any]:
    return {"programme": "alltid", "through": at.date(), "now": at, "limit": 1}


def books(desk: "Desk") -> list[list[tuple[object, ...]]]:
    """Give what the calendar writes, but for keys of receipts: they are never the same."""
    return [
        desk.connection.execute(query).fetchall()
        for query in (
            "SELECT account_id, last_transfer, next_due_on FROM account ORDER BY 1",
            "SELECT * FROM transfer ORDER BY account_id, transfer_no",
            "SELECT * FROM posting ORDER BY account_id, transfer_no, posting_no",
            "SELECT * FROM lot ORDER BY account_id, unit, valid_until, earned_on",
            "SELECT * FROM balance ORDER BY account_id, unit",
            "SELECT * FROM tier_change ORDER BY account_id, from_on, change_no",
            "SELECT account_id, month_on FROM snapshot ORDER BY 1, 2",
        )
    ]


def test_several_processes_do_the_same_as_one(lonely: "Desk", twin: "Desk") -> None:
    due = due_at(lonely.at("2029-03-04 00:00"))
    some, same = some_with_bonus(lonely, 12), some_with_bonus(twin, 12)

    assert follow_calendar(lonely.connection, **due) == 12
    assert follow_calendar_together(twin.url, **due, count=3) == 12

    assert books(twin) == books(lonely)
    assert lonely.wrong(*some) == []
    assert twin.wrong(*same) == []


def test_a_process_that_is_killed_leaves_the_rest_to_others(lonely: "Desk") -> None:
    some = some_with_bonus(lonely, 60)
    due = due_at(lonely.at("2029-03-04 00:00"))
    with hands(lonely.url, 1) as (hand,):
        visiting = hand.do(partial(follow_calendar, **due))
        while not (visited := count_expired(lonely)):
            time.sleep(0.001)
        for process in active_children():
            process.kill()
        with pytest.raises(BrokenProcessPool):
            visiting.result()
    assert visited < 60
    assert lonely.wrong(*some) == []

    assert follow_calendar(lonely.connection, **due) <= 60 - visited
    assert count_expired(lonely) == 60
    assert lonely.wrong(*some) == []


def count_expired(desk: "Desk") -> int:
    rows = desk.connection.execute("SELECT FROM transfer WHERE kind = 'expired'").fetchall()
    return len(rows)
