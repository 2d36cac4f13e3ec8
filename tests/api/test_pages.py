"""Pages: the API's documentation without a network, and what a server says of itself."""

import asyncio
import re

import httpx
import pytest
from psycopg_pool import ConnectionPool

from kantis.serve import build_asgi

LINK = re.compile(r"""(?:src|href)=["']([^"']*)["']|(?:fetch|import)\(["']([^"']*)["']""")


def test_the_documentation_needs_no_network(till: httpx.Client) -> None:
    page = till.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    links = {one or other for one, other in LINK.findall(page.text)} - {"data:,"}
    assert len(links) == 3
    for link in links:
        assert link.startswith("/docs/assets/")
        asset = till.get(link)
        assert asset.status_code == 200
        # A style sheet or program that is complete needs nothing further from elsewhere.
        assert not re.search(rb"""url\(["']?https?:|sourceURL=https?:""", asset.content)
    assert "cdn" not in page.text


def test_the_document_is_served_without_a_token(base_url: str) -> None:
    document = httpx.get(f"{base_url}/docs/openapi.json").json()
    assert "/v1/receipts" in document["paths"]


def test_people_see_what_runs_here(till: httpx.Client) -> None:
    page = till.get("/")
    assert page.status_code == 200
    assert 'href="/docs"' in page.text
    assert page.headers["X-Frame-Options"] == "DENY"
    assert till.get("/nothing").status_code == 404


def test_a_server_is_alive_and_ready(till: httpx.Client) -> None:
    for path in ("/health", "/ready"):
        assert till.get(path).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("part", "there", "not_there"), [("api", "/docs", "/health"), ("site", "/health", "/docs")]
)
def test_each_part_serves_alone(
    pool: ConnectionPool, part: str, there: str, not_there: str
) -> None:
    transport = httpx.ASGITransport(build_asgi(pool, {part}))

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [(await client.get(path)).status_code for path in (there, not_there)]

    assert asyncio.run(ask()) == [200, 404]
