from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kantis.core.bookkeeping import Books
from kantis.core.periods import NEVER
from kantis.core.standing import Hold, LotKey, Standing, Transfer

TODAY = date(2020, 6, 15)
NOW = datetime(2020, 6, 15, 11, tzinfo=UTC)
LATER = datetime(2020, 6, 15, 12, tzinfo=UTC)
LONG_AGO = date(2020, 1, 1)
JULY = LotKey(date(2020, 7, 1), LONG_AGO, LONG_AGO)
AUGUST = LotKey(date(2020, 8, 1), LONG_AGO, LONG_AGO)
FOR_EVER = LotKey(NEVER, date.min, date.min)
NOT_YET = LotKey(date(2020, 7, 15), TODAY, date(2020, 6, 20))
KEYS = (JULY, NOT_YET, AUGUST, FOR_EVER)


class Account:
    """Books on an empty standing, with amounts of one unit."""

    def __init__(self, *lots: tuple[LotKey, int]) -> None:
        self.standing = Standing()
        self.transfers: list[Transfer] = []
        self.books = Books(self.standing, self.transfers)
        for key, amount in lots:
            self.earn(key, amount)

    def earn(self, key: LotKey, amount: int) -> None:
        self.books.add("earned", "X-1", "points", amount, key, entity="shop", on=TODAY)

    def spend(self, amount: int) -> None:
        self.books.spend("X-2", "points", amount, entity="shop", on=TODAY)

    def take_back(self, amount: int, *first: LotKey) -> None:
        self.books.remove(
            "taken-back", "X-1", "points", amount, entity="shop", on=TODAY, first=first
        )

    def hold(self, name: str, amount: int) -> None:
        self.books.hold(Hold(name, "points", NOW, LATER, ()), amount, on=TODAY)

    @property
    def lots(self) -> dict[LotKey, int]:
        return {lot.key: lot.amount for lot in self.standing.lots.get("points", ())}

    @property
    def pinned(self) -> dict[LotKey, int]:
        lots = self.standing.lots.get("points", ())
        return {lot.key: lot.pinned for lot in lots if lot.pinned}

    @property
    def debt(self) -> int:
        return self.standing.debts.get("points", 0)


def test_what_expires_first_is_spent_first() -> None:
    account = Account((FOR_EVER, 10), (AUGUST, 10), (JULY, 10))
    account.spend(15)
    assert account.lots == {AUGUST: 5, FOR_EVER: 10}


def test_what_cannot_be_used_yet_is_spent_and_held_last() -> None:
    account = Account((NOT_YET, 10), (AUGUST, 10))
    account.hold("h", 4)
    assert account.pinned == {AUGUST: 4}
    account.spend(6)
    assert account.lots == {NOT_YET: 10, AUGUST: 4}


def test_a_debt_is_paid_before_a_lot_is_filled() -> None:
    account = Account()
    account.take_back(30)
    account.earn(JULY, 20)
    assert (account.lots, account.debt) == ({}, 10)
    account.earn(JULY, 25)
    assert (account.lots, account.debt) == ({JULY: 15}, 0)


def test_a_lot_named_twice_is_taken_from_once() -> None:
    account = Account((FOR_EVER, 5), (AUGUST, 10))
    account.take_back(8, FOR_EVER, FOR_EVER)
    assert account.lots == {AUGUST: 7}


def test_what_is_held_is_taken_only_when_nothing_else_is_left() -> None:
    account = Account((JULY, 10), (AUGUST, 10))
    account.hold("first", 6)
    account.hold("second", 6)
    account.take_back(8)
    assert account.pinned == {JULY: 10, AUGUST: 2}
    account.take_back(9)
    assert [hold.amount for hold in account.standing.holds] == [3, 0]
    assert (account.pinned, account.debt) == ({JULY: 3}, 0)
    account.take_back(5)
    assert (account.lots, account.debt) == ({}, 2)


def test_a_capture_takes_the_lots_that_were_held_and_frees_the_rest() -> None:
    account = Account((AUGUST, 10))
    account.hold("h", 6)
    account.earn(JULY, 10)
    account.books.capture(account.standing.holds[0], "X-2", 4, entity="shop", on=TODAY)
    assert (account.lots, account.pinned) == ({JULY: 10, AUGUST: 6}, {})
    assert account.standing.holds == ()


def test_what_is_held_outlives_its_lot() -> None:
    account = Account((JULY, 10))
    account.hold("h", 6)
    (lot,) = account.standing.lots["points"]
    account.books.end_lot("expired", "X-3", "points", lot, entity="shop", on=JULY.valid_until)
    assert account.lots == {JULY: 6}


@pytest.mark.parametrize("key", KEYS)
def test_what_is_given_back_keeps_its_expiry(key: LotKey) -> None:
    account = Account((key, 10))
    account.spend(7)
    parts = [part for part in account.transfers[-1].parts if part.lot]
    back = [type(part)(part.lot, -part.amount) for part in parts]
    account.books.give_back("X-2", "points", back, fresh=key, entity="shop", on=TODAY)
    assert account.lots == {key: 10}


actions = st.tuples(st.integers(0, 4), st.integers(1, 50), st.sampled_from(KEYS))


@given(st.lists(actions, max_size=40))
def test_books_stay_sound_whatever_is_done(actions: list[tuple[int, int, LotKey]]) -> None:
    account = Account()
    for number, (what, amount, key) in enumerate(actions):
        match what:
            case 0:
                account.earn(key, amount)
            case 1:
                account.spend(amount)
            case 2:
                account.take_back(amount, key, key)
            case 3:
                account.hold(str(number), amount)
            case 4 if account.standing.holds:
                account.books.release(account.standing.holds[amount % len(account.standing.holds)])
            case _:
                pass
        lots, debt = account.lots, account.debt
        assert all(amount > 0 for amount in lots.values())
        assert not (lots and debt)
        assert sum(lots.values()) - debt == sum(one.amount for one in account.transfers)
        held = sum(hold.amount for hold in account.standing.holds)
        assert sum(account.pinned.values()) == held
