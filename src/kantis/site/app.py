"""People's pages as an ASGI application."""

from typing import Any

from django.core.asgi import get_asgi_application
from psycopg_pool import ConnectionPool

from kantis.db.schema import set_up_django


class Site:
    """Django, with the pool of connections in each request's scope."""

    def __init__(self, pool: ConnectionPool) -> None:
        """Make the pages ready; the pool stays the caller's to close."""
        set_up_django()
        self.pool = pool
        self.django = get_asgi_application()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        """Answer a request."""
        await self.django(scope | {"kantis.pool": self.pool}, receive, send)
