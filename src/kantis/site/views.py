"""People's pages. Each request carries the pool of connections in its ASGI scope."""

import asyncio
from importlib.metadata import version

import psycopg
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from psycopg_pool import ConnectionPool

from kantis.db.schema import missing


async def home(request: ASGIRequest) -> HttpResponse:
    """Say what runs here."""
    return render(request, "site/home.html", {"version": version("kantis")})


async def health(_request: ASGIRequest) -> JsonResponse:
    """Say that the process lives; nothing else is asked."""
    return JsonResponse({"status": "ok"})


async def ready(request: ASGIRequest) -> JsonResponse:
    """Say whether requests can be answered: the database is there and its schema is ours."""
    pool: ConnectionPool = request.scope["kantis.pool"]
    lacking = await asyncio.to_thread(_lacking, pool)
    if lacking:
        return JsonResponse({"status": "not ready", "lacking": lacking}, status=503)
    return JsonResponse({"status": "ok"})


def _lacking(pool: ConnectionPool) -> str:
    try:
        with pool.connection() as connection:
            migrations = missing(connection)
    except psycopg.OperationalError:
        return "database"
    return f"migrations: {', '.join(migrations)}" if migrations else ""
