"""Who goes together in a lane, who waits, and who is passed over."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from kantis.api.lanes import BURDEN_TOGETHER, MANY, TOGETHER, Lanes
from kantis.db.connect import open_pool

LONG = 0.15


@dataclass
class Work:
    """Answers each request with itself, slowly, and keeps who was together."""

    batches: list[list[str]] = field(default_factory=list)
    now: list[str] = field(default_factory=list)
    most_of_one: int = 0
    most_at_once: int = 0

    def __call__(self, connection: psycopg.Connection, batch: Sequence[str]) -> list[str]:
        self.batches.append(list(batch))
        self.now.extend(batch)
        accounts = [one[0] for one in self.now]
        self.most_at_once = max(self.most_at_once, len(set(accounts)))
        others = [one[0] for one in self.now if one not in batch]
        self.most_of_one = max(
            self.most_of_one, max((others.count(one[0]) for one in batch), default=0)
        )
        connection.execute("SELECT pg_sleep(%s)", [LONG])
        for one in batch:
            self.now.remove(one)
        return list(batch)


@pytest.fixture
def tills(shop_url: str) -> Iterator[ConnectionPool]:
    with open_pool(shop_url) as pool:
        yield pool


def opened(tills: ConnectionPool, work: Work, *, lanes: int, heavy: str = "") -> Lanes[str, str]:
    return Lanes(
        work,
        pool=tills,
        programme="alltid",
        lanes=lanes,
        apart=lambda one: one[0],
        burden=lambda one: BURDEN_TOGETHER if one in heavy else 1,
        threads=ThreadPoolExecutor(2),
    )


async def all_of(lanes: Lanes[str, str], asked: Sequence[str]) -> list[str]:
    return list(await asyncio.gather(*(lanes.ask(one) for one in asked)))


def test_one_account_is_never_in_two_lanes_and_others_are(tills: ConnectionPool) -> None:
    work = Work()
    asked = [f"{account}{number}" for number in range(4) for account in "abcdefghijklmnopqr"]

    async def run() -> list[str]:
        lanes = opened(tills, work, lanes=2)
        first = asyncio.create_task(all_of(lanes, asked[: len(asked) // 2]))
        await asyncio.sleep(LONG / 2)
        return [*await all_of(lanes, asked[len(asked) // 2 :]), *await first]

    assert sorted(asyncio.run(run())) == sorted(asked)
    assert work.most_of_one == 0
    assert sum(map(len, work.batches)) == len(asked)


def test_no_more_go_together_than_a_transaction_should_lock(tills: ConnectionPool) -> None:
    work = Work()
    asked = [chr(ord("A") + number) for number in range(3 * TOGETHER)]
    assert asyncio.run(all_of(opened(tills, work, lanes=1), asked)) == asked
    assert max(map(len, work.batches)) == TOGETHER


def test_a_few_wait_for_the_lane_that_is_busy_but_not_for_long(tills: ConnectionPool) -> None:
    work = Work()

    async def run() -> float:
        lanes = opened(tills, work, lanes=2)
        first = asyncio.create_task(lanes.ask("a"))
        await asyncio.sleep(LONG / 3)
        began = asyncio.get_running_loop().time()
        await all_of(lanes, "bcd"[: MANY - 1])
        await first
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(run()) < 2 * LONG
    assert work.batches == [["a"], ["b", "c", "d"]]
    assert work.most_at_once == 4


def test_long_ones_go_alone(tills: ConnectionPool) -> None:
    work = Work()
    answers = asyncio.run(all_of(opened(tills, work, lanes=1, heavy="bc"), "abcde"))
    assert answers == list("abcde")
    assert work.batches == [["a"], ["b"], ["c"], ["d", "e"]]


def test_whoever_has_given_up_is_passed_over(tills: ConnectionPool) -> None:
    work = Work()

    async def run() -> str:
        lanes = opened(tills, work, lanes=1)
        first = asyncio.create_task(lanes.ask("a1"))
        await asyncio.sleep(LONG / 3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LONG / 3):
                await lanes.ask("b")
        await first
        return await lanes.ask("a2")

    assert asyncio.run(run()) == "a2"
    assert work.batches == [["a1"], ["a2"]]
