"""What holds for every history, whatever the terms: checked on random ones under the real terms."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kantis.core import tiers
from kantis.core.bookkeeping import BOOK_OF
from kantis.core.events import (
    AnyEvent,
    Held,
    Joined,
    Left,
    Opened,
    OpeningLot,
    Released,
    Returned,
    RoleTaken,
    Sale,
    StatusChanged,
    order_of,
    sale_key_of,
)
from kantis.core.periods import month_of
from kantis.core.programme import Programme
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender, key_of
from kantis.core.replay import Fold
from kantis.core.standing import Decision, LotKey, Standing, Transfer
from kantis.core.step import caught_up
from kantis.core.terms_text import read_terms

PROGRAMMES = {
    directory.name: Programme(
        read_terms(file.read_text(encoding="utf-8")) for file in sorted(directory.glob("*.toml"))
    )
    for directory in sorted((Path(__file__).parents[2] / "programmes").iterdir())
}
BEGIN = {"coop": datetime(2025, 11, 3, 9, tzinfo=UTC)}  # so that both of its versions judge
every_programme = pytest.mark.parametrize("name", PROGRAMMES)
a_few = settings(max_examples=15)

# --- random histories ----------------------------------------------------------------------
# A move is four small numbers, which Hypothesis draws quickly and shrinks well: hours since the
# move before, what happens, how much of it, and to which of the things that are there.

Move = tuple[int, int, int, int]
moves = st.lists(
    st.tuples(
        st.integers(0, 70 * 24), st.integers(0, 15), st.integers(0, 2_000_000), st.integers(0, 99)
    ),
    max_size=30,
)
GOODS = (
    "food",
    "food/dairy",
    "deposit",
    "alcohol/wine",
    "mineral-water",
    "travel/package",
    "tobacco",
)
CHAINS = ("food", "builders", "partner")


class History:
    """Turns moves into events, in their total order; nothing in it can be refused as nonsense."""

    def __init__(self, name: str, moves: Iterable[Move], *, one_sided: bool = False) -> None:
        self.programme = PROGRAMMES[name]
        self.terms = self.programme.versions[0].terms
        self.units = [unit.name for unit in self.terms.unit]
        self.one_sided = one_sided
        self.at = BEGIN.get(name, datetime(2016, 5, 3, 9, tzinfo=UTC))
        self.sales: list[Sale] = []
        self.left_of: dict[str, dict[int, int]] = {}
        self.holds: list[str] = []
        self.events: list[AnyEvent] = [Joined(at=self.at, key="t/0000")]
        for hours, what, amount, which in moves:
            self.at += timedelta(hours=hours)
            self.events += list(self._happen(what, amount, which))
        self.events.sort(key=order_of)

    def _happen(self, what: int, amount: int, which: int) -> Iterator[AnyEvent]:
        at, key = self.at, f"t/{len(self.events):04d}"
        match what:
            case 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7:
                yield self.sale(amount, which)
            case 8 | 9 | 10:
                yield from self.back(amount, which)
            case 11:
                self.holds.append(key)
                until_at, unit = at + timedelta(hours=which), self.units[-1]
                held = amount // 100
                yield Held(at=at, key=key, hold_id=key, unit=unit, amount=held, until_at=until_at)
            case 12 if self.holds:
                yield Released(at=at, key=key, hold_id=self.holds[which % len(self.holds)])
            case 13 if self.terms.status:
                status, granted = self.terms.status[0].name, which % 2 == 0
                yield StatusChanged(at=at, key=key, status=status, granted=granted)
            case 14:
                yield RoleTaken(at=at, key=key, role=self.terms.membership.roles[-1])
            case 15 if which % 4 == 0:
                yield Left(at=at, key=key, cause="member")
                self.at += timedelta(days=which)
                yield Joined(at=self.at, key=f"{key}-again")

    def sale(self, amount: int, which: int) -> Sale:
        day = self.programme.day(self.at)
        lines = [
            Line(amount // (n + 1), GOODS[(which + n) % len(GOODS)], own_brand=(which + n) % 3 == 0)
            for n in range(1 + which % 4)
        ]
        if not self.one_sided:
            lines.append(Line(-(amount // 7), GOODS[which % len(GOODS)]))
            lines += [Line(62_500, fee=fee.name) for fee in self.terms.fee if which % 5 == 0]
        total = sum(line.amount_minor for line in lines)
        tenders = [Tender("cash", total)]
        if which % 3 == 0 and total > 0:
            hold = self.holds[-1] if self.holds and which % 2 else ""
            by_unit = min(total, 1 + amount // 50)
            tenders = [
                Tender(self.units[-1], by_unit, hold),
                Tender("mastercard", total - by_unit),
            ]
        receipt = Receipt(
            store="s1",
            till="1",
            business_day=day,
            number=f"n{len(self.events)}",
            at=self.at,
            currency=self.programme.on(day).terms.currency,
            total_minor=total,
            lines=tuple(lines),
            tenders=tuple(tenders),
            training=which == 99,
        )
        key = key_of("t", receipt)
        sale = Sale(at=self.at, key=key, receipt=receipt, chain=CHAINS[which % len(CHAINS)])
        self.sales.append(sale)
        self.left_of[key] = {
            number: line.amount_minor
            for number, line in enumerate(lines, start=1)
            if line.amount_minor > 0
        }
        return sale

    def back(self, amount: int, which: int) -> list[AnyEvent]:
        if not self.sales:
            return []
        sale = self.sales[which % len(self.sales)]
        left = {n: minor for n, minor in self.left_of[sale.key].items() if minor}
        lines = [ReturnLine(n, 1 + amount % minor) for n, minor in left.items() if amount % (n + 1)]
        return [self.returned(sale, lines)] if lines else []

    def returned(self, sale: Sale, lines: list[ReturnLine]) -> Returned:
        for back in lines:
            self.left_of[sale.key][back.line] -= back.amount_minor
        document = Return(
            store="s1",
            till="9",
            business_day=self.programme.day(self.at),
            number=f"b{len(self.events)}",
            at=self.at,
            sale=SaleKey("s1", "1", sale.receipt.business_day, sale.receipt.number),
            lines=tuple(lines),
        )
        return Returned(at=self.at, key=key_of("t", document), document=document)


def folded(programme: Programme, events: Iterable[AnyEvent]) -> tuple[Fold, list[Decision]]:
    fold = Fold(programme)
    return fold, [fold.take(event) for event in events]


def transfers_of(decisions: Iterable[Decision]) -> list[Transfer]:
    parts = [part for decision in decisions for part in decision.parts()]
    return [transfer for part in parts for transfer in part.transfers]


def at_the_end(fold: Fold, at: datetime) -> Standing:
    """Give the standing long enough after the last event for lots to expire."""
    return caught_up(fold.programme, fold.standing, at=at + timedelta(days=800))[0]


# --- one story -----------------------------------------------------------------------------


def test_what_was_held_expires_on_the_day_after_the_hold_ended() -> None:
    at = datetime(2016, 5, 3, 9, tzinfo=UTC)
    lot = OpeningLot("plussa-money", 500, date(2016, 1, 1), date(2016, 5, 5))
    until_at = at + timedelta(days=4)
    fold, _ = folded(
        PROGRAMMES["kplussa"],
        [
            Joined(at=at, key="t/1"),
            Opened(at=at, key="t/2", lots=(lot,)),
            Held(at=at, key="t/3", hold_id="h", unit="plussa-money", amount=300, until_at=until_at),
        ],
    )
    decision = fold.follow_calendar(through=date(2017, 1, 1))
    expired = [(one.kind, one.amount, one.value_on) for one in decision.transfers]
    assert expired == [
        ("expired", -200, date(2016, 5, 5)),
        ("expired", -300, date(2016, 5, 8)),
    ]


# --- laws ----------------------------------------------------------------------------------


@every_programme
@a_few
@given(moves=moves)
def test_a_step_never_changes_its_argument(name: str, moves: list[Move]) -> None:
    history = History(name, moves)
    fold = Fold(history.programme)
    for event in history.events:
        standing, before = fold.standing, msgspec.msgpack.encode(fold.standing)
        fold.take(event)
        assert msgspec.msgpack.encode(standing) == before


@every_programme
@a_few
@given(moves=moves)
def test_lots_debts_and_holds_are_sound_after_every_event(name: str, moves: list[Move]) -> None:
    history = History(name, moves)
    fold = Fold(history.programme)
    for event in history.events:
        fold.take(event)
        check_soundness(fold.standing)


def check_soundness(standing: Standing) -> None:
    for unit, lots in standing.lots.items():
        assert all(0 <= lot.pinned <= lot.amount > 0 for lot in lots)
        keys = [lot.key for lot in lots]
        assert keys == sorted(set(keys))
        assert not (lots and unit in standing.debts)
    assert all(debt > 0 for debt in standing.debts.values())
    held: Counter[tuple[str, LotKey | None]] = Counter()
    for hold in standing.holds:
        for part in hold.parts:
            held[hold.unit, part.lot] += part.amount
    pinned = {
        (unit, lot.key): lot.pinned
        for unit, lots in standing.lots.items()
        for lot in lots
        if lot.pinned
    }
    assert +held == pinned


@every_programme
@a_few
@given(moves=moves)
def test_every_lot_and_debt_is_the_sum_of_its_transfers(name: str, moves: list[Move]) -> None:
    history = History(name, moves)
    fold, decisions = folded(history.programme, history.events)
    parts: Counter[tuple[str, LotKey | None]] = Counter()
    for transfer in transfers_of(decisions):
        assert transfer.book == BOOK_OF[transfer.kind]
        assert transfer.entity
        for part in transfer.parts:
            parts[transfer.unit, part.lot] += part.amount
    standing = fold.standing
    there: dict[tuple[str, LotKey | None], int] = {
        (unit, lot.key): lot.amount for unit, lots in standing.lots.items() for lot in lots
    }
    there |= {(unit, None): -debt for unit, debt in standing.debts.items()}
    assert {where: amount for where, amount in parts.items() if amount} == there


@every_programme
@a_few
@given(moves=moves)
def test_what_was_earned_is_what_was_issued(name: str, moves: list[Move]) -> None:
    history = History(name, moves)
    for decision in folded(history.programme, history.events)[1]:
        earned = [(one.clause, one.unit, one.amount) for one in decision.earned]
        booked = [(t.clause, t.unit, t.amount) for t in decision.transfers if t.kind == "earned"]
        assert earned == booked


@every_programme
@a_few
@given(moves=moves)
def test_purchase_sums_are_those_of_the_receipts(name: str, moves: list[Move]) -> None:
    history = History(name, moves)
    programme, terms = history.programme, history.terms
    if terms.ladder is None:
        return
    fold, _ = folded(programme, history.events)
    earliest = month_of(programme.day(history.at)) - tiers.months_looked_at(terms)
    expected: Counter[int] = Counter()
    for event in history.events:
        if not isinstance(event, Sale | Returned):
            continue
        past = fold.sales[sale_key_of(event) if isinstance(event, Returned) else event.key]
        sale, reasons = past.sale, {reason.code for reason in past.decision.reasons}
        if reasons & {"training", "membership-ended"}:
            continue
        if terms.counting and sale.chain in terms.counting.stores.not_chain:
            continue
        fees = {n for n, line in enumerate(sale.receipt.lines, start=1) if line.fee}
        month = month_of(programme.day(sale.at))
        if isinstance(event, Returned):
            back = event.document.lines
            expected[month] -= sum(one.amount_minor for one in back if one.line not in fees)
        else:
            lines = enumerate(sale.receipt.lines, start=1)
            expected[month] += sum(line.amount_minor for n, line in lines if n not in fees)
    months = {month for month in {*expected, *fold.standing.sums} if month >= earliest}
    assert {m: fold.standing.sums.get(m, 0) for m in months} == {m: expected[m] for m in months}


@every_programme
@a_few
@given(moves=moves, looks=st.lists(st.integers(0, 30 * 24), max_size=8), data=st.data())
def test_looking_at_an_account_in_between_changes_nothing(
    name: str, moves: list[Move], looks: list[int], data: st.DataObject
) -> None:
    history = History(name, moves)
    plain, decisions = folded(history.programme, history.events)
    looked = Fold(history.programme)
    seen: list[Transfer] = []
    at = history.events[0].at
    for event in history.events:
        while looks and at + timedelta(hours=looks[-1]) < event.at:
            at += timedelta(hours=looks.pop())
            looked.standing, decision = caught_up(history.programme, looked.standing, at=at)
            seen += decision.transfers
        at = event.at
        seen += transfers_of([looked.take(event)])
    later = history.at + timedelta(hours=data.draw(st.integers(0, 2 * 365 * 24)))
    looked.standing, decision = caught_up(history.programme, looked.standing, at=later)
    seen += decision.transfers
    end, last = caught_up(history.programme, plain.standing, at=history.at + timedelta(days=800))
    looked_end, last_looked = caught_up(
        history.programme, looked.standing, at=history.at + timedelta(days=800)
    )
    assert looked_end == end
    assert [*seen, *last_looked.transfers] == [*transfers_of(decisions), *last.transfers]


@every_programme
@a_few
@given(moves=moves, data=st.data())
def test_a_whole_return_in_parts_takes_back_exactly_what_the_sale_gave(
    name: str, moves: list[Move], data: st.DataObject
) -> None:
    sales_only = [(hours, what % 8, amount, which % 99) for hours, what, amount, which in moves]
    history = History(name, [*sales_only, (1, 0, 12_345, 3)], one_sided=True)
    sale = history.sales[data.draw(st.integers(0, len(history.sales) - 1))]
    fold, decisions = folded(history.programme, history.events)
    decision = decisions[history.events.index(sale)]
    back: list[Transfer] = []
    left = history.left_of[sale.key]
    while any(left.values()):
        history.at += timedelta(hours=data.draw(st.integers(0, 1000)))
        numbers = data.draw(st.lists(st.sampled_from([n for n in left if left[n]]), min_size=1))
        lines = []
        for number in dict.fromkeys(numbers):
            size = left[number]
            first = data.draw(st.integers(1, size))
            lines.append(ReturnLine(number, first))
            if first < size:
                lines.append(ReturnLine(number, size - first))
        history.events.append(history.returned(sale, lines))
        back += transfers_of([fold.take(history.events[-1])])
    assert gained(back, "taken-back") == -gained(decision.transfers, "earned")
    assert gained(back, "given-back") == -gained(decision.transfers, "redeemed")


def gained(transfers: Iterable[Transfer], kind: str) -> "Amounts":
    sums: dict[str, int] = {}
    for transfer in transfers:
        if transfer.kind == kind:
            sums[transfer.unit] = sums.get(transfer.unit, 0) + transfer.amount
    return Amounts(sums)


class Amounts(dict[str, int]):
    """Amounts by unit that can change their sign."""

    def __neg__(self) -> "Amounts":
        return Amounts({unit: -amount for unit, amount in self.items()})
