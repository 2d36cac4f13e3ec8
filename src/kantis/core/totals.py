"""What many decisions and standings come to: the figures of a report."""

from datetime import date

from msgspec import Struct, field

from kantis.core.periods import ONE_DAY, month_label, month_of
from kantis.core.standing import Decision, Standing

Table = dict[str, dict[str, int]]


class Totals(Struct):
    """Counts over a programme. Amounts are in each unit, money in minor units; months `2017-06`.

    `earned` is by unit and clause, `moved` by kind of transfer and unit (what members gain is
    positive), `converted` by the month whose end it was. `reviewed` says how many accounts the
    review of a month found, `tiers` how many have each tier on the day after the month's end.
    `pending` can be spent later only.
    """

    receipts: int = 0
    lines: int = 0
    receipts_earning: int = 0
    accounts: int = 0
    earned: Table = field(default_factory=dict)
    moved: Table = field(default_factory=dict)
    converted: Table = field(default_factory=dict)
    reviewed: dict[str, int] = field(default_factory=dict)
    tier_moves: Table = field(default_factory=dict)
    fees_minor: int = 0
    cards_ordered: int = 0
    outstanding: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    debts: dict[str, int] = field(default_factory=dict)

    def count_sale(self, lines: int, *, earns: bool) -> None:
        """Count a receipt."""
        self.receipts += 1
        self.lines += lines
        self.receipts_earning += earns

    def count(self, decision: Decision) -> None:
        """Count what a decision moved: units, tiers, fees, cards."""
        for one in decision.transfers:
            self.count_moved(one.kind, one.unit, one.clause, one.value_on, one.amount)
        for change in decision.tier_changes:
            self.count_tier_change(change.old, change.new, change.on, 1)
        for month_on, _ in decision.reviews:
            label = month_label(month_of(month_on))
            self.reviewed[label] = self.reviewed.get(label, 0) + 1
        for fee in decision.fees:
            self.fees_minor += fee.amount_minor
        for due in decision.cards:
            self.cards_ordered += due.count

    def count_moved(self, kind: str, unit: str, clause: str, value_on: date, amount: int) -> None:
        """Count a movement."""
        _add(self.moved, kind, unit, amount)
        if kind == "earned":
            _add(self.earned, unit, clause, amount)
        elif kind == "converted":
            _add(self.converted, month_label(month_of(value_on) - 1), unit, amount)

    def count_tier_change(self, old: str, new: str, on: date, times: int) -> None:
        """Count accounts that change their tier on a day: on the 1st, it is the month before's."""
        month = month_label(month_of(on - ONE_DAY))
        _add(self.tier_moves, month, old, -times)
        _add(self.tier_moves, month, new, times)

    def count_account(self, standing: Standing, *, on: date) -> None:
        """Count what an account has on a day, and owes."""
        self.accounts += 1
        for unit, lots in standing.lots.items():
            for lot in lots:
                where = self.outstanding if lot.key.valid_from <= on else self.pending
                where[unit] = where.get(unit, 0) + lot.amount
        for unit, debt in standing.debts.items():
            self.debts[unit] = self.debts.get(unit, 0) + debt

    @property
    def tiers(self) -> Table:
        """Give how many accounts have each tier on the day after each month's end."""
        have: dict[str, int] = {}
        by_month = {}
        for month in sorted(self.tier_moves):
            for tier, moved in self.tier_moves[month].items():
                have[tier] = have.get(tier, 0) + moved
            by_month[month] = {tier: have[tier] for tier in sorted(have) if tier and have[tier]}
        return by_month


def _add(table: Table, row: str, column: str, amount: int) -> None:
    columns = table.setdefault(row, {})
    columns[column] = columns.get(column, 0) + amount
