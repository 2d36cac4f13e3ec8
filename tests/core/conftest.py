"""Fresh examples in every run, also where CI is set, and a seed that repeats a failed one."""

import secrets
from collections.abc import Generator

import pytest
from hypothesis import is_hypothesis_test, seed, settings

# Where CI is set, Hypothesis loads a profile of its own that draws the same examples every time.
settings.register_profile(
    "kantis", max_examples=60, deadline=None, derandomize=False, database=None, print_blob=True
)
settings.load_profile("kantis")

FRESH_SEED = secrets.randbits(32)


def seed_of(config: pytest.Config) -> str:
    asked_for: str | None = config.getoption("--hypothesis-seed")
    return asked_for or str(FRESH_SEED)


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
        number = seed_of(item.config)
        seed(int(number) if number.isdigit() else number)(item.obj)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
        report.sections.append(
            ("Hypothesis seed", f"repeat with --hypothesis-seed={seed_of(item.config)}")
        )
    return report
