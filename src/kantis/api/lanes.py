"""Requests that wait while a transaction runs share the next one (docs/decisions/0011)."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import psycopg
from greenlet import getcurrent, greenlet
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg_pool import ConnectionPool

from kantis.api.problems import RETRY_AFTER_SECONDS, Unavailable
from kantis.db.connect import ImpatientConnection, speaking_for

log = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Said = TypeVar("Said")
T = TypeVar("T")

TOGETHER = 64
"""Requests in one transaction at most: more would keep their accounts locked for too long."""

BURDEN_TOGETHER = 2_000
"""What they may weigh together: the event loop stands still while a batch is decided."""

WAITING_MAX = 512
"""Requests that may wait: about a tenth of a second's work. More are told to come
again, which costs less than answering them too late."""

MANY = 16
"""Waiting requests that are worth a transaction beside one that is under way."""

LONG_SECONDS = 0.025
"""How long fewer wait for a transaction that is under way: it may be waiting itself, for a lock."""

IDLE_SECONDS = 1.0
"""How long a lane keeps its connection when nobody asks."""


@dataclass(slots=True, frozen=True)
class Waiting(Generic[Asked, Said]):
    """A request that waits for its answer; `apart` is what two lanes do not have at once."""

    asked: Asked
    apart: Hashable
    since: float
    answer: asyncio.Future[Said]


class Lanes(Generic[Asked, Said]):
    """Answers requests about one programme, as many at once as have come meanwhile.

    So many lanes take from one queue, each with a transaction of its own: while one waits for the
    database, another decides. `work` answers a batch on a connection; `apart` names what two
    lanes never have at the same time, such as an account, and `burden` what a request weighs, such
    as its lines. There is no timer: whoever comes first is answered at once, alone.
    """

    def __init__(
        self,
        work: Callable[[psycopg.Connection, Sequence[Asked]], Sequence[Said]],
        *,
        pool: ConnectionPool,
        programme: str,
        lanes: int,
        apart: Callable[[Asked], Hashable],
        burden: Callable[[Asked], int],
        threads: Executor,
    ) -> None:
        """Open the lanes; nothing runs until somebody asks. Connections are taken in `threads`."""
        self._work = work
        self._pool = pool
        self._programme = programme
        self._lanes = lanes
        self._apart = apart
        self._burden = burden
        self._threads = threads
        self._waiting: deque[Waiting[Asked, Said]] = deque()
        self._under_way: Counter[Hashable] = Counter()
        self._come = asyncio.Event()
        self._running: set[asyncio.Task[None] | None] = set()
        self._idle = 0
        self._is_full = False

    async def ask(self, asked: Asked) -> Said:
        """Wait for the answer to one request; whoever does not wait any more is passed over.

        :raises Unavailable: too many wait already
        :raises psycopg.OperationalError: the database is away; what became of it is not known
        """
        if len(self._waiting) >= WAITING_MAX:
            if not self._is_full:
                self._is_full = True
                log.warning("too many requests wait for %s: more are sent away", self._programme)
            raise Unavailable("Too many requests wait.", retry_after=RETRY_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Said] = loop.create_future()
        self._waiting.append(Waiting(asked, self._apart(asked), loop.time(), answer))
        if len(self._waiting) == 1 or len(self._waiting) == MANY:
            self._come.set()
        if not self._idle and len(self._running) < self._lanes:
            self._running.add(asyncio.create_task(self._run()))
        return await answer

    async def _run(self) -> None:
        """Answer batch after batch until nobody asks for a while."""
        loop = asyncio.get_running_loop()
        try:
            while batch := await self._next():
                try:
                    connection = await loop.run_in_executor(self._threads, self._take_connection)
                except Exception as error:  # noqa: BLE001 - told to everybody who waits for it
                    self._deliver(batch, [error] * len(batch))
                else:
                    await self._answer_on(connection, batch)
        finally:
            # At once: whoever asks next has to know that nobody looks any more.
            self._running.discard(asyncio.current_task())

    async def _answer_on(
        self, connection: ImpatientConnection, batch: list[Waiting[Asked, Said]]
    ) -> None:
        """Answer this batch and those that come, until one breaks the connection."""
        try:
            while batch:
                answers = await on_loop(connection, partial(self._answer, connection, batch))
                self._deliver(batch, answers)
                batch = await self._next()
        except Exception as error:  # noqa: BLE001 - told to everybody who waits for it
            self._deliver(batch, [error] * len(batch))
        finally:
            self._pool.putconn(connection)  # which leaves the rest to a thread of the pool's

    def _take_connection(self) -> ImpatientConnection:
        connection = self._pool.getconn()
        try:
            assert isinstance(connection, ImpatientConnection), "what a pool for tills is made of"
            speaking_for(connection, self._programme)
        except BaseException:
            self._pool.putconn(connection)
            raise
        return connection

    async def _next(self) -> list[Waiting[Asked, Said]]:
        """Take those who wait; none if nobody comes for `IDLE_SECONDS`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + IDLE_SECONDS
        self._idle += 1
        try:
            while self._waiting or loop.time() < until:
                if self._is_turn(loop.time()):
                    await self._all_at_the_door()
                    if batch := self._taken():
                        return batch
                self._come.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LONG_SECONDS if self._waiting else IDLE_SECONDS):
                        await self._come.wait()
        finally:
            self._idle -= 1
        return []

    def _is_turn(self, now: float) -> bool:
        """Tell whether those who wait are to be answered now.

        While another lane is busy, a few wait for it: their own transaction would cost more than
        the wait. If it takes long, they do not.
        """
        if not self._waiting:
            return False
        return (
            not self._under_way
            or len(self._waiting) >= MANY
            or now - self._waiting[0].since >= LONG_SECONDS
        )

    async def _all_at_the_door(self) -> None:
        """Let come in who is at the door already."""
        before = -1
        while before < len(self._waiting) < TOGETHER:
            before = len(self._waiting)
            await asyncio.sleep(0)

    def _taken(self) -> list[Waiting[Asked, Said]]:
        """Take as many as go together, but whoever has given up: what has not begun is not done."""
        batch: list[Waiting[Asked, Said]] = []
        apart: list[Waiting[Asked, Said]] = []
        burden = 0
        while self._waiting and len(batch) < TOGETHER:
            one = self._waiting.popleft()
            if one.answer.done():
                continue
            if one.apart in self._under_way:
                apart.append(one)
                continue
            burden += self._burden(one.asked)
            if batch and burden > BURDEN_TOGETHER:
                self._waiting.appendleft(one)
                break
            batch.append(one)
        self._waiting.extendleft(reversed(apart))
        self._under_way.update([one.apart for one in batch])
        self._is_full = False
        return batch

    def _deliver(
        self, batch: list[Waiting[Asked, Said]], answers: Sequence[Said | Exception]
    ) -> None:
        self._under_way -= Counter([one.apart for one in batch])
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue  # whoever asked has been told to ask again
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
        self._come.set()

    def _answer(
        self, connection: psycopg.Connection, batch: Sequence[Waiting[Asked, Said]]
    ) -> Sequence[Said | Exception]:
        """Answer a batch; if it fails, each alone, so that only the one at fault does."""
        try:
            return self._work(connection, [one.asked for one in batch])
        except Exception:
            if len(batch) == 1 or connection.closed:
                raise
            log.warning("a batch of %d failed; each is tried alone", len(batch), exc_info=True)
        return [self._alone(connection, one) for one in batch]

    def _alone(self, connection: psycopg.Connection, one: Waiting[Asked, Said]) -> Said | Exception:
        if one.answer.done():
            return TimeoutError()  # told already
        try:
            (answer,) = self._work(connection, [one.asked])
        except Exception as error:
            if connection.closed:
                raise
            return error
        return answer


async def on_loop(connection: ImpatientConnection, work: Callable[[], T]) -> T:
    """Run synchronous code that uses a connection; while it waits, the event loop goes on.

    In a thread, each word from the database would have to wait for the loop to let go of Python.
    Here the code is set aside wherever it would wait, and taken up again.
    """
    child = greenlet(work)
    connection.waiter = partial(_set_aside, connection)
    try:
        said: Any = child.switch()
        while not child.dead:
            try:
                result = await said
            except BaseException as error:  # noqa: BLE001 - it belongs to the code
                said = child.throw(error)
            else:
                said = child.switch(result)
    finally:
        connection.waiter = None
    answer: T = said
    return answer


def _set_aside(connection: psycopg.Connection, gen: PQGen[T], patience: float) -> T:
    """Leave a wait to the event loop, in whose hands all else goes on."""
    waits: Coroutine[Any, Any, T] = waiting.wait_async(
        gen, connection.fileno(), interval=patience, timeout=patience
    )
    loop = getcurrent().parent
    assert loop is not None, "only code under way is set aside"
    result: T = loop.switch(waits)
    return result
