"""The public year of receipts comes to the totals that were worked out apart, in SQL."""

from datetime import date
from functools import cache
from pathlib import Path

import pytest

from kantis.core.replay import replay
from kantis.core.totals import Totals
from kantis.folder import find_folder
from kantis.history.receipts import (
    History,
    HistoryMissing,
    Reading,
    demo_folder,
    histories,
    read_reading,
)

ROOT = Path(__file__).parents[2]


@cache
def year(programme: str) -> Totals:
    folder = find_folder(ROOT / "programmes" / programme)
    rules = folder.programme()
    until = date(2018, 1, 1)
    everybody = histories(History(demo_folder()), rules, read_reading(folder.path), until=until)
    return replay(rules, everybody, until=until)


# One process folds a programme once for all of its tests.
@pytest.mark.xdist_group("kplussa")
class TestKPlussa:
    def test_every_receipt_is_there(self) -> None:
        assert (year("kplussa").receipts, year("kplussa").lines) == (155_848, 1_469_307)
        assert year("kplussa").accounts == 2_469

    def test_base_points_come_to_the_known_total(self) -> None:
        assert year("kplussa").earned == {"points": {"K-1.1": 4_316_446}}
        assert year("kplussa").receipts_earning == 150_979

    def test_reviews_find_the_known_numbers_of_best_customers(self) -> None:
        reviewed = year("kplussa").reviewed
        assert [reviewed[month] for month in ("2017-06", "2017-09", "2017-12")] == [5, 36, 85]

    def test_what_was_earned_is_converted_or_still_there(self) -> None:
        moved = year("kplussa").moved
        points = year("kplussa").outstanding["points"]
        assert moved["earned"]["points"] + moved["converted"]["points"] == points
        assert moved["converted"]["points"] == -2 * moved["converted"]["plussa-money"]


@pytest.mark.xdist_group("coop")
def test_the_cooperative_chains_points_come_to_the_known_total() -> None:
    assert year("coop").earned == {"points": {"C-1": 11_616_922}}


@pytest.mark.xdist_group("alltid")
def test_the_cash_and_carry_charges_each_member_its_fee_once_and_gives_bonus_by_level() -> None:
    totals = year("alltid")
    assert totals.fees_minor == 2_469 * 62_500
    assert set(totals.earned["bonus"]) == {"S-4", "S-5"}
    assert sum(totals.tiers["2017-12"].values()) == 2_469
    assert totals.outstanding["bonus"] == sum(totals.earned["bonus"].values())


def test_a_folder_without_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "transactions.parquet").touch()
    with pytest.raises(HistoryMissing, match=r"no products\.parquet in"):
        History(tmp_path)


def test_reading_twice_gives_the_same_receipts_to_the_order_of_their_lines() -> None:
    history = History(demo_folder(), every=10)
    once, again = ([one.receipt("EUR") for one in history.by_time(Reading())] for _ in range(2))
    assert once == again


def test_what_comes_after_the_last_day_is_not_folded() -> None:
    folder = find_folder(ROOT / "programmes" / "kplussa")
    rules, june = folder.programme(), date(2017, 6, 30)
    some = histories(History(demo_folder(), every=50), rules, Reading(), until=june)
    totals = replay(rules, some, until=june)
    assert 0 < totals.receipts < 3_340
    assert max(totals.reviewed, default="") <= "2017-05"
