"""The reference for tills' developers: each example is sent, each answer is the one shown."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx

from kantis.api.app import Api, build_app
from kantis.api.problems import STATUS, Fault
from kantis.core.refusals import all_refusals
from kantis.db.cluster import APP
from kantis.db.connect import open_pool
from kantis.serve import ASGI

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
BLOCK = re.compile(r"^```(http|json|ndjson)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^### (GET|POST) (\S+)$", re.MULTILINE)
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)")
DAY = re.compile(r"\d{4}-\d\d-\d\d(?!T)")

WRITTEN_ON = date(2026, 11, 23)
WRITTEN_AT = datetime.fromisoformat("2026-11-23T10:17:00+01:00")
"""A moment amid the examples, which are sent as if it were now."""

LEARNED = ("account_id", "hold_id", "card_number", "number")
"""What the server draws, and later requests name."""


class Reader:
    """Sends the examples in their order, and puts in what the server drew meanwhile."""

    def __init__(self, base_url: str) -> None:
        self.client = httpx.Client(
            base_url=base_url, headers={"Authorization": "Bearer till-alltid-north"}
        )
        self.started_at = datetime.now(UTC)
        self.drawn: dict[str, str] = {}

    def send(self, example: str) -> httpx.Response:
        """Send a request as it is written; `{hold_id}` is the one drawn last."""
        head, _, body = self._now(example).partition("\n\n")
        line, *fields = head.splitlines()
        method, _, path = line.partition(" ")
        headers = dict(field.split(": ", 1) for field in fields)
        answer = self.client.request(method, path, headers=headers, content=body)
        if answer.headers["Content-Type"] == "application/json":
            said = answer.json()
            self.drawn |= {name: str(said[name]) for name in LEARNED if name in said}
        return answer

    def _now(self, example: str) -> str:
        """Move an example to now: `WRITTEN_AT` is this moment, its day is today."""
        for name, value in self.drawn.items():
            example = example.replace(f"{{{name}}}", value)
        today = self.started_at.date()
        example = DAY.sub(
            lambda day: str(date.fromisoformat(day[0]) + (today - WRITTEN_ON)), example
        )
        return INSTANT.sub(
            lambda at: (self.started_at + (datetime.fromisoformat(at[0]) - WRITTEN_AT)).isoformat(),
            example,
        )


def plain(text: str) -> list[Any]:
    """Read an answer's lines without what differs from day to day and draw to draw."""
    text = DAY.sub("<day>", INSTANT.sub("<instant>", text))
    try:
        documents = [json.loads(text)]
    except json.JSONDecodeError:
        documents = [json.loads(line) for line in text.splitlines()]
    return [masked(document) for document in documents]


def masked(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {
            name: f"<{name}>" if name in LEARNED else masked(inner) for name, inner in value.items()
        }
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def examples() -> Iterator[tuple[str, str]]:
    """Give each request with the answer below it."""
    blocks = iter(BLOCK.findall(TEXT))
    for kind, request in blocks:
        assert kind == "http", request
        form, answer = next(blocks)
        assert form in {"json", "ndjson"}, answer
        yield request, answer


def test_each_example_gets_the_answer_that_is_shown(
    fresh_database: Callable[[str], str],
    set_up_shop: Callable[[str], None],
    serving: Callable[[ASGI], AbstractContextManager[str]],
) -> None:
    url = fresh_database(APP)
    set_up_shop(url)
    with open_pool(url) as pool, serving(Api(pool)) as base_url:
        reader = Reader(base_url)
        for request, answer in examples():
            got = reader.send(request)
            assert plain(got.text) == plain(answer), request
        reader.client.close()


def test_each_address_has_a_section_and_an_example() -> None:
    paths = build_app(None).openapi_schema.to_schema()["paths"]  # type: ignore[arg-type]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(HEADING.findall(TEXT)) == routes
    sent = [request.split()[:2] for request, _ in examples()]
    for method, path in routes:
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        assert any(method == verb and re.fullmatch(pattern, where) for verb, where in sent), path


def test_each_code_stands_with_its_status() -> None:
    for fault in Fault.__subclasses__():
        assert f"\n| `{fault.code}` | {fault.status} |" in TEXT
    for refusal in all_refusals():
        assert re.search(rf"^\| {STATUS[refusal]} \|.*`{refusal.code}`", TEXT, re.MULTILINE)
