"""What the import contracts cannot say: what the rules may use, and how they are written."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kantis"
ALLOWED_IN_CORE = {
    *("bisect", "calendar", "collections", "dataclasses", "datetime", "decimal", "difflib"),
    *("enum", "functools", "hashlib", "itertools", "math", "operator", "re", "tomllib", "typing"),
    *("zoneinfo", "msgspec"),
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 450

in_core = pytest.mark.parametrize(
    "file", sorted((SOURCE / "core").rglob("*.py")), ids=lambda file: file.name
)
in_core_and_db = pytest.mark.parametrize(
    "file",
    sorted(file for part in ("core", "db") for file in (SOURCE / part).rglob("*.py")),
    ids=lambda file: str(file.relative_to(SOURCE)),
)


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def imported(file: Path) -> Iterator[str]:
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""


@in_core
def test_the_core_imports_only_what_is_allowed(file: Path) -> None:
    for module in imported(file):
        top, _, rest = module.partition(".")
        assert top in ALLOWED_IN_CORE or f"{module}.".startswith("kantis.core."), (module, rest)


@in_core
def test_the_core_waits_for_nothing(file: Path) -> None:
    waiting = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    assert not [node for node in nodes(file) if isinstance(node, waiting)]


@in_core
def test_the_core_is_written_in_pieces_one_can_read(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= FILE_LINES_MAX
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


@in_core_and_db
def test_amounts_are_whole_numbers(file: Path) -> None:
    assert list(fractions(file)) == []


def fractions(file: Path) -> Iterator[str]:
    """Find what makes or rounds fractions of whole numbers.

    The core has no paths, so each `/` in it divides. In the database layer a module that
    imports `pathlib` joins paths with it and waits for parts of a second; it is left alone
    as long as it imports nothing of the core, and so knows no amounts.
    """
    modules = set(imported(file))
    if "pathlib" in modules and not any(module.startswith("kantis.core") for module in modules):
        return
    for node in nodes(file):
        match node:
            case ast.Constant(value=float() | complex() as value):
                yield f"line {node.lineno}: the literal {value}"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield f"line {node.lineno}: a division that does not round down"
            case ast.Call(func=ast.Name(id="round" | "float" as name)):
                yield f"line {node.lineno}: {name}()"
            case _:
                pass


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 7 // 2", []),
        ("a = 7 / 2", ["line 1: a division that does not round down"]),
        ("a = 7\na /= 2", ["line 2: a division that does not round down"]),
        ("a = 0.5", ["line 1: the literal 0.5"]),
        ("a = round(7)", ["line 1: round()"]),
        ("a = float('7')", ["line 1: float()"]),
        ("import pathlib\na = pathlib.Path() / 'b'", []),
        ("import pathlib\nimport kantis.core.numbers\na = 0.5", ["line 3: the literal 0.5"]),
    ],
)
def test_fractions_are_found(text: str, found: list[str], tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(text, encoding="utf-8")
    assert list(fractions(file)) == found
