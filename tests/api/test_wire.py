"""Names that occur twice in an object are found, however the object is written."""

import json
from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kantis.api import wire
from kantis.api.problems import Malformed

ANYTHING = msgspec.json.Decoder()

BLANKS = st.sampled_from(["", "", "", " ", "\n", "\t", "\r"])
NAMES = st.sampled_from(["a", "b", "c", ":", ":a", '"', '":', "\\", " ", "å"])
ESCAPED = st.booleans()


@st.composite
def texts(draw: st.DrawFn, value: str) -> str:
    """Write a string with or without needless escapes."""
    if draw(ESCAPED):
        return '"' + "".join(f"\\u{ord(character):04x}" for character in value) + '"'
    return json.dumps(value, ensure_ascii=draw(ESCAPED))


@st.composite
def documents(draw: st.DrawFn, depth: int = 2) -> str:
    """Write JSON whose objects may have a name twice, with blanks anywhere."""
    kind = (
        draw(st.sampled_from(["text", "number", "list", "object", "object"])) if depth else "text"
    )
    if kind == "number":
        return str(draw(st.integers(0, 99)))
    if kind == "text":
        return draw(texts(draw(NAMES)))
    inner: Sequence[str] = draw(st.lists(documents(depth=depth - 1), max_size=3))
    blank = draw(BLANKS)
    if kind == "list":
        return f"[{blank}" + f"{blank},".join(inner) + "]"
    pairs = [f"{draw(texts(draw(NAMES)))}{draw(BLANKS)}:{blank}{value}" for value in inner]
    return "{" + f"{blank},{blank}".join(pairs) + f"{blank}}}"


def has_a_name_twice(text: str) -> bool:
    found = []
    json.loads(text, object_pairs_hook=lambda pairs: found.append(len(pairs) != len(dict(pairs))))
    return any(found)


def is_refused(text: str) -> bool:
    try:
        wire.decode(ANYTHING, text.encode())
    except Malformed:
        return True
    return False


@given(documents())
def test_a_document_is_refused_if_a_name_is_there_twice(text: str) -> None:
    assert is_refused(text) == has_a_name_twice(text)


def test_the_ways_in_which_a_name_can_hide() -> None:
    for text in (
        '{"a":1,"a":1}',
        '{"a" :1,"a":1}',
        '{"l":[{"a":1},{"b":":x","b":2}]}',
        '{"a":1,"a":1,"b":"\\u0022:"}',
        '{"a":1,"\\u0061":1}',
    ):
        assert has_a_name_twice(text)
        assert is_refused(text)
