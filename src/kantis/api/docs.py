"""The page that shows the API, with all its files on board: it needs no network."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import msgspec
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPI,
    OpenAPIHeader,
    OpenAPIType,
    Operation,
    Reference,
    Schema,
    SecurityScheme,
)
from litestar.router import Router
from litestar.static_files import create_static_files_router

from kantis.api import wire
from kantis.api.desks import Dismissed
from kantis.api.problems import Problem
from kantis.api.tills import Hold
from kantis.core.answers import Answer
from kantis.core.cards import Card
from kantis.core.receipt import Receipt, Return
from kantis.db.strays import Stray
from kantis.operations.lookup import CardShown
from kantis.operations.members import Enrolled

ASSETS = "/docs/assets"

TYPES = (
    *(Receipt, Return, Answer, CardShown, Hold, Card, Enrolled, Problem),
    *(wire.HoldAsked, wire.ReleaseAsked, wire.EnrolAsked, wire.IssueAsked, wire.ReplaceAsked),
    *(wire.WaitingDecided, Dismissed, Stray),
    *(wire.PoolAsked, wire.StatusAsked, wire.LeaveAsked, wire.OpeningAsked, wire.Why),
)
"""What goes over the wire; what these are made of is found by itself."""

DESCRIPTION = """\
Tills and desks ask here. Money is in minor units (cents, øre, stotinki), instants carry their
offset from UTC, and a till's token speaks for its store. A receipt's key is its store, till,
business day and number: send it as often as you like, it is booked once. A 4xx answer means
that nothing was booked."""


def openapi() -> OpenAPIConfig:
    """Configure the OpenAPI document and the page that shows it."""
    return OpenAPIConfig(
        title="Kantis till API",
        version="1",
        description=DESCRIPTION,
        path="/docs",
        security=[{"till": []}],
        components=Components(
            security_schemes={"till": SecurityScheme(type="http", scheme="bearer")}
        ),
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _method, _path: handler.handler_name,
        render_plugins=[
            SwaggerRenderPlugin(
                path="/",
                js_url=f"{ASSETS}/swagger-ui-bundle.js",
                css_url=f"{ASSETS}/swagger-ui.css",
                standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
                favicon='<link rel="icon" href="data:,">',
            ),
            JsonRenderPlugin(path="/openapi.json"),
        ],
    )


def assets() -> Router:
    """Serve the files of Swagger UI."""
    package = Path(str(files("drf_spectacular_sidecar")))
    return create_static_files_router(
        path=ASSETS,
        directories=[package / "static" / "drf_spectacular_sidecar" / "swagger-ui-dist"],
        include_in_schema=False,
    )


HEADERS = {
    "401": ("WWW-Authenticate", "How to bring a token"),
    "503": ("Retry-After", "Seconds after which to send the same again"),
}
"""Headers that an answer of a status always has."""

REPLAYED = ("Idempotency-Replayed", "`true` if this is the answer that was given the first time")

BOOKING = frozenset({"book_receipt", "book_return", "capture_hold"})
"""Operations that say whether they answer again."""


def finish(document: OpenAPI) -> None:
    r"""Describe the types as msgspec reads them, and say in a sentence what each operation does.

    Litestar writes tuples as a choice that no document passes. Python's `\Z` at the end of a
    pattern would be a letter in JSON Schema.
    """
    _, types = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    exact = msgspec.json.decode(msgspec.json.encode(types).replace(rb"\\Z", b"$"))
    for name, schema in exact.items():
        if name != Problem.__name__:  # which quotes what was asked for, whatever it was
            _without_nul(schema)
    document.components = replace(document.components, schemas=exact)
    for path in (document.paths or {}).values():
        for operation in filter(None, (path.get, path.post)):
            operation.summary, _, _ = (operation.description or "").partition(".")
            _describe_headers(operation)


def _without_nul(schema: object) -> None:
    """Say of every text without another form that it has no U+0000."""
    if isinstance(schema, list):
        for inner in schema:
            _without_nul(inner)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not {"pattern", "format", "enum"} & schema.keys():
            schema["pattern"] = r"^[^\u0000]*$"
        for inner in schema.values():
            _without_nul(inner)


def _describe_headers(operation: Operation) -> None:
    for status, response in (operation.responses or {}).items():
        if isinstance(response, Reference):
            continue
        name, text = HEADERS.get(status, ("", ""))
        if status == "200" and operation.operation_id in BOOKING:
            name, text = REPLAYED
        if name:
            header = OpenAPIHeader(
                schema=Schema(type=OpenAPIType.STRING),
                description=text,
                required=status in HEADERS,
            )
            response.headers = {name: header}
