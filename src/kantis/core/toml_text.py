"""Frozen types from TOML text: every fault at once, with its line and what was probably meant."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from kantis.core.numbers import Ratio

Path = tuple[str | int, ...]
"""Where a value stands: `("earn", 2, "unit")` is the unit of the third `[[earn]]`."""


class Fault(NamedTuple):
    """What is wrong with a terms file, and where. `line` counts from 1; 0 is the whole file."""

    line: int
    message: str

    def __str__(self) -> str:
        """Say it as one line of a report."""
        return f"line {self.line}: {self.message}" if self.line else self.message


class TextFaulty(ValueError):
    """A file with faults; `faults` has all that were found, in the order of the file."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        """Sort and keep the faults."""
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


# --- where things stand --------------------------------------------------------------------

_HEADER = re.compile(r"^\s*\[(\[)?\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*=")


def locate(text: str) -> dict[Path, int]:
    """Map each table and each key of a TOML text to its line.

    Works on the plain layout that terms files have (a key or a header at a line's start);
    a value inside an inline table is found at the line of its key.
    """
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    inside_text = False
    # Not `splitlines`: to TOML and to editors a U+0085 within a text ends no line.
    for number, line in enumerate(text.split("\n"), start=1):
        was_inside_text = inside_text
        if line.count('"""') % 2:
            inside_text = not inside_text
        if was_inside_text:
            continue
        if header := _HEADER.match(line):
            names = tuple(header[2].split("."))
            table = _innermost(names, counts, is_array=header[1] is not None)
            lines.setdefault(names, number)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines[*table, key[1]] = number
    return lines


def _innermost(names: tuple[str, ...], counts: dict[Path, int], *, is_array: bool) -> Path:
    """Resolve a header's names to a path, with the index of the array tables they lie in."""
    path: Path = ()
    for depth, name in enumerate(names):
        path = (*path, name)
        if is_array and depth == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


UNREADABLE = (ValueError, ArithmeticError, RecursionError)
"""What the TOML parser raises: for bad syntax, for numbers too long, for tables too deep."""


def syntax_fault(error: Exception) -> Fault:
    """Turn the TOML parser's complaint into a fault."""
    where = re.search(r"\(at line (\d+), column \d+\)", str(error))
    message = re.sub(r" \(at .*\)$", "", str(error))
    return Fault(int(where[1]) if where else 0, f"this is not TOML: {message}")


# --- shape ---------------------------------------------------------------------------------


class Reader:
    """Turns plain TOML values into frozen types and collects every fault on the way."""

    def __init__(self, lines: Mapping[Path, int]) -> None:
        """Begin with where each key stands."""
        self.lines = lines
        self.faults: list[Fault] = []

    def line(self, path: Path) -> int:
        """Give the line of the nearest thing that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def fault(self, path: Path, message: str) -> None:
        """Note what is wrong with the value at `path`."""
        self.faults.append(Fault(self.line(path), message))

    def value(self, kind: Any, value: Any, path: Path) -> Any:  # noqa: ANN401 - any TOML value
        """Read one value; None when it has a fault (no field of the terms may be null)."""
        if kind is Ratio:
            return self._ratio(value, path)
        if structs := _structs_in(kind):
            return self._one_of(structs, value, path)
        many = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if get_origin(many) is tuple and _structs_in(get_args(many)[0]):
            found = self._many(get_args(many)[0], value, path)
            if found == () and many is not kind:  # the only bound that arrays of tables have
                self.fault(path, f"[[{path[-1]}]] is needed at least once")
            return found
        if (options := _options(kind)) and value not in options:
            self.fault(path, f"`{path[-1]}` {unknown(str(value), options)}")
            return None
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.fault(path, f"`{path[-1]}`: {_in_words(error)}")
            return None

    def _ratio(self, value: object, path: Path) -> Ratio | None:
        numbers = re.fullmatch(r"(\d{1,15})(?:/(\d{1,15})|\.(\d{1,6}))?", str(value))
        if isinstance(value, bool | float) or not numbers:
            self.fault(path, f'`{path[-1]}`: write a whole number, "7/2" or "3.5", not {value!r}')
            return None
        if numbers[3]:
            ratio = Ratio.of(int(numbers[1] + numbers[3]), 10 ** len(numbers[3]))
        else:
            ratio = Ratio.of(int(numbers[1]), int(numbers[2] or 1) or 1)
        if ratio.num == 0 or (numbers[2] and int(numbers[2]) == 0):
            self.fault(path, f"`{path[-1]}` must be more than 0")
            return None
        return ratio

    def _many(self, kind: Any, value: object, path: Path) -> Any:  # noqa: ANN401
        if not isinstance(value, list):
            self.fault(path, f"write [[{path[-1]}]], with two brackets: there can be several")
            return None
        items = [
            self._one_of(_structs_in(kind), item, (*path, index))
            for index, item in enumerate(value)
        ]
        return None if None in items else tuple(items)

    def _one_of(self, structs: tuple[type[Struct], ...], value: object, path: Path) -> Any:  # noqa: ANN401
        if not isinstance(value, dict):
            self.fault(path, f"`{path[-1]}` must be a table")
            return None
        config = structs[0].__struct_config__
        if config.tag_field is None:
            return self.struct(structs[0], value, path)
        kinds = {str(struct.__struct_config__.tag): struct for struct in structs}
        value = dict(value)
        tag = str(value.pop(config.tag_field, ""))
        if tag not in kinds:
            self.fault(
                (*path, config.tag_field),
                f"`{config.tag_field}` {unknown(tag, kinds)}",
            )
            return None
        return self.struct(kinds[tag], value, path)

    def struct(self, struct: type[Struct], value: dict[str, Any], path: Path) -> Any:  # noqa: ANN401
        """Read a table; None when anything in it has a fault."""
        before = len(self.faults)
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for name in value:
            if name not in fields:
                self.fault((*path, name), f"the key `{name}` {unknown(name, fields)}")
        found = {}
        for name, field in fields.items():
            if name in value:
                found[field.name] = self.value(field.type, value[name], (*path, name))
            elif field.default is NODEFAULT and field.default_factory is NODEFAULT:
                self.fault(path, f"`{name}` is missing{of_table(path)}")
        return struct(**found) if len(self.faults) == before else None


def _structs_in(kind: Any) -> tuple[type[Struct], ...]:  # noqa: ANN401 - any annotation
    """Give the struct types that an annotation allows, if it allows any."""
    options = get_args(kind) if get_origin(kind) is not tuple else ()
    members = options or (kind,)
    return tuple(o for o in members if isinstance(o, type) and issubclass(o, Struct))


def _options(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - any annotation
    """Give the words among which an annotation lets one choose, if it is of that kind."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else ()


def of_table(path: Path) -> str:
    """Name the table that a path lies in, for the end of a message."""
    names = [str(part) for part in path if isinstance(part, str)]
    return f" in [{'.'.join(names)}]" if names else ""


def unknown(name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, and which one was probably meant."""
    known = sorted(known)
    if close := get_close_matches(name, known, n=1):
        return f"is unknown: {name!r}; did you mean {close[0]!r}?" if name else "is missing"
    return f"is unknown: {name!r}; known are {', '.join(known) or 'none'}"


def _in_words(error: msgspec.ValidationError) -> str:
    words = re.sub(r" - at `\$.*`$", "", str(error)).replace("`", "")
    words = words[:1].lower() + words[1:]
    return words.replace(" | null", "")  # TOML has none
