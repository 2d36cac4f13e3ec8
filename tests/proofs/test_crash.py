"""SIGKILL of servers, of the database and of both, at random moments, while tills keep asking."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import psycopg
import pytest
from tests.proofs.shop import Shop, kill, shop, until
from tests.proofs.tills import Till, counted, judge, traffic, until_booked

from kantis.db.cluster import SUPERUSER

TILLS = 12
LIMIT = 0 if os.environ.get("KANTIS_SOAK", "") not in {"", "0"} else 900
"""Seconds; none in the long run."""

WAYS = {
    "session": 25,
    "server": 20,
    "database": 20,
    "postmaster": 15,
    "everything": 12,
    "servers": 8,
}
"""What is killed, and how often: one of the database's sessions, one server, all of the database's
processes, its first one (the others notice), all there is, all servers."""


def kill_one(shop: Shop, way: str, chance: random.Random) -> bool:
    """Kill something that runs; tell whether there was such a thing."""
    living = [server for server in shop.servers if server.listens()]
    everyone, sessions = shop.everyone(), shop.sessions()
    processes, servers = {
        "session": (sessions and [chance.choice(sessions)], []),
        "server": ([], living and [chance.choice(living)]),
        "database": (everyone, []),
        "postmaster": (everyone[:1], []),
        "everything": (everyone, living),
        "servers": ([], living),
    }[way]
    kill(processes)
    for server in servers:
        server.kill()
    return bool(processes or servers)


def kill_at_random(
    shop: Shop, chance: random.Random, count: int, ways: Mapping[str, int]
) -> Counter[str]:
    """Kill so many times; now and then while all is still starting from the last time."""
    killed: Counter[str] = Counter()
    while killed.total() < count:
        draw = chance.random()
        if draw < 0.7:
            until(shop.is_up)
        elif draw < 0.9:
            until(shop.answers)
        time.sleep(chance.uniform(0.05, 1.0))
        (way,) = chance.choices(list(ways), list(ways.values()))
        killed[way] += kill_one(shop, way, chance)
    return killed


def tills_of(shop: Shop, chance: random.Random, journals: Path) -> list[Till]:
    return [
        Till(number, shop, random.Random(chance.random()), journals / f"till-{number}.jsonl")
        for number in range(1, TILLS + 1)
    ]


def longest_silence(tills: Sequence[Till]) -> float:
    return round(max((end - start for till in tills for start, end in till.silences), default=0), 2)


@pytest.mark.timeout(LIMIT)
def test_whatever_is_killed_nothing_acknowledged_is_lost_doubled_or_answered_otherwise(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
) -> None:
    kills = long_or_short(2_000, 200)
    with shop(members=long_or_short(1_000, 120), servers=2) as opened:
        tills = tills_of(opened, chance, tmp_path)
        began = time.monotonic()
        with opened.looked_after():
            with traffic(tills):
                killed = kill_at_random(opened, chance, kills, WAYS)
            seconds = time.monotonic() - began
            until(opened.is_up)
        verdict = judge(opened, tills)
        audit = opened.audit()
        seen = counted(tills)
        evidence(
            kills=killed.total(),
            ways=dict(killed),
            seconds=round(seconds),
            acknowledged=sum(len(till.acknowledged) for till in tills),
            longest_silence_seconds=longest_silence(tills),
            seen=seen,
            **verdict.figures(),
            audit=audit,
        )
    assert not any(verdict.figures().values()), (verdict, tmp_path)
    assert audit == ""
    # Otherwise nothing was proved.
    assert set(+killed) == set(WAYS)
    assert min(seen["replayed"], seen["duplicates"]) >= 30
    assert seen["refused"] >= 10


@pytest.mark.timeout(LIMIT)
def test_a_database_that_forgets_what_it_acknowledged_is_found_out(
    chance: random.Random, evidence: Callable[..., None], tmp_path: Path
) -> None:
    """The positive control: without it, a run that finds nothing might be blind."""
    with shop(members=120) as opened:
        url = opened.cluster.url(SUPERUSER)
        with psycopg.connect(url, autocommit=True) as connection:
            # After the start, so that it is not refused; what is not yet written is lost for sure.
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            connection.execute("SELECT pg_reload_conf()")
        tills = tills_of(opened, chance, tmp_path)
        with opened.looked_after():
            with traffic(tills):
                time.sleep(1)
                killed = kill_at_random(opened, chance, 10, {"database": 1})
            until(opened.is_up)
        verdict = judge(opened, tills)
        evidence(
            kills=killed.total(),
            acknowledged=sum(len(till.acknowledged) for till in tills),
            **verdict.figures(),
        )
        restarted = subprocess.run(
            [sys.executable, "-m", "kantis", "serve", "--only", "api"],
            env=os.environ | {"KANTIS_DATABASE_URL": opened.cluster.url(), "KANTIS_PORT": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert verdict.lost, verdict.figures()
    assert verdict.changed or verdict.faults, verdict.figures()
    assert restarted.returncode == 1
    assert "synchronous_commit = off" in restarted.stderr


@pytest.mark.timeout(LIMIT)
def test_the_judge_finds_every_kind_of_fault(chance: random.Random, tmp_path: Path) -> None:
    with shop(members=20) as opened:
        tills = tills_of(opened, chance, tmp_path)
        with traffic(tills):
            until_booked(tills, 100)
        assert not any(judge(opened, tills).figures().values())

        known = tills[0].acknowledged
        receipts = [key for key, (intent, _) in known.items() if intent.kind == "receipt"]
        forgotten, refused, changed, doubled = receipts[:4]
        invented = f"{receipts[0]}-invented"
        known[invented] = known[forgotten]
        del known[forgotten]
        tills[0].refused[refused] = known.pop(refused)
        intent, answered = known[changed]
        known[changed] = (intent, msgspec.structs.replace(answered, body=b"{}"))
        with psycopg.connect(opened.cluster.url(SUPERUSER), autocommit=True) as connection:
            # As if nothing of the schema had kept it from happening.
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                "INSERT INTO event SELECT (json_populate_record(event, json_build_object("
                " 'account_id', (SELECT max(account_id) + 1 FROM account)))).*"
                " FROM event WHERE key = %s",
                [doubled],
            )
        verdict = judge(opened, tills)
    assert verdict.lost == [invented]
    assert sorted(verdict.booked_and_not_acknowledged) == sorted([forgotten, refused])
    assert verdict.refused_and_booked == [refused]
    assert verdict.doubled == [doubled]
    assert any(one.startswith(f"{changed}: ") for one in verdict.changed)
