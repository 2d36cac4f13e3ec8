"""Everything that serves, in one process or each part in its own."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
import uvloop
from procrastinate.exceptions import ConnectorException
from psycopg_pool import ConnectionPool

from kantis.api.app import Api
from kantis.bulk import forget_start
from kantis.db.connect import EVERY_PROGRAMME, check_server, connect, open_pool, passes_by_guards
from kantis.db.schema import missing
from kantis.jobs import build_jobs
from kantis.operations.limits import Limits
from kantis.settings import Settings
from kantis.site.app import Site

log = logging.getLogger(__name__)

ASGI = Callable[[Any, Any, Any], Awaitable[None]]

PARTS = frozenset({"api", "site", "worker"})

CONNECTIONS = 16
"""For tills and pages: each programme's lanes keep three while they are busy, threads have six."""

GRACE_SECONDS = 20
"""How long requests and jobs under way may take when we are asked to stop."""

PAUSE_SECONDS = 5
"""How long the worker waits before it looks for a database that went away."""


class NotMigrated(Exception):
    """The database lacks tables, or parts of them, that this version needs."""


def serve(settings: Settings, parts: Collection[str] = PARTS) -> None:
    """Serve until SIGTERM or SIGINT, and finish what is under way.

    :raises UnsafeServer: the database could forget what it has acknowledged
    :raises NotMigrated: it has to be migrated first
    :raises OSError: somebody else listens on the port
    :raises ValueError: there is no such part
    """
    if unknown := set(parts) - PARTS:
        raise ValueError(f"no such part: {', '.join(sorted(unknown))}; there are {sorted(PARTS)}")
    url = settings.database()
    with connect(url) as connection:
        check_server(connection)
        if role := passes_by_guards(connection):
            log.warning("the role %s passes by row-level security; connect as a plain one", role)
        if lacking := missing(connection):
            raise NotMigrated(
                f"The database lacks {len(lacking)} migrations, first {lacking[0]}:"
                " run `kantis migrate` as the owner of the tables, then start again."
            )
    # Before anything runs: uvicorn's own way out of a port in use would leave the worker behind.
    listening = _listen(settings) if {"api", "site"} & set(parts) else None
    with (
        open_pool(url, size=CONNECTIONS) as tills,
        open_pool(url, size=2, sees=EVERY_PROGRAMME) as operators,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        pools = {"tills": tills, "operators": operators}
        runner.run(_run(listening, frozenset(parts), url, settings.limits, **pools))


def build_asgi(
    pool: ConnectionPool, parts: Collection[str] = PARTS, limits: Limits | None = None
) -> ASGI:
    """Send `/v1` and `/docs` to the API and all else to people's pages.

    A mount of either framework would rewrite the paths and answer the other's errors.
    """
    if "site" not in parts:
        return Api(pool, limits)
    site = Site(pool)
    if "api" not in parts:
        return site
    api = Api(pool, limits)

    async def application(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        first = str(scope["path"]).split("/")[1:2]
        await (api if first in (["v1"], ["docs"]) else site)(scope, receive, send)

    return application


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family)


class _Server(uvicorn.Server):
    """A server that leaves signals to the process: there is also a worker to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _run(
    listening: socket.socket | None,
    parts: frozenset[str],
    url: str,
    limits: Limits,
    *,
    tills: ConnectionPool,
    operators: ConnectionPool,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as running:
        forget_start()
        if listening is not None:
            running.create_task(_answer(listening, build_asgi(tills, parts, limits), stop))
        if "worker" in parts:
            running.create_task(_work(url, operators, stop))


async def _answer(listening: socket.socket, application: ASGI, stop: asyncio.Event) -> None:
    """Answer requests until asked to stop."""
    server = _Server(
        uvicorn.Config(
            application,
            lifespan="off",
            ws="none",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    serving = asyncio.create_task(server.serve([listening]))
    serving.add_done_callback(lambda _: stop.set())
    await stop.wait()
    server.should_exit = True
    await serving


async def _work(url: str, operators: ConnectionPool, stop: asyncio.Event) -> None:
    """Run jobs until asked to stop; a database that goes away is waited for."""
    while not stop.is_set():
        try:
            async with build_jobs(url, operators).open_async() as jobs:
                working = asyncio.create_task(
                    jobs.run_worker_async(
                        install_signal_handlers=False,
                        delete_jobs="successful",
                        shutdown_graceful_timeout=GRACE_SECONDS,
                    )
                )
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
                working.cancel()
                with suppress(asyncio.CancelledError):
                    await working
        except ConnectorException as error:
            log.warning("the worker lost its database and tries again: %s", error.__cause__)
        except Exception:
            log.exception("the worker failed and tries again; tills are served meanwhile")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSE_SECONDS)
