"""Every command, setting and endpoint has its heading, and every heading its thing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from kantis.cli import app

ROOT = Path(__file__).parents[2]


def headings(name: str) -> set[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return set(re.findall(r"^## (.+)$", text, flags=re.MULTILINE))


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - Typer's own
    """Give every command below a group, with its full name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    for each, one in (below or {}).items():
        yield from commands(one, f"{name} {each}")


COMMANDS = dict(commands(typer.main.get_command(app), "kantis"))


def test_every_command_has_its_heading() -> None:
    assert set(COMMANDS) == headings("commands.md")


def test_every_option_is_named_with_its_command() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        options = [option for parameter in command.params for option in parameter.opts]
        long = [option for option in options if option.startswith("--")]
        assert [option for option in long if option not in section] == [], name


def test_every_setting_has_its_heading() -> None:
    source = (ROOT / "src/kantis/settings.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\"(KANTIS_[A-Z_]+)\"", source)) == headings("settings.md")


def test_the_links_of_the_documents_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
