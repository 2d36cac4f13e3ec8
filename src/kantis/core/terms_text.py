"""Terms from TOML text: what is well formed is also checked for sense."""

import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from kantis.core.terms import EarnRule, PerAmount, Percent, PerPiece, Terms
from kantis.core.toml_text import (
    UNREADABLE,
    Fault,
    Path,
    Reader,
    TextFaulty,
    locate,
    of_table,
    syntax_fault,
    unknown,
)


class TermsFaulty(TextFaulty):
    """A terms file with faults."""


def read_terms(text: str) -> Terms:
    """Read one version of a programme's terms.

    :raises TermsFaulty: with every fault found
    """
    try:
        document = tomllib.loads(text)
    except UNREADABLE as error:
        raise TermsFaulty([syntax_fault(error)]) from None
    return terms_from(document, locate(text))


def terms_from(document: dict[str, Any], lines: Mapping[Path, int]) -> Terms:
    """Read terms from a parsed document; `lines` says where its keys stand.

    :raises TermsFaulty: with every fault found
    """
    reader = Reader(lines)
    terms: Terms | None = reader.struct(Terms, document, ())
    for path, message in _contradictions(document):
        reader.fault(path, message)
    for path, message in _excesses(terms) if terms is not None else ():
        reader.fault(path, message)
    if terms is None or reader.faults:
        raise TermsFaulty(reader.faults)
    return terms


UNITS_PER_MINOR_MAX = 1_000
"""Beyond this the largest receipt could earn more than PostgreSQL's `bigint` holds."""

UNITS_PER_PIECE_MAX = 1_000_000
"""Likewise, for the most pieces that a receipt can have."""


def _excesses(terms: Terms) -> "Findings":
    """Find what gives so much that the books could not hold it."""
    for index, rule in enumerate(terms.earn):
        if _gives_too_much(rule):
            field = "percent" if isinstance(rule, Percent) else "give"
            yield ("earn", index, field), f"`{field}` is more than the books can hold"
    for index, conversion in enumerate(terms.conversion):
        if conversion.gives > conversion.each * UNITS_PER_MINOR_MAX:
            yield ("conversion", index, "gives"), "`gives` is more than the books can hold"
    for index, move in enumerate(terms.transition):
        if move.ratio.num > move.ratio.den * UNITS_PER_MINOR_MAX:
            yield ("transition", index, "ratio"), "`ratio` is more than the books can hold"


def _gives_too_much(rule: EarnRule) -> bool:
    match rule:
        case PerAmount(give=give, per_minor=per_minor):
            return give * per_minor.den > per_minor.num * UNITS_PER_MINOR_MAX
        case Percent(percent=percent):
            return percent.num > percent.den * 100 * UNITS_PER_MINOR_MAX
        case PerPiece(give=give):
            return give > UNITS_PER_PIECE_MAX


def check_succession(before: Terms, after: Terms) -> list[Fault]:
    """Find what a new version drops without saying what becomes of it."""
    faults = []
    for what in ("unit", "tier"):
        old = {block.name for block in getattr(before, what)}
        new = {block.name for block in getattr(after, what)}
        mapped = {move.old for move in after.transition if move.what == what}
        faults += [
            Fault(
                0,
                f"the {what} `{name}` of {before.valid_from} is gone; say what becomes of it "
                f'in a [[transition]] with what = "{what}", old = "{name}"',
            )
            for name in sorted(old - new - mapped)
        ]
    keeps_money = before.tier or any(unit.kind == "money" for unit in before.unit)
    if before.currency != after.currency and keeps_money:
        faults.append(
            Fault(
                0,
                f"the currency cannot change from {before.currency} to {after.currency}"
                " while there are levels or units of money",
            )
        )
    if before.zone != after.zone:
        faults.append(Fault(0, f"the zone cannot change from {before.zone} to {after.zone}"))
    return faults


# --- sense ---------------------------------------------------------------------------------
# These look at the plain document, so that a fault of shape in one block hides none in another.

_NAMED = ("unit", "tier", "card", "status", "fee")
_REFERS_TO = {
    "unit": "unit",
    "to": "unit",
    "tier": "tier",
    "status": "status",
    "not_status": "status",
    "card": "card",
    "role": "role",
}
"""Fields that name another block, and which kind of block."""

_known_zones = cache(available_timezones)  # it searches the disk

Findings = Iterator[tuple[Path, str]]


def _contradictions(document: dict[str, Any]) -> Findings:
    """Find what is well formed and yet cannot be meant."""
    for finding in (
        _unknown_zone,
        _missing_texts,
        _doubled_names,
        _unknown_names,
        _impossible_ladders,
        _unpayable_units,
        _doubled_units,
        _pointless_blocks,
    ):
        yield from finding(document)


