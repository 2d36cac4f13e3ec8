"""Requests that wait while a transaction runs share the next one (docs/decisions/0011)."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Generic, TypeVar

import psycopg
from psycopg_pool import ConnectionPool

from kantis.api.problems import RETRY_AFTER_SECONDS, Unavailable
from kantis.db.connect import speaking_for

Asked = TypeVar("Asked")
Said = TypeVar("Said")

TOGETHER = 64
"""Requests in one transaction at most: more would keep their accounts locked for too long."""

WAITING_MAX = 512
"""Requests that may wait in one lane: about a tenth of a second's work. More are told to come
again, which costs less than answering them too late."""


class Lane(Generic[Asked, Said]):
    """Answers requests about one programme, as many at once as have come meanwhile.

    One batch is under way at a time, in a thread of `threads`; `work` answers it on a connection.
    There is no timer: whoever comes first is answered at once, alone.
    """

    def __init__(
        self,
        work: Callable[[psycopg.Connection, Sequence[Asked]], Sequence[Said]],
        *,
        pool: ConnectionPool,
        programme: str,
        threads: Executor,
    ) -> None:
        """Open a lane; nothing runs until somebody asks."""
        self._work = work
        self._pool = pool
        self._programme = programme
        self._threads = threads
        self._waiting: deque[tuple[Asked, asyncio.Future[Said]]] = deque()
        self._is_running = False

    async def ask(self, asked: Asked) -> Said:
        """Wait for the answer to one request; called on one event loop.

        :raises Unavailable: too many wait already
        :raises psycopg.OperationalError: the database is away; what became of it is not known
        """
        if len(self._waiting) >= WAITING_MAX:
            raise Unavailable("Too many requests wait.", retry_after=RETRY_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Said] = loop.create_future()
        self._waiting.append((asked, answer))
        if not self._is_running:
            self._start(loop)
        return await answer

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_running = True
        running = self._threads.submit(self._run, loop)
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._stopped, loop))

    def _stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start again for what came after the thread had looked for the last time."""
        self._is_running = False
        if self._waiting:
            self._start(loop)

    # --- in the thread ---------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer batch after batch until none waits, on one connection while it holds."""
        while batch := self._next():
            try:
                with self._pool.connection() as connection:
                    speaking_for(connection, self._programme)
                    while batch:
                        answers = self._answer(connection, [asked for asked, _ in batch])
                        loop.call_soon_threadsafe(_deliver, batch, answers)
                        batch = self._next()
            except Exception as error:  # noqa: BLE001 - told to everybody who waits for it
                loop.call_soon_threadsafe(_deliver, batch, [error] * len(batch))

    def _next(self) -> list[tuple[Asked, "asyncio.Future[Said]"]]:
        """Take those who wait, but whoever has given up: what has not begun is not done."""
        waiting = (self._waiting.popleft() for _ in range(len(self._waiting)))
        return list(islice((one for one in waiting if not one[1].done()), TOGETHER))

    def _answer(
        self, connection: psycopg.Connection, batch: Sequence[Asked]
    ) -> Sequence[Said | Exception]:
        """Answer a batch; if it fails, each alone, so that only the one at fault does."""
        try:
            return self._work(connection, batch)
        except Exception as error:
            if len(batch) == 1 or connection.closed:
                raise
            del error
        return [self._alone(connection, asked) for asked in batch]

    def _alone(self, connection: psycopg.Connection, asked: Asked) -> Said | Exception:
        try:
            (answer,) = self._work(connection, [asked])
        except Exception as error:
            if connection.closed:
                raise
            return error
        return answer


def _deliver(
    batch: Sequence[tuple[Asked, "asyncio.Future[Said]"]], answers: Sequence[Said | Exception]
) -> None:
    for (_, waiting), answer in zip(batch, answers, strict=True):
        if waiting.done():
            continue  # whoever asked has been told to ask again
        if isinstance(answer, Exception):
            waiting.set_exception(answer)
        else:
            waiting.set_result(answer)
