"""Every "no" has one status, and every address says who may use it."""

import json
from typing import Any
from unittest.mock import Mock

import pytest

from kantis.api import problems
from kantis.api.access import WHO
from kantis.api.app import HANDLERS, build_app
from kantis.api.problems import STATUS, Fault, problem_of
from kantis.core.refusals import NotEnough, Refusal, all_refusals


def test_every_refusal_has_a_status() -> None:
    assert set(STATUS) == set(all_refusals())
    assert set(STATUS.values()) == {403, 404, 409, 422}


def test_codes_are_given_once() -> None:
    kinds: list[type[Refusal | Fault]] = [*all_refusals(), *Fault.__subclasses__()]
    codes = [kind.code for kind in kinds]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", all_refusals(), ids=lambda kind: kind.code)
def test_a_refusal_can_be_told(kind: type[Refusal]) -> None:
    problem = json.loads(problems.encode(problem_of(kind(day=object, number=7))))
    assert problem["fields"]["number"] == 7
    assert problem["title"]
    assert problem["way_out"].endswith((".", "`."))


def test_a_problem_says_what_and_what_to_do() -> None:
    assert problem_of(NotEnough(unit="bonus", asked=5, available=3)) == problems.Problem(
        type="urn:kantis:problem:not-enough",
        title="The balance does not cover this",
        status=409,
        code="not-enough",
        detail="The balance does not cover this (unit bonus, asked 5, available 3).",
        way_out="Ask for no more than `available`.",
        fields={"unit": "bonus", "asked": 5, "available": 3},
    )


def test_every_handler_says_who_may() -> None:
    assert set(WHO) == {handler.handler_name for handler in HANDLERS}
    assert all(kinds <= {"till", "staff"} and kinds for kinds in WHO.values())


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return build_app(Mock()).openapi_schema.to_schema()


def test_the_document_describes_every_handler(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert {operation["operationId"] for operation in operations} == set(WHO)
    for operation in operations:
        assert operation["summary"]
        assert set(operation["responses"]) >= {"200", "401", "422", "503"}
    assert document["security"] == [{"till": []}]


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named == set(document["components"]["schemas"])


def test_the_document_writes_patterns_as_javascript_reads_them(document: dict[str, Any]) -> None:
    receipt = document["components"]["schemas"]["Receipt"]["properties"]
    assert receipt["number"]["pattern"] == "^[A-Za-z0-9._-]{1,64}$"
    assert r"\\Z" not in json.dumps(document)
