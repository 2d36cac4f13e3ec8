"""The standing of an account: all that the rules may look at, and what a decision says."""

from datetime import date, datetime

from msgspec import Struct, field

from kantis.core.periods import NEVER


class LotKey(Struct, frozen=True, array_like=True, order=True, gc=False):
    """What tells lots of one unit apart: usable from `valid_from` until before `valid_until`.

    The order is the order of spending: first to expire first, then first earned.
    """

    valid_until: date
    earned_on: date
    valid_from: date


class Lot(Struct, frozen=True, array_like=True, gc=False):
    """What is left of what was earned on one day; `pinned` of it is held for a payment."""

    key: LotKey
    amount: int
    pinned: int = 0


class Part(Struct, frozen=True, array_like=True, gc=False):
    """A movement's part: into (+) or out of (−) one lot, or off (+) or onto (−) the debt."""

    lot: LotKey | None
    amount: int


class Hold(Struct, frozen=True, gc=False):
    """An amount set aside for a payment until `until_at`, pinned in the lots named."""

    hold_id: str
    unit: str
    held_at: datetime
    until_at: datetime
    parts: tuple[Part, ...]

    @property
    def amount(self) -> int:
        """Give what is held, in the unit."""
        return sum(part.amount for part in self.parts)


EventOrder = tuple[datetime, int, str]
"""Business instant, rank of the kind, key: the total order of an account's events."""


class Standing(Struct):
    """Where an account stands after some event. `step` works on a copy and never on its argument.

    `through_on` is the last day whose calendar has been followed, `sums` the purchases by
    month (minor units), `next_tier` one that is reached but holds only from `next_tier_on`.
    """

    joined_at: datetime | None = None
    left_at: datetime | None = None
    through_on: date = date.min
    last: EventOrder | None = None
    statuses: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    sums: dict[int, int] = field(default_factory=dict)
    tier: str = ""
    tier_until: date = NEVER
    next_tier: str = ""
    next_tier_on: date = NEVER
    lots: dict[str, list[Lot]] = field(default_factory=dict)
    debts: dict[str, int] = field(default_factory=dict)
    holds: tuple[Hold, ...] = ()
    fees_charged: tuple[str, ...] = ()
    is_opened: bool = False

    def copy(self) -> "Standing":
        """Give a copy that shares nothing mutable with this one."""
        return Standing(
            self.joined_at,
            self.left_at,
            self.through_on,
            self.last,
            self.statuses,
            self.roles,
            dict(self.sums),
            self.tier,
            self.tier_until,
            self.next_tier,
            self.next_tier_on,
            {unit: list(lots) for unit, lots in self.lots.items()},
            dict(self.debts),
            self.holds,
            self.fees_charged,
            self.is_opened,
        )

    def balance(self, unit: str) -> int:
        """Give what the account has of a unit, lots that cannot be used yet included, less debt."""
        lots = self.lots.get(unit, ())
        return sum([lot.amount for lot in lots]) - self.debts.get(unit, 0)

    def usable(self, unit: str, on: date) -> int:
        """Give what can be spent of a unit on a day: in valid lots and not held."""
        return sum(
            [lot.amount - lot.pinned for lot in self.lots.get(unit, ()) if lot.key.valid_from <= on]
        )


def month_begun(before: Standing, after: Standing) -> date | None:
    """Give the first day of the month that an account has come into, None if it is in the same.

    `before` is then where it stood after all that happened before that month.
    """
    was, now = before.through_on, after.through_on
    if before.last is None or (was.month == now.month and was.year == now.year):
        return None
    return now.replace(day=1)


class Earned(Struct, frozen=True, omit_defaults=True, gc=False):
    """What one earning block gave for a receipt; `rule` is its place among the terms' blocks."""

    clause: str
    unit: str
    amount: int
    base: int
    rule: int


class Reason(Struct, frozen=True, omit_defaults=True, gc=False):
    """Why something was given or not: a stable code, the clause, and what it is about."""

    code: str
    clause: str = ""
    about: str = ""


class TierChange(Struct, frozen=True, omit_defaults=True, gc=False):
    """A change of tier, from local midnight of the day `on`; `until` is exclusive."""

    old: str
    new: str
    on: date
    clause: str
    until: date = NEVER


class Transfer(Struct, frozen=True, omit_defaults=True, gc=False):
    """A balanced movement: `parts` on the member's side, their sum with the other sign on `book`.

    `entity` is the legal entity whose book it is, `value_on` the day for which it counts.
    """

    kind: str
    clause: str
    unit: str
    book: str
    entity: str
    value_on: date
    parts: tuple[Part, ...]

    @property
    def amount(self) -> int:
        """Give what the member gains (+) or loses (−)."""
        return sum([part.amount for part in self.parts])


class FeeDue(Struct, frozen=True, omit_defaults=True, gc=False):
    """A fee that this receipt charges; `amount_minor` is with VAT."""

    name: str
    clause: str
    amount_minor: int
    vat_percent: int


class CardsDue(Struct, frozen=True, omit_defaults=True, gc=False):
    """Cards to be ordered because a tier was reached."""

    card: str
    role: str
    count: int
    clause: str
    on: date


class Decision(Struct, omit_defaults=True):
    """What `step` decided about one event; `calendar` is what came before it that was due.

    `terms` is the version (its first day) that judged the event.
    """

    terms: date
    tier: str = ""
    earned: list[Earned] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    tier_changes: list[TierChange] = field(default_factory=list)
    reviews: list[tuple[date, str]] = field(default_factory=list)
    fees: list[FeeDue] = field(default_factory=list)
    cards: list[CardsDue] = field(default_factory=list)
    calendar: "Decision | None" = None

    def total_earned(self, unit: str) -> int:
        """Give what the event earned of a unit."""
        return sum(earned.amount for earned in self.earned if earned.unit == unit)

    def parts(self) -> "tuple[Decision, ...]":
        """Give what the calendar decided, if anything was due, then what the event did."""
        return (self,) if self.calendar is None else (self.calendar, self)
