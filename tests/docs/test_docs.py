"""What the code can do is named in its section of the documents, and nothing else has one."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, get_args, get_origin

import pytest
from msgspec import Struct
from msgspec.structs import fields

from kantis import check
from kantis.core import admission, cards, cases, earning, step, terms
from kantis.core.cases import read_case
from kantis.core.conditions import TOPICS
from kantis.core.refusals import all_refusals
from kantis.core.toml_text import Reader
from kantis.operations import sales

DOCS = Path(__file__).parents[2] / "docs"
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def sections(name: str) -> dict[str, str]:
    """Give each section's text under its heading, which may hold a code once only."""
    text = (DOCS / name).read_text("utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = list(HEADING.finditer(text))
    ends = [*(one.start() for one in headings[1:]), len(text)]
    found = {one[1]: text[one.end() : end] for one, end in zip(headings, ends, strict=True)}
    assert len(found) == len(headings), "headings are unique"
    return found


def structs_in(kind: object) -> list[type[Struct]]:
    """Give the struct types that an annotation is made of."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    return [struct for part in get_args(kind) for struct in structs_in(part)]


def is_array(kind: object) -> bool:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return get_origin(plain) is tuple


def not_named(names: Iterable[str], *texts: str) -> set[str]:
    return {name for name in names if not any(f"`{name}`" in text for text in texts)}


def names_of(struct: type[Struct], *, beyond: type[Struct] | None = None) -> set[str]:
    inherited = {field.name for field in fields(beyond)} if beyond else set()
    return {field.encode_name for field in fields(struct) if field.name not in inherited}


# --- terms.md ------------------------------------------------------------------------------


def blocks() -> Iterator[tuple[str, type[Struct]]]:
    """Give each block type with the heading that it must have."""
    for field in fields(terms.Terms):
        for struct in structs_in(field.type):
            heading = f"`[[{field.name}]]`" if is_array(field.type) else f"`[{field.name}]`"
            tag = struct.__struct_config__.tag
            yield f'{heading} with `kind = "{tag}"`' if tag else heading, struct


def test_every_block_and_each_of_its_fields_is_explained() -> None:
    text = sections("terms.md")
    for heading, struct in blocks():
        is_earning = issubclass(struct, terms.Earn)
        own = names_of(struct, beyond=terms.Earn if is_earning else terms.Block)
        assert not_named(own, text[heading]) == set(), heading


def test_what_blocks_share_is_explained_once() -> None:
    text = sections("terms.md")
    assert not_named(names_of(terms.Block), text["Every block"]) == set()
    shared = {"kind", *names_of(terms.Earn, beyond=terms.Block)}
    assert not_named(shared, text["Every `[[earn]]`"]) == set()
    assert not_named(names_of(terms.Lines), text["`lines`"]) == set()
    assert not_named(names_of(terms.Stores), text["`stores`"]) == set()
    of_blocks = {name for names in TOPICS.values() for name in names}
    assert not_named(names_of(terms.Terms) - of_blocks, text["The head"]) == set()


def test_no_block_is_explained_that_does_not_exist() -> None:
    explained = {heading for heading in sections("terms.md") if heading.startswith("`[")}
    assert explained == {heading for heading, _ in blocks()}


def examples(name: str, *, begins: str) -> list[str]:
    text = (DOCS / name).read_text("utf-8")
    found = re.findall(r"^```toml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [example for example in found if re.match(begins, example)]


def test_every_block_has_an_example_that_can_be_read() -> None:
    seen = set()
    types = {field.name: field.type for field in fields(terms.Terms)}
    for example in examples("terms.md", begins=r"\["):
        ((name, value),) = tomllib.loads(example).items()
        reader = Reader({})
        block = reader.value(types[name], value, (name,))
        assert reader.faults == []
        seen.add(type(block[0]) if isinstance(block, tuple) else type(block))
    assert seen == {struct for _, struct in blocks()}


# --- cases.md ------------------------------------------------------------------------------


def actions() -> dict[str, list[type[Struct]]]:
    return {
        field.encode_name: structs_in(field.type)
        for field in fields(cases.Step)
        if field.name in cases.ACTIONS
    }


def within(struct: type[Struct]) -> set[str]:
    """Give the fields of a struct and of the structs in it."""
    inner = [one for field in fields(struct) for one in structs_in(field.type)]
    return names_of(struct).union(*(within(one) for one in inner))


def test_every_action_and_each_of_its_fields_is_explained() -> None:
    text = sections("cases.md")
    for action, structs in actions().items():
        for struct in structs:
            assert not_named(within(struct), text[f"`{action}`"]) == set(), action
        assert f"`{action}`" in text


def test_every_expectation_and_what_all_steps_share_is_explained() -> None:
    text = sections("cases.md")
    assert not_named(names_of(cases.Expect), text["Expectations"]) == set()
    assert not_named(names_of(cases.Case), text["Every case"]) == set()
    shared = names_of(cases.Step) - actions().keys()
    assert not_named(shared, text["Every step"]) == set()


def test_every_action_has_an_example_that_can_be_read() -> None:
    case = 'title = "An example"\nclauses = []\n[[step]]\nat = 2024-01-01T12:00:00\n'
    read = [
        read_case(case + example).step[0].action
        for example in examples("cases.md", begins=r"[a-z]+ = (?!\"Example)")
    ]
    assert set(read) == set(cases.ACTIONS)


def test_no_action_is_explained_that_does_not_exist() -> None:
    explained = {heading.strip("`") for heading in sections("cases.md") if heading[0] == "`"}
    assert explained == actions().keys()


# --- refusals.md ---------------------------------------------------------------------------

CODE = re.compile(r"[a-z]+(-[a-z]+)*\Z")


def reasons_in(module: ModuleType) -> Iterator[str]:
    """Find the codes that a module gives as a reason, an outcome, or an answer to "why not?"."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.Call(
                func=ast.Name(id="Reason") | ast.Attribute(attr="nothing"),
                args=[ast.Constant(value=str(code)), *_],
            ):
                yield code
            case ast.keyword(arg="nothing", value=ast.Constant(value=str(code))):
                yield code
            case ast.FunctionDef(name="why_not_usable" | "account_of" | "_account_of"):
                yield from (
                    constant.value
                    for answer in ast.walk(node)
                    if isinstance(answer, ast.Return) and answer.value is not None
                    for constant in ast.walk(answer.value)
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
                )
            case _:
                pass


def reasons() -> set[str]:
    found = {
        code for one in (step, earning, cards, admission, check, sales) for code in reasons_in(one)
    }
    return {code for code in found if CODE.match(code)}


def test_every_refusal_and_every_reason_has_its_heading() -> None:
    text = sections("refusals.md")
    refusals = {refusal.code for refusal in all_refusals()}
    headings = {f"`{code}`" for code in refusals | reasons()}
    headings |= {f"`{code}` (reason)" for code in refusals & reasons()}
    assert {heading for heading in text if heading[0] == "`"} == headings


@pytest.mark.parametrize("code", [refusal.code for refusal in all_refusals()])
def test_every_refusal_says_what_it_means_and_the_way_out(code: str) -> None:
    meaning, _, way_out = sections("refusals.md")[f"`{code}`"].partition("Way out: ")
    assert meaning.strip()
    assert way_out.strip()


def test_reasons_are_found_in_the_code() -> None:
    assert {"training", "nothing-earns", "card-blocked", "sale-awaited", "no-card"} <= reasons()
