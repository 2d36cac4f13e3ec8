"""Every case beside the terms comes out as it expects, in the pure world."""

from functools import cache
from pathlib import Path

import pytest

from kantis.check import PureWorld, run
from kantis.core.cases import CaseFaulty, read_case
from kantis.core.programme import Programme
from kantis.core.terms_text import TermsFaulty, read_terms

PROGRAMMES = Path(__file__).parents[2] / "programmes"
CASES = sorted(PROGRAMMES.glob("*/cases/*.toml"))


@cache
def programme_in(directory: Path) -> Programme:
    return Programme(read_terms(path.read_text("utf-8")) for path in directory.glob("[0-9]*.toml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_a_case_comes_out_as_expected(path: Path) -> None:
    case = read_case(path.read_text("utf-8"))
    assert run(case, PureWorld(programme_in(path.parents[1]))) == []


def test_a_step_without_an_action_is_told_the_words_that_a_case_uses() -> None:
    step = "title = 'x'\nclauses = []\n[[step]]\nat = 2024-01-01T10:00:00\n"
    with pytest.raises(CaseFaulty, match=r"line 3: a step does one of: join, .*, return, "):
        read_case(step)


def test_a_misspelled_key_in_a_required_block_is_found_at_its_own_line() -> None:
    text = (PROGRAMMES / "kplussa/2016-01-01.toml").read_text("utf-8")
    before, after = text.split('name = "bank"\n')
    line = before.count("\n") + 2
    fault = f"line {line}: the key `activation_hour` is unknown: .* did you mean"
    with pytest.raises(TermsFaulty, match=fault):
        read_terms(f'{before}name = "bank"\nactivation_hour = 3\n{after}')
