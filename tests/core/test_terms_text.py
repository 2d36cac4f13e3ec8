from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kantis.core.cases import CaseFaulty, read_case
from kantis.core.numbers import Ratio
from kantis.core.programme import Programme
from kantis.core.terms import PerAmount
from kantis.core.terms_text import TermsFaulty, read_terms

SMALL = """\
programme = "corner-shop"
valid_from = 2020-01-01
currency = "EUR"
zone = "Europe/Helsinki"
languages = ["en"]
entity = "shop"

[label]
en = "Corner shop"

[membership]
clause = "1"
account = "person"
roles = ["main"]
text.en = "Anyone may join."

[pooling]
clause = "1"
allowed = false
text.en = "Each account keeps its own points."

[claims]
clause = "1"
allowed = false
text.en = "No card, no points."

[[card]]
clause = "1"
name = "card"
text.en = "The card."

[[unit]]
clause = "2"
name = "points"
kind = "points"
label.en = "points"
text.en = "Purchases earn points."

[[earn]]
clause = "2"
kind = "per_amount"
unit = "points"
give = 1
per_minor = "7/2"
lines = { category = ["food"], own_brand = true }
last_on = 2020-12-31
text.en = "Food earns points."

[[tier]]
clause = "3"
name = "gold"
label.en = "gold"
from_minor = 100000
text.en = "Gold."

[ladder]
clause = "3"
kind = "month"
months_kept = 1
text.en = "A level holds through the next month."

[[leaving]]
clause = "4"
cause = "member"
text.en = "Leave when you like."
"""
CASE = """\
title = "A purchase"
clauses = ["2"]

[[step]]
at = 2020-02-01T12:00:00
join = { card = "card" }

[[step]]
at = 2020-02-02T12:00:00
buy = { items = [{ amount = 12.50, category = "food" }], paid_with = { cash = 12.50 } }
expect = { earned = { points = 3 }, tier = "" }

[[step]]
at = 2020-02-03T12:00:00
return = { receipt = "first", lines = [{ line = 1, amount = 2.50 }] }
"""


def faults(text: str) -> list[str]:
    with pytest.raises(TermsFaulty) as caught:
        read_terms(text)
    return [str(fault) for fault in caught.value.faults]


def test_what_is_well_formed_is_read() -> None:
    terms = read_terms(SMALL)
    (rule,) = terms.earn
    assert isinstance(rule, PerAmount)
    assert rule.per_minor == Ratio(7, 2)
    assert rule.lines.own_brand is True
    assert rule.last_on == date(2020, 12, 31)


