from datetime import date, datetime
from pathlib import Path

import pytest

from kantis.core.events import AnyEvent, Joined, Left, Opened, Returned, RoleTaken, Sale
from kantis.core.periods import NEVER
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, key_of
from kantis.core.replay import Fold
from kantis.core.standing import TierChange
from kantis.core.terms_text import read_terms


class Member:
    """One account; days and times are local."""

    def __init__(self, programme: str, joined: str) -> None:
        file = Path(__file__).parents[2] / "programmes" / programme / "2016-01-01.toml"
        self.programme = Programme([read_terms(file.read_text(encoding="utf-8"))])
        self.fold = Fold(self.programme)
        self.changes: list[TierChange] = []
        self.orders: list[str] = []
        self.sales: dict[str, Receipt] = {}
        self.take(Joined(at=self.local(joined), key="join"))

    def local(self, moment: str) -> datetime:
        return datetime.fromisoformat(moment).replace(tzinfo=self.programme.zone)

    def take(self, event: AnyEvent) -> None:
        for decision in self.fold.take(event).parts():
            self.changes += decision.tier_changes
            self.orders += [f"{due.card} {due.role}" for due in decision.cards]

    def buys(
        self, moment: str, amount_minor: int, chain: str = "food", *, training: bool = False
    ) -> None:
        at = self.local(moment)
        receipt = Receipt(
            store="s1",
            till="1",
            business_day=at.date(),
            number="1",
            at=at,
            currency=self.programme.versions[0].terms.currency,
            total_minor=amount_minor,
            lines=(Line(amount_minor),),
            training=training,
        )
        self.sales[moment] = receipt
        self.take(Sale(at=at, key=key_of("t", receipt), receipt=receipt, chain=chain))

    def brings_back(self, moment: str, amount_minor: int, *, bought: str) -> None:
        at = self.local(moment)
        sale = SaleKey("s1", "1", self.sales[bought].business_day, "1")
        document = Return(
            store="s1",
            till="2",
            business_day=at.date(),
            number="1",
            at=at,
            sale=sale,
            lines=(ReturnLine(1, amount_minor),),
        )
        self.take(Returned(at=at, key=key_of("t", document), document=document))

    def tier_on(self, day: str) -> str:
        self.changes += self.fold.follow_calendar(through=date.fromisoformat(day)).tier_changes
        return self.fold.standing.tier


# --- levels of a calendar month ------------------------------------------------------------


def test_a_level_holds_from_the_next_day_and_falls_only_on_the_first_of_a_month() -> None:
    member = Member("alltid", "2024-02-28T12:00")
    member.buys("2024-03-05T10:00", 2_600_000)
    assert member.fold.standing.tier == "level-1"
    assert member.tier_on("2024-03-06") == "level-3"
    assert member.tier_on("2024-04-30") == "level-3"
    assert member.tier_on("2024-05-01") == "level-1"


def test_a_level_reached_on_the_last_day_begins_with_the_month() -> None:
    member = Member("alltid", "2024-02-28T12:00")
    member.buys("2024-03-31T23:59:59", 800_000)
    assert member.tier_on("2024-04-01") == "level-2"
    assert member.tier_on("2024-05-01") == "level-1"


def test_a_return_never_raises_a_level() -> None:
    member = Member("alltid", "2024-02-28T12:00")
    member.buys("2024-03-05T10:00", 2_600_000)
    member.brings_back("2024-05-02T10:00", 10_000, bought="2024-03-05T10:00")
    assert member.tier_on("2024-05-31") == "level-1"


def test_a_return_lowers_a_level_only_on_the_first() -> None:
    member = Member("alltid", "2024-02-28T12:00")
    member.buys("2024-03-05T10:00", 2_600_000)
    member.brings_back("2024-03-07T10:00", 2_000_000, bought="2024-03-05T10:00")
    assert member.tier_on("2024-03-31") == "level-3"
    assert member.tier_on("2024-04-01") == "level-1"


def test_a_month_of_returned_bottles_leaves_the_lowest_level() -> None:
    member = Member("alltid", "2024-02-28T12:00")
    member.buys("2024-03-05T10:00", -4_000)
    assert member.tier_on("2024-04-01") == "level-1"


# --- status found by a review --------------------------------------------------------------


def test_what_was_bought_in_training_mode_lowers_nothing_when_it_comes_back() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 100_000, training=True)
    member.buys("2016-04-11T12:00", 650_001)
    member.brings_back("2016-04-12T12:00", 100_000, bought="2016-04-10T12:00")
    assert member.tier_on("2016-05-01") == "best"


def test_exactly_the_limit_is_not_above_it() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 650_000)
    assert member.tier_on("2016-05-01") == ""
    member.buys("2016-05-10T12:00", 1)
    assert member.tier_on("2016-06-01") == "best"


def test_purchases_with_partners_do_not_count() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 700_000, chain="partner")
    assert member.tier_on("2016-05-01") == ""


def test_a_status_ends_on_its_day_although_nothing_was_bought_for_long() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 700_000)
    member.tier_on("2018-02-10")
    first, last = date(2016, 5, 1), date(2018, 1, 1)
    assert member.changes == [
        TierChange("", "best", first, "K-3.4", last),
        TierChange("best", "", last, "K-3.4"),
    ]


def test_a_status_is_renewed_by_the_review_of_december_only() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 700_000)
    member.buys("2017-03-10T12:00", 700_000)
    assert member.tier_on("2017-12-31") == "best"
    assert member.fold.standing.tier_until == date(2018, 1, 1)
    assert member.tier_on("2018-01-01") == "best"
    assert member.fold.standing.tier_until == date(2019, 1, 1)


def test_months_leave_the_window_after_a_year_also_those_below_nothing() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", -100_000)
    member.buys("2016-05-10T12:00", 700_000)
    assert member.tier_on("2017-05-20") == "best"
    assert [change.on for change in member.changes] == [date(2017, 5, 1)]


def test_black_cards_are_ordered_on_rising_for_the_roles_that_somebody_has() -> None:
    alone = Member("kplussa", "2016-03-01T09:00")
    alone.buys("2016-04-10T12:00", 700_000)
    alone.buys("2016-05-10T12:00", 1)
    assert alone.orders == ["black main"]
    family = Member("kplussa", "2016-03-01T09:00")
    family.take(RoleTaken(at=family.local("2016-03-02T09:00"), key="role", role="parallel"))
    family.buys("2016-04-10T12:00", 700_000)
    family.buys("2016-05-10T12:00", 1)
    family.buys("2018-02-10T12:00", 1)
    assert family.orders == ["black main", "black parallel"]


@pytest.mark.parametrize("until", ["2017-06-15", "2017-07-01"])
def test_a_status_brought_along_ends_on_the_first_after_its_end(until: str) -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    ends = date.fromisoformat(until)
    opened = Opened(at=member.local("2016-03-02T09:00"), key="o", tier="best", tier_until=ends)
    member.take(opened)
    assert member.tier_on("2017-06-30") == "best"
    assert member.tier_on("2019-01-01") == ""
    assert member.changes[-1].on == date(2017, 7, 1)


def test_who_joins_anew_begins_anew() -> None:
    member = Member("kplussa", "2016-03-01T09:00")
    member.buys("2016-04-10T12:00", 700_000)
    member.take(Left(at=member.local("2016-05-02T09:00"), key="left", cause="member"))
    member.take(Joined(at=member.local("2018-06-01T09:00"), key="again"))
    assert (member.fold.standing.tier, member.fold.standing.tier_until) == ("", NEVER)
    member.changes.clear()
    assert member.tier_on("2018-09-01") == ""
    assert member.changes == []
