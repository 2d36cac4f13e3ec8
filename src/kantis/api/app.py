"""The API as an ASGI application."""

import asyncio
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ASGIApp, Receive, Scope, Send
from psycopg_pool import ConnectionPool

from kantis.api import desks, docs, problems, tills
from kantis.api.access import let_in, till_of
from kantis.api.counter import Counter
from kantis.api.problems import answer_problem
from kantis.api.wire import BODY_BYTES_MAX, Strict
from kantis.operations.limits import Limits

HANDLERS = (
    tills.quote_receipt,
    tills.book_receipt,
    tills.book_batch,
    tills.book_return,
    tills.hold,
    tills.capture_hold,
    tills.release_hold,
    tills.show_card,
    desks.enrol_member,
    desks.issue_card,
    desks.activate_card,
    desks.block_card,
    desks.replace_card,
    desks.pool_card,
    desks.change_status,
    desks.end_membership,
    desks.open_balances,
    desks.list_waiting,
    desks.accept_waiting,
    desks.dismiss_waiting,
)


def in_time(app: ASGIApp) -> ASGIApp:
    """Answer 503 when the time is over. What is under way goes on: asked again, its key answers."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(problems.ANSWER_WITHIN_SECONDS):
            await app(scope, receive, send)

    return answer


class Api:
    """The API: receipts and quotes by the shortest way, all else through Litestar."""

    def __init__(self, pool: ConnectionPool, limits: Limits | None = None) -> None:
        """Build it on a pool, which stays the caller's to close. It needs no lifespan.

        Without `limits` the usual ones hold.
        """
        self.litestar = build_app(pool, limits)
        counter = Counter(pool, limits or Limits())
        self._by_the_shortest_way = {
            "/v1/receipts": counter.book_receipt,
            "/v1/quotes": counter.quote_receipt,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """Answer a request."""
        short = self._by_the_shortest_way.get(scope["path"]) if scope["method"] == "POST" else None
        await (short or self.litestar)(scope, receive, send)


def build_app(pool: ConnectionPool, limits: Limits | None = None) -> Litestar:
    """Build all addresses with their document; each works here, one request at a time."""
    app = Litestar(
        route_handlers=[
            Router(
                "/v1",
                route_handlers=HANDLERS,
                guards=[let_in],
                dependencies={"till": Provide(till_of, sync_to_thread=False)},
                dto=Strict,
                return_dto=None,
            ),
            docs.assets(),
        ],
        middleware=[in_time],
        openapi_config=docs.openapi(),
        exception_handlers={Exception: answer_problem},
        request_max_body_size=BODY_BYTES_MAX,
        state=State({"pool": pool, "limits": limits or Limits()}),
        logging_config=None,
    )
    docs.finish(app.openapi_schema)
    return app