def test_five_mistakes_give_five_messages_with_lines_and_suggestions() -> None:
    mistaken = (
        SMALL.replace('zone = "Europe/Helsinki"', 'zone = "Europe/Helsinky"')
        .replace('account = "person"', 'account = "persona"')
        .replace('unit = "points"\n', 'unit = "point"\n')
        .replace("last_on", "last_one")
        .replace("from_minor = 100000", "from_minor = 1000.00")
    )
    assert faults(mistaken) == [
        "line 4: `zone` is unknown: 'Europe/Helsinky'; did you mean 'Europe/Helsinki'?",
        "line 13: `account` is unknown: 'persona'; did you mean 'person'?",
        "line 42: `unit` is unknown: 'point'; did you mean 'points'?",
        "line 46: the key `last_one` is unknown: 'last_one'; did you mean 'last_on'?",
        "line 53: `from_minor`: expected int, got float",
    ]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ('kind = "per_amount"', 'kind = "per_amont"', "line 41: `kind` is unknown: 'per_amont'"),
        ("[[card]]", "[card]", "line 27: write [[card]], with two brackets"),
        ('text.en = "The card."\n', "", "line 27: `text` has no 'en' in [card]"),
        (
            'per_minor = "7/2"',
            "per_minor = 3.5",
            'line 44: `per_minor`: write a whole number, "7/2"',
        ),
        ('per_minor = "7/2"', 'per_minor = "7/0"', "line 44: `per_minor` must be more than 0"),
        ("months_kept = 1\n", "", "line 56: `months_kept` is missing in [ladder]"),
        ('[ladder]\nclause = "3"\n', "[ladder]\n", "line 56: `clause` is missing in [ladder]"),
        ("valid_from = 2020-01-01", "valid_from = 2020-13-01", "line 2: this is not TOML"),
        ('entity = "shop"', 'entity = "shop', "line 6: this is not TOML"),
        ("from_minor = 100000", "", "line 49: 'gold' needs from_minor or above_minor"),
        ("give = 1", "give = 3501", "line 43: `give` is more than the books can hold"),
        (
            'kind = "per_amount"\nunit = "points"\ngive = 1\nper_minor = "7/2"',
            'kind = "percent"\nunit = "points"\npercent = "100001"',
            "line 43: `percent` is more than the books can hold",
        ),
        (
            'kind = "per_amount"\nunit = "points"\ngive = 1\nper_minor = "7/2"',
            'kind = "per_piece"\nunit = "points"\ngive = 1000001',
            "line 43: `give` is more than the books can hold",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(good: str, bad: str, message: str) -> None:
    assert SMALL.count(good) == 1
    assert any(fault.startswith(message) for fault in faults(SMALL.replace(good, bad)))


def test_what_only_unicode_calls_the_end_of_a_line_shifts_no_line() -> None:
    odd = SMALL.replace("Corner shop", "Corner\x85shop\u2028").replace("give = 1", "give = 0")
    assert faults(odd) == ["line 43: `give`: expected int >= 1"]


def test_the_most_that_may_be_given_may_be_given() -> None:
    (rule,) = read_terms(SMALL.replace("give = 1", "give = 3500")).earn
    assert isinstance(rule, PerAmount)
    assert rule.give == 3500


def test_a_mistake_in_the_second_card_is_found_there() -> None:
    second = SMALL.replace(
        "[[unit]]", '[[card]]\nclause = "1"\nnam = "b"\ntext.en = "B."\n\n[[unit]]'
    )
    assert faults(second) == [
        "line 32: `name` is missing in [card]",
        "line 34: the key `nam` is unknown: 'nam'; did you mean 'name'?",
    ]


def test_what_a_new_version_drops_must_be_mapped() -> None:
    later = SMALL.replace("2020-01-01", "2021-01-01").replace('name = "gold"', 'name = "silver"')
    with pytest.raises(TermsFaulty, match="the tier `gold` of 2020-01-01 is gone"):
        Programme([read_terms(SMALL), read_terms(later)])
    mapped = later + (
        '\n[[transition]]\nclause = "3"\nwhat = "tier"\nold = "gold"\nnew = "silver"\n'
        'text.en = "Gold becomes silver."\n'
    )
    assert len(Programme([read_terms(SMALL), read_terms(mapped)]).versions) == 2


# --- text gone wrong -----------------------------------------------------------------------

VALUES = (
    "5", "-1", "0", "true", "[]", "{}", "[[1]]", "[{ a = 1 }]", '""', '"x"', '["x"]', "1.5", "nan",
    "1e400", "inf", "2020-01-01", "10:00:00", "2020-01-01T00:00:00Z", "{ en = 1 }", "9" * 5000,
    '"""\n', "[" * 3000, '"7/0"', '"\\u0000"',
)  # fmt: skip


def mutated(text: str, mutations: list[tuple[int, int, str]]) -> str:
    lines = text.splitlines()
    for what, where, value in mutations:
        at = where % len(lines)
        line = lines[at]
        match what:
            case 0 if "=" in line:
                lines[at] = f"{line.split('=')[0]}= {value}"
            case 1:
                lines[at : at + 1] = []
            case 2:
                lines.insert(at, lines[where % 7])
            case 3:
                lines[at] = line.replace("[[", "[").replace("]]", "]")
            case 4:
                lines[at] = line[: where % (len(line) + 1)] + value + line[where % 11 :]
            case _:
                lines[at] = f"[{line}]" if "=" not in line else line.replace("a", "e", 1)
        lines = lines or [""]
    return "\n".join(lines)


mutations = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 500), st.sampled_from(VALUES)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=120)
@given(mutations)
def test_terms_gone_wrong_are_faulty_and_never_crash(
    mutations: list[tuple[int, int, str]],
) -> None:
    with suppress(TermsFaulty):
        read_terms(mutated(SMALL, mutations))


@settings(max_examples=120)
@given(mutations)
def test_a_case_gone_wrong_is_faulty_and_never_crashes(
    mutations: list[tuple[int, int, str]],
) -> None:
    with suppress(CaseFaulty):
        read_case(mutated(CASE, mutations))


@pytest.mark.parametrize("amount", ["1.234", "nan", "inf", "1e400"])
def test_an_amount_of_a_case_is_whole_in_minor_units(amount: str) -> None:
    with pytest.raises(CaseFaulty, match="line 10: `amount`: an amount has at most two decimals"):
        read_case(CASE.replace("{ amount = 12.50", f"{{ amount = {amount}"))


@pytest.mark.parametrize("year", ["1899", "2200", "9999"])
def test_a_step_of_a_case_lies_within_the_years_of_programmes(year: str) -> None:
    with pytest.raises(CaseFaulty, match=f"line 9: `at`: no programme runs in {year}"):
        read_case(CASE.replace("2020-02-02T12:00:00", f"{year}-12-31T23:59:59-23:59"))


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "programmes").glob("*/*.toml")), ids=str
)
def test_the_programmes_beside_the_code_can_be_read(file: Path) -> None:
    assert read_terms(file.read_text(encoding="utf-8")).programme == file.parent.name
