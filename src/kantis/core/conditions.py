"""The published conditions as a member reads them, with the figures that the engine goes by.

Each paragraph is a block's text and, under it, all that the block's data ask or give beyond the
defaults: whoever compares the two proofreads the terms. Version one has texts and the labels of
units and tiers in the language asked for; headings and the words around figures are English.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import fields

from kantis.core.numbers import Ratio
from kantis.core.terms import Block, Lines, Stores, Terms, Text, Tier, Unit

TOPICS: dict[str, tuple[str, ...]] = {
    "Who may join": ("membership", "status"),
    "Cards": ("card", "pooling", "claims", "lateness"),
    "What earns": ("unit", "earning_start", "earn"),
    "What does not earn": ("exclusion",),
    "Levels": ("tier", "ladder", "counting", "card_order"),
    "From points to money": ("conversion",),
    "Using it": ("redemption",),
    "Expiry": ("expiry",),
    "Fees": ("fee",),
    "Leaving": ("leaving",),
    "Suspension": ("suspension",),
    "Approval and changes": ("approval", "transition"),
}
"""The headings, and the fields of `Terms` that stand under each."""

PHRASES = {
    "kind": "{}",
    "name": "{}",
    "unit": "{}",
    "give": "{}",
    "per_minor": "per {}",
    "percent": "{} %",
    "each": "each full {}",
    "gives": "become {}",
    "credited_day": "usable from day {}",
    "from_minor": "from {}",
    "above_minor": "above {}",
    "tier": "level: {}",
    "not_chain": "not in chains: {}",
    "last_on": "until {}",
}
"""How a field is said, and in which order; another one is said by its name, after these."""

MINOR = 100
"""Minor units in a major one."""


class Paragraph(NamedTuple):
    """A block: its text, the clauses that it keeps, and its data in words."""

    text: str
    clauses: tuple[str, ...]
    figures: str


class Section(NamedTuple):
    """The paragraphs of one topic."""

    title: str
    paragraphs: tuple[Paragraph, ...]


def conditions(terms: Terms, language: str, *, width: int = 88) -> str:
    """Give the conditions as Markdown, wrapped to lines of at most `width` characters.

    A text that is missing in `language` stands in another, marked with that language's code.
    """
    out = [
        f"# {_say(terms, terms.label, language) or terms.programme}",
        "",
        f"In force from {terms.valid_from} · {terms.currency} · {terms.zone}",
    ]
    for number, section in enumerate(sections(terms, language), start=1):
        out += ["", f"## {number}. {section.title}"]
        for place, paragraph in enumerate(section.paragraphs, start=1):
            text = f"{number}.{place} {paragraph.text} [{', '.join(paragraph.clauses)}]"
            out += ["", *_wrapped(text, "", width), *_wrapped(paragraph.figures, "> ", width)]
    return "\n".join(out) + "\n"


def sections(terms: Terms, language: str) -> list[Section]:
    """Give the conditions by topic; a topic of which the terms say nothing is left out."""
    found = []
    for title, names in TOPICS.items():
        paragraphs = tuple(
            Paragraph(
                _say(terms, block.text, language) or "(no text)",
                (block.clause, *block.also),
                f"{name.replace('_', ' ')}: {' · '.join(_figures(terms, block, language))}",
            )
            for name in names
            for block in _blocks(terms, name)
        )
        if paragraphs:
            found.append(Section(title, paragraphs))
    return found


def _blocks(terms: Terms, name: str) -> tuple[Block, ...]:
    value: Any = getattr(terms, name)
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _say(terms: Terms, text: Text, language: str) -> str:
    """Give a text in the language, or in the first other one that has it, marked."""
    for one in (language, *terms.languages, *sorted(text)):
        if text.get(one):
            return text[one] if one == language else f"[{one}] {text[one]}"
    return ""


def _wrapped(text: str, prefix: str, width: int) -> list[str]:
    lines = [prefix]
    for word in text.split():
        if lines[-1] != prefix and len(lines[-1]) + 1 + len(word) > width:
            lines.append(prefix)
        lines[-1] += word if lines[-1] == prefix else f" {word}"
    return lines


# --- data in words -------------------------------------------------------------------------


def _figures(terms: Terms, block: Block, language: str) -> list[str]:
    """Give what a block says beyond its text and the defaults of its fields."""
    values = dict(_values(block))
    if {"give", "each"} & set(values):
        del values["unit"]  # said with the amount
        values.pop("to", None)
    order = [*PHRASES, *values]
    found = []
    for name in sorted(values, key=order.index):
        phrase = PHRASES.get(name, f"{name.removesuffix('_minor').replace('_', ' ')}: {{}}")
        found.append(phrase.format(_word(terms, block, name, values[name], language)))
    return found


def _values(struct: Struct) -> Iterator[tuple[str, Any]]:
    """Give a block's fields that are not at their default, those of its selectors among them."""
    if struct.__struct_config__.tag is not None:
        yield "kind", struct.__struct_config__.tag
    for field in fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, Lines | Stores):
            yield from _values(value)
        elif value != field.default and field.name not in {"clause", "also", "text", "label"}:
            yield field.name, value


def _word(terms: Terms, block: Block, name: str, value: object, language: str) -> str:
    word = str(value).replace("_", " ")
    match value:
        case bool():
            word = "yes" if value else "no"
        case Ratio(num=num, den=1) if name == "per_minor":
            word = _money(terms, num)
        case Ratio() if name == "per_minor":
            word = f"{_exact(value)} × {_money(terms, 1)}"
        case Ratio():
            word = _exact(value)
        case tuple():
            word = ", ".join(_word(terms, block, name, one, language) for one in value)
        case int() if name.endswith("_minor"):
            word = _money(terms, value)
        case int() if name in {"give", "gives", "each"}:
            unit = getattr(block, "to" if name == "gives" else "unit")
            is_money = any(u.name == unit and u.kind == "money" for u in terms.unit)
            amount = _money(terms, value) if is_money else f"{value:,}"
            word = f"{amount} {_label(terms, unit, language)}"
        case str() if name in {"unit", "tier"} or (name == "name" and hasattr(block, "label")):
            word = _label(terms, value, language)
        case _:
            pass
    return word


def _exact(ratio: Ratio) -> str:
    """Give a ratio as a decimal if two places are enough, and else as a fraction."""
    hundredths, rest = divmod(ratio.num * 100, ratio.den)
    decimal = f"{hundredths // 100}.{hundredths % 100:02d}".rstrip("0").rstrip(".")
    return f"{ratio.num}/{ratio.den}" if rest else decimal


def _money(terms: Terms, minor: int) -> str:
    return f"{minor // MINOR:,}.{minor % MINOR:02d} {terms.currency}"


def _label(terms: Terms, name: str, language: str) -> str:
    """Give what a unit or a tier is called; anything else goes by its name."""
    blocks: tuple[Unit | Tier, ...] = (*terms.unit, *terms.tier)
    label = next((block.label for block in blocks if block.name == name), {})
    return _say(terms, label, language) or name
