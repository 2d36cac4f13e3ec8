from pathlib import Path

import pytest
from msgspec.structs import fields, replace

from kantis.core.conditions import TOPICS, conditions, sections
from kantis.core.numbers import Ratio
from kantis.core.terms import Block, Percent, Terms, Transition
from kantis.core.terms_text import read_terms

ROOT = Path(__file__).parents[2] / "programmes"
FILES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("*/*.toml"))


def terms_in(file: str) -> Terms:
    return read_terms((ROOT / file).read_text(encoding="utf-8"))


def blocks_of(terms: Terms) -> list[Block]:
    values = [getattr(terms, field.name) for field in fields(Terms)]
    many = [one for value in values if isinstance(value, tuple) for one in value]
    return [block for block in (*values, *many) if isinstance(block, Block)]


@pytest.mark.parametrize("file", FILES)
def test_every_block_stands_in_the_conditions_with_its_text_and_its_clauses(file: str) -> None:
    terms = terms_in(file)
    for language in terms.languages:
        paragraphs = [one for section in sections(terms, language) for one in section.paragraphs]
        assert sorted((one.text, one.clauses) for one in paragraphs) == sorted(
            (block.text[language], (block.clause, *block.also)) for block in blocks_of(terms)
        )
        assert all(one.figures for one in paragraphs)


def test_every_field_of_the_terms_that_holds_blocks_has_a_topic() -> None:
    described = {name for names in TOPICS.values() for name in names}
    plain = {"programme", "valid_from", "currency", "zone", "languages", "entity", "label"}
    assert described == {field.name for field in fields(Terms)} - plain


def test_figures_are_restated_from_the_data() -> None:
    text = conditions(terms_in("kplussa/2016-01-01.toml"), "en", width=300)
    assert text.startswith("# K-Plussa\n\nIn force from 2016-01-01 · EUR · Europe/Helsinki\n")
    for line in (
        "> earn: per amount · 1 points · per 1.00 EUR · not in chains: partner · until",
        "> earn: per piece · 2,000 points · level: best customer · category: travel/package",
        "> tier: best customer · above 6,500.00 EUR",
        "> conversion: each full 1,000 points · become 5.00 EUR Plussa money · usable from day 5",
        "> claims: allowed: no",
    ):
        assert f"\n{line}" in text


def test_rates_are_exact() -> None:
    terms = terms_in("coop/2026-01-01.toml")
    assert "per 5000000/195583 × 0.01 EUR" in conditions(terms, "en")
    third = Percent(clause="X", unit="points", percent=Ratio(10, 3))
    more = replace(terms, earn=(third, replace(third, percent=Ratio(7, 2))))
    assert "> earn: percent · points · 10/3 %\n" in conditions(more, "en")
    assert "> earn: percent · points · 3.5 %\n" in conditions(more, "en")


def test_what_is_at_its_default_is_not_said_and_what_is_not_is() -> None:
    terms = terms_in("coop/2026-01-01.toml")
    move = Transition(clause="X", what="unit", old="points", new="points")
    text = conditions(
        replace(terms, transition=(move, replace(move, ratio=Ratio(1, 2)))), "en", width=300
    )
    assert "> transition: what: unit · old: points · new: points\n" in text
    assert "> transition: what: unit · old: points · new: points · ratio: 0.5\n" in text


def test_a_missing_text_stands_in_another_language_and_says_which() -> None:
    text = conditions(terms_in("alltid/2016-01-01.toml"), "sv")
    assert text.startswith("# [nb] Alltid!\n")
    assert "[nb] Mineralvann gir 8 % bonus på alle nivåer. [S-4]" in text
    assert "tier: [nb] nivå 1" in text


def test_a_paragraph_is_never_blank() -> None:
    terms = terms_in("alltid/2016-01-01.toml")
    without = replace(terms, claims=replace(terms.claims, text={}))
    assert "(no text) [S-4]" in conditions(without, "en")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("width", [60, 88])
def test_lines_are_no_wider_than_asked_and_no_word_is_lost(file: str, width: int) -> None:
    terms = terms_in(file)
    narrow = conditions(terms, "en", width=width)
    assert max(map(len, narrow.splitlines())) <= width
    assert (
        narrow.replace("> ", "").split()
        == conditions(terms, "en", width=9999).replace("> ", "").split()
    )