def _blocks(document: dict[str, Any], *fields: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for field in fields or document:
        value = document.get(field)
        if isinstance(value, dict) and field != "label":
            yield (field,), value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield (field, index), item


def _names(document: dict[str, Any], field: str) -> list[str]:
    if field == "role":
        blocks = _blocks(document, "membership")
        return [role for _, block in blocks for role in _texts_in(block.get("roles"))]
    return [str(block.get("name", "")) for _, block in _blocks(document, field)]


def _texts_in(value: object) -> list[str]:
    """Give a text, or the texts of a list; what is neither is a fault of shape."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _unknown_zone(document: dict[str, Any]) -> Findings:
    zone = document.get("zone")
    if isinstance(zone, str):
        known = _known_zones()
        if zone not in known:
            close = get_close_matches(zone, known, n=1) or ["Europe/Helsinki"]
            yield ("zone",), f"`zone` is unknown: {zone!r}; did you mean {close[0]!r}?"


def _missing_texts(document: dict[str, Any]) -> Findings:
    languages = _texts_in(document.get("languages"))
    blocks = [(path, "text", block.get("text")) for path, block in _blocks(document)]
    labels = [
        (path, "label", block.get("label")) for path, block in _blocks(document, "unit", "tier")
    ]
    for path, field, text in (((), "label", document.get("label")), *blocks, *labels):
        for language in languages:
            if not (isinstance(text, dict) and text.get(language)):
                yield (*path, field), f"`{field}` has no {language!r}{of_table(path)}"


def _doubled_names(document: dict[str, Any]) -> Findings:
    for field in _NAMED:
        seen: set[str] = set()
        for index, name in enumerate(_names(document, field)):
            if name and name in seen:
                yield (field, index, "name"), f"there are two {field}s called {name!r}"
            seen.add(name)


def _unknown_names(document: dict[str, Any]) -> Findings:
    names = {kind: _names(document, kind) for kind in {*_REFERS_TO.values()}}
    for path, block in _blocks(document):
        for field, kind in _REFERS_TO.items():
            for name in _texts_in(block.get(field)):
                if name not in names[kind]:
                    yield (*path, field), f"`{field}` {unknown(name, names[kind])}"
        if path[0] == "transition":
            for what in _texts_in(block.get("what")):
                for new in _texts_in(block.get("new")):
                    if what in names and new not in names[what]:
                        yield (*path, "new"), f"`new` {unknown(new, names[what])}"


def _impossible_ladders(document: dict[str, Any]) -> Findings:
    tiers = list(_blocks(document, "tier"))
    if tiers and "ladder" not in document:
        yield ("tier", 0), "there are tiers but no [ladder] that says how one rises and falls"
    if "ladder" in document and not tiers:
        yield ("ladder",), "there is a [ladder] but no [[tier]]"
    last = -1
    for path, tier in tiers:
        limits = [tier[key] for key in ("from_minor", "above_minor") if key in tier]
        if len(limits) != 1:
            yield path, f"{tier.get('name')!r} needs from_minor or above_minor, and only one"
        elif not isinstance(limits[0], int):
            continue
        elif limits[0] <= last:
            yield path, f"{tier.get('name')!r} must need more than the tier before it"
        else:
            last = limits[0]


def _unpayable_units(document: dict[str, Any]) -> Findings:
    points = [b.get("name") for _, b in _blocks(document, "unit") if b.get("kind") == "points"]
    for path, block in _blocks(document, "redemption"):
        if block.get("unit") in points:
            yield (*path, "unit"), '`unit` pays for goods and must be of kind "money"'


def _doubled_units(document: dict[str, Any]) -> Findings:
    for field in ("redemption", "expiry", "conversion"):
        seen: set[str] = set()
        for path, block in _blocks(document, field):
            unit = str(block.get("unit"))
            if unit in seen:
                yield (*path, "unit"), f"there are two [[{field}]] for {unit!r}"
            seen.add(unit)


def _pointless_blocks(document: dict[str, Any]) -> Findings:
    for path, block in _blocks(document, "conversion"):
        if block.get("unit") == block.get("to"):
            yield (*path, "to"), "`to` must be another unit than `unit`"
    for path, block in _blocks(document, "earn"):
        first, last = block.get("first_on"), block.get("last_on")
        if isinstance(first, date) and isinstance(last, date) and first > last:
            yield (*path, "last_on"), "`last_on` lies before `first_on`"
    for path, block in _blocks(document, "exclusion"):
        if block.get("lines") == {}:
            yield (*path, "lines"), "`lines` selects everything: nothing would earn"
