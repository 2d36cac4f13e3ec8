"""Many at once: processes that share the calendar, households enrolled together."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from datetime import date, datetime
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from kantis.bulk import follow_calendar, follow_calendar_together, hands
from kantis.core.admission import Applicant
from kantis.core.refusals import CardNumberTaken, KeyReused, TimeImpossible
from kantis.db.connect import passes_by_guards
from kantis.operations import members

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


def test_what_a_process_refuses_is_said_by_the_one_that_asked(lonely: "Desk") -> None:
    due = due_at(lonely.at("2024-03-04 00:00")) | {"through": date(2099, 1, 1)}
    with pytest.raises(TimeImpossible) as alone:
        follow_calendar(lonely.connection, **due)
    with hands(lonely.url, 1) as (hand,), pytest.raises(TimeImpossible) as asked:
        hand.do(partial(follow_calendar, **due)).result()
    assert str(asked.value) == str(alone.value)
    with (
        hands("postgresql:///nowhere?host=/nowhere", 1) as (hand,),
        pytest.raises(psycopg.OperationalError, match="nowhere"),
    ):
        hand.do(passes_by_guards).result()


WITH_HANDS = """
import sys
from kantis.bulk import hands
from kantis.db.connect import passes_by_guards
with hands(sys.argv[1], 2) as some:
    for hand in some:
        hand.do(passes_by_guards).result()
    sys.stdin.read()
"""


def start(desk: "Desk") -> subprocess.Popen[str]:
    """Start a process that has hands, in a group of its own as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-c", WITH_HANDS, desk.url],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_processes_end_with_the_one_that_started_them(lonely: "Desk", how: str) -> None:
    starter = start(lonely)
    assert until_sessions(lonely, 2)
    if how == "killed":
        starter.kill()
    else:
        os.killpg(starter.pid, signal.SIGINT)
    assert until_sessions(lonely, 0)
    _, said = starter.communicate(timeout=10)
    # One of the starter's own, who does not expect Ctrl-C; none of its processes', nor at the end.
    assert said.count("Traceback") == (how == "interrupted"), said
    assert "Exception ignored" not in said


def test_processes_that_have_not_begun_yet_are_not_reached_by_ctrl_c(lonely: "Desk") -> None:
    starter = start(lonely)
    until_processes(starter.pid, 3)  # two, and multiprocessing's own that looks after them
    time.sleep(0.2)  # they take a second to begin
    os.killpg(starter.pid, signal.SIGINT)
    _, said = starter.communicate(timeout=20)
    assert said.count("Traceback") == 1, said
    assert said.endswith("KeyboardInterrupt\n"), said


def until_processes(pid: int, number: int) -> None:
    """Wait until a process has started so many."""
    for _ in range(1000):
        if len(Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()) >= number:
            return
        time.sleep(0.01)
    raise AssertionError("it has started none")


def until_sessions(desk: "Desk", number: int) -> bool:
    """Wait until so many others are connected."""
    for _ in range(200):
        row = desk.connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        if row == (number,):
            return True
        time.sleep(0.1)
    return False


def count_expired(desk: "Desk") -> int:
    rows = desk.connection.execute("SELECT FROM transfer WHERE kind = 'expired'").fetchall()
    return len(rows)


def requested(card: str, key: str = "") -> members.Requested:
    return members.Requested(
        members.Application(
            applicant=Applicant(organization_number="930258008"),
            card_kind="customer-card",
            card_number=card,
        ),
        key or f"enrol/{card}",
    )


def enrol(desk: "Desk", *some: members.Requested) -> list[members.Enrolled]:
    return members.enrol_all(
        desk.connection,
        programme="alltid",
        requested=some,
        at=desk.at("2024-03-01 10:00"),
        warrant=desk.warrant,
    )


def test_many_are_enrolled_in_their_order_and_their_receipts_folded_in(lonely: "Desk") -> None:
    cards = [lonely.new_number() for _ in range(5)]
    lonely.record(lonely.receipt(cards[3], "2024-03-04 10:00", 100000))

    enrolled = enrol(lonely, *map(requested, cards))

    assert [one.card_number for one in enrolled] == cards
    first = enrolled[0].account_id
    assert [one.account_id - first for one in enrolled] == [0, 1, 2, 3, 4]
    balances = lonely.connection.execute("SELECT account_id - %s, balance FROM balance", [first])
    assert balances.fetchall() == [(3, 1000)]
    # Asked again, with others: those that are there answer as they did.
    more = lonely.new_number()
    assert enrol(lonely, requested(more), *map(requested, cards))[1:] == enrolled


@pytest.mark.parametrize("why", ["taken", "twice", "reused"])
def test_one_that_is_refused_keeps_all_from_being_enrolled(desk: "Desk", why: str) -> None:
    member, one, two = desk.join(), desk.new_number(), desk.new_number()
    enrol(desk, requested(two))
    rows = desk.rows()
    refused = {
        "taken": (CardNumberTaken(card=member.card), requested(member.card)),
        "twice": (CardNumberTaken(card=one), requested(one, "another")),
        "reused": (KeyReused(key=f"enrol/{two}"), requested(desk.new_number(), f"enrol/{two}")),
    }
    refusal, bad = refused[why]
    with pytest.raises(type(refusal)) as said:
        enrol(desk, requested(one), bad, requested(desk.new_number()))
    assert str(said.value) == str(refusal)
    assert desk.rows() == rows


def test_one_key_is_for_one_application(desk: "Desk") -> None:
    rows = desk.rows()
    one, two = desk.new_number(), desk.new_number()
    with pytest.raises(ValueError, match="twice"):
        enrol(desk, requested(one, "same"), requested(two, "same"))
    assert desk.rows() == rows
