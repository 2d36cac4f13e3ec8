"""From what happened to balanced transfers: which lots they fill, spend, expire or give back.

Chart of accounts: on the member's side the lots of a unit and its debt; on the other
side, per legal entity, the books `issued`, `opened`, `spent`, `converted`, `expired`, `lapsed`.
"""

from collections.abc import Iterable, Sequence
from datetime import date

import msgspec

from kantis.core.periods import NEVER, add_months
from kantis.core.standing import Hold, Lot, LotKey, Part, Standing, Transfer
from kantis.core.terms import Terms

BOOK_OF = {
    "earned": "issued",
    "taken-back": "issued",
    "opened": "opened",
    "redeemed": "spent",
    "given-back": "spent",
    "converted": "converted",
    "expired": "expired",
    "lapsed": "lapsed",
}
"""The other side of each kind of transfer."""


def lot_key(terms: Terms, unit: str, *, earned_on: date, valid_from: date) -> LotKey:
    """Give the lot that a unit earned on a day goes into; all that never expires is one lot."""
    for expiry in terms.expiry:
        if expiry.unit == unit:
            return LotKey(add_months(valid_from, expiry.months), earned_on, valid_from)
    return LotKey(NEVER, date.min, valid_from if valid_from > earned_on else date.min)


class Books:
    """An account's lots and debts under way, with the transfers made so far.

    Works on a standing that `step` has copied; it keeps: no lot below zero, and lots and
    debt never both (earnings pay a debt first).
    """

    def __init__(self, standing: Standing, transfers: list[Transfer]) -> None:
        """Work on `standing` and append to `transfers`."""
        self.standing = standing
        self.transfers = transfers

    def add(
        self, kind: str, clause: str, unit: str, amount: int, key: LotKey, *, entity: str, on: date
    ) -> None:
        """Put an amount into a lot; what is owed is paid first."""
        debt = self.standing.debts.get(unit, 0)
        paid = min(debt, amount)
        parts = []
        if paid:
            self._owe(unit, debt - paid)
            parts.append(Part(None, paid))
        if amount > paid:
            self._put(unit, key, amount - paid)
            parts.append(Part(key, amount - paid))
        self._book(kind, clause, unit, parts, entity=entity, on=on)

    def remove(
        self,
        kind: str,
        clause: str,
        unit: str,
        amount: int,
        *,
        entity: str,
        on: date,
        first: Sequence[LotKey] = (),
    ) -> None:
        """Take an amount out: from the lots in `first`, then in order of expiry, then as debt.

        Lots that cannot be used yet come last. What is pinned by a hold stays where it is,
        unless nothing else is left: lots and debt are never there both.
        """
        parts: list[Part] = []
        missing = amount
        self._unpin(unit, amount - self._free(unit), on)
        lots = self.standing.lots.get(unit, [])
        preferred = [lot for key in dict.fromkeys(first) for lot in lots if lot.key == key]
        others = [lot for lot in lots if lot.key not in first]
        for lot in (*preferred, *_usable_first(others, on)):
            taken = min(missing, lot.amount - lot.pinned)
            if taken:
                self._put(unit, lot.key, -taken)
                parts.append(Part(lot.key, -taken))
                missing -= taken
        if missing:
            self._owe(unit, self.standing.debts.get(unit, 0) + missing)
            parts.append(Part(None, -missing))
        self._book(kind, clause, unit, parts, entity=entity, on=on)

    def give_back(
        self,
        clause: str,
        unit: str,
        parts: Iterable[Part],
        *,
        fresh: LotKey,
        entity: str,
        on: date,
    ) -> None:
        """Put amounts back into the lots they were spent from, with their old expiry.

        What was spent without a lot, as a debt, goes into the lot `fresh`.
        """
        for part in parts:
            key = part.lot or fresh
            self.add("given-back", clause, unit, part.amount, key, entity=entity, on=on)

    def spend(self, clause: str, unit: str, amount: int, *, entity: str, on: date) -> None:
        """Pay with a unit: first to expire first."""
        self.remove("redeemed", clause, unit, amount, entity=entity, on=on)

    def capture(self, hold: Hold, clause: str, amount: int, *, entity: str, on: date) -> None:
        """Pay from what a hold pinned, let the rest of it go."""
        self.release(hold)
        self.remove(
            "redeemed",
            clause,
            hold.unit,
            amount,
            entity=entity,
            on=on,
            first=[part.lot for part in hold.parts if part.lot is not None],
        )

    def hold(self, hold: Hold, amount: int, *, on: date) -> None:
        """Pin an amount for a hold, first to expire first. More than there is, is not pinned."""
        unit = hold.unit
        parts = []
        missing = amount
        for lot in _usable_first(self.standing.lots.get(unit, ()), on):
            pinned = min(missing, lot.amount - lot.pinned)
            if pinned:
                self._put(unit, lot.key, 0, pinned)
                parts.append(Part(lot.key, pinned))
                missing -= pinned
        self.standing.holds += (msgspec.structs.replace(hold, parts=tuple(parts)),)

    def release(self, hold: Hold) -> None:
        """Unpin what a hold set aside."""
        for part in hold.parts:
            if part.lot is not None:
                self._put(hold.unit, part.lot, 0, -part.amount)
        self.standing.holds = tuple(h for h in self.standing.holds if h is not hold)

    def end_lot(
        self, kind: str, clause: str, unit: str, lot: Lot, *, entity: str, on: date
    ) -> None:
        """Let what is not held of a lot expire or lapse."""
        gone = lot.amount - lot.pinned
        if gone:
            self._put(unit, lot.key, -gone)
            self._book(kind, clause, unit, [Part(lot.key, -gone)], entity=entity, on=on)

    def _book(
        self, kind: str, clause: str, unit: str, parts: list[Part], *, entity: str, on: date
    ) -> None:
        if parts:
            self.transfers.append(
                Transfer(kind, clause, unit, BOOK_OF[kind], entity, on, tuple(parts))
            )

    def _free(self, unit: str) -> int:
        return sum(lot.amount - lot.pinned for lot in self.standing.lots.get(unit, ()))

    def _unpin(self, unit: str, amount: int, on: date) -> None:
        """Shrink holds by what nothing else can cover, the one made last first."""
        made = [hold.hold_id for hold in self.standing.holds]
        for hold in reversed(self.standing.holds):
            if hold.unit == unit and amount > 0:
                self.release(hold)
                left = max(0, hold.amount - amount)
                self.hold(hold, left, on=on)
                amount -= hold.amount
        in_order = sorted(self.standing.holds, key=lambda hold: made.index(hold.hold_id))
        self.standing.holds = tuple(in_order)

    def _owe(self, unit: str, amount: int) -> None:
        if amount:
            self.standing.debts[unit] = amount
        else:
            self.standing.debts.pop(unit, None)

    def _put(self, unit: str, key: LotKey, amount: int, pinned: int = 0) -> None:
        """Move a lot's amount and what is pinned of it; an empty lot is gone.

        Searched from the end: what is earned now mostly expires last.
        """
        lots = self.standing.lots.setdefault(unit, [])
        index = len(lots)
        while index and key < lots[index - 1].key:
            index -= 1
        if not index or lots[index - 1].key != key:
            assert 0 <= pinned <= amount, "a new lot holds something"
            lots.insert(index, Lot(key, amount, pinned))
            return
        old = lots[index - 1]
        changed = Lot(key, old.amount + amount, old.pinned + pinned)
        assert 0 <= changed.pinned <= changed.amount, "a lot holds what is pinned of it"
        if changed.amount:
            lots[index - 1] = changed
        else:
            del lots[index - 1]


def _usable_first(lots: Iterable[Lot], on: date) -> list[Lot]:
    """Keep the order of expiry, but put what cannot be used on this day last."""
    return sorted(lots, key=lambda lot: lot.key.valid_from > on)
