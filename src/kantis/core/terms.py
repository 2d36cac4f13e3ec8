"""The terms of a programme, as frozen data: what a terms file says, nothing more.

Every block names its `clause` and carries a `text` per language, so that the published
conditions can be rendered from the file. Amounts are minor units unless a name says otherwise.
`kantis.core.terms_text` reads these types from TOML; `docs/terms.md` explains them to retailers.
"""

from datetime import date
from typing import Annotated, Literal

from msgspec import Meta, Struct

from kantis.core.numbers import ONE, Ratio, Rounding, scale

Text = dict[str, str]
"""A text per language code."""

Identifier = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,39}\Z")]
Positive = Annotated[int, Meta(ge=1, le=10**12)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Months = Annotated[int, Meta(ge=1, le=1_200)]


class Block(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One clause of the terms. `also` names further clauses that the same block keeps."""

    clause: Annotated[str, Meta(min_length=1, max_length=20)]
    also: tuple[str, ...] = ()
    text: Text = {}


# --- selectors: data, not an expression language -------------------------------------------


class Lines(Struct, frozen=True, forbid_unknown_fields=True):
    """Which lines of a receipt. An empty field asks nothing; a category takes in those below."""

    category: tuple[str, ...] = ()
    not_category: tuple[str, ...] = ()
    product: tuple[str, ...] = ()
    own_brand: bool | None = None
    reduced: bool | None = None


class Stores(Struct, frozen=True, forbid_unknown_fields=True):
    """Which stores, by the chain that they belong to."""

    chain: tuple[str, ...] = ()
    not_chain: tuple[str, ...] = ()


# --- who, and with what --------------------------------------------------------------------


class Membership(Block, frozen=True, kw_only=True):
    """Who may join. `organization_number` names its format, country first (`no.orgnr`)."""

    account: Literal["person", "household", "business"]
    roles: Annotated[tuple[Identifier, ...], Meta(min_length=1)]
    minimum_age_years: Annotated[int, Meta(ge=0, le=150)] = 0
    organization_number: str = ""
    not_trades: tuple[str, ...] = ()


class Status(Block, frozen=True, kw_only=True):
    """A standing that staff grant from a moment on, such as membership of a cooperative."""

    name: Identifier


class Card(Block, frozen=True, kw_only=True):
    """A kind of card. Not activated in the store, it is active `activation_hours` after issue."""

    name: Identifier
    activation_hours: Annotated[int, Meta(ge=0, le=8_784)] = 0


class Pooling(Block, frozen=True, kw_only=True):
    """Whether cards of other people may collect on one account."""

    allowed: bool


class Claims(Block, frozen=True, kw_only=True):
    """Whether a purchase without a card may be claimed afterwards."""

    allowed: bool


class Lateness(Block, frozen=True, kw_only=True):
    """How many days a receipt or return may take to come; an older one waits for staff."""

    days: Annotated[int, Meta(ge=1, le=3_660)]


class Fee(Block, frozen=True, kw_only=True):
    """A fee that the first purchase charges, once."""

    name: Identifier
    net_minor: Positive
    vat_percent: Annotated[int, Meta(ge=0, le=100)]

    @property
    def gross_minor(self) -> int:
        """Give the fee with VAT, rounded half up."""
        return scale(self.net_minor, Ratio(100 + self.vat_percent, 100), Rounding.HALF_UP)


# --- units: what is earned and spent -------------------------------------------------------


class Unit(Block, frozen=True, kw_only=True):
    """What is earned: points, or money in minor units of the programme's currency."""

    name: Identifier
    kind: Literal["points", "money"]
    label: Text = {}


class Expiry(Block, frozen=True, kw_only=True):
    """How long a lot of a unit stays valid, from the first day on which it can be used."""

    unit: Identifier
    months: Months


class Conversion(Block, frozen=True, kw_only=True):
    """At each month's end every full `each` of `unit` becomes `gives` of `to`.

    What is left over stays. The new lot can be used from `credited_day` of the next month.
    """

    unit: Identifier
    to: Identifier
    each: Positive
    gives: Positive
    credited_day: Annotated[int, Meta(ge=1, le=28)] = 1


class Redemption(Block, frozen=True, kw_only=True):
    """How a unit pays for goods: what proves the spender and how long a hold lasts.

    `paid_part_counts_for` says what the part that is paid with it still does: `tier`
    builds the tier only, `all` earns too.
    """

    unit: Identifier
    proofs: Annotated[tuple[Identifier, ...], Meta(min_length=1)]
    hold_seconds: Annotated[int, Meta(ge=1, le=2_678_400)]
    paid_part_counts_for: Literal["tier", "all"]


# --- earning -------------------------------------------------------------------------------


class Exclusion(Block, frozen=True, kw_only=True):
    """Lines that earn nothing. They still count for the tier."""

    lines: Lines


class EarningStart(Block, frozen=True, kw_only=True):
    """When a new member's purchases begin to earn."""

    begins: Literal["at_once", "day_after_joining"]


class Earn(Block, frozen=True, kw_only=True, tag_field="kind"):
    """What every kind of earning may ask for. An empty field asks nothing.

    `paid_with` scales by that tender's share of what was paid; `first_on` and `last_on`
    are the first and the last local day.
    """

    unit: Identifier
    lines: Lines = Lines()
    stores: Stores = Stores()
    tier: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    not_status: tuple[str, ...] = ()
    paid_with: str = ""
    first_on: date = date.min
    last_on: date = date.max


class PerAmount(Earn, frozen=True, kw_only=True, tag="per_amount"):
    """`give` for each full `per_minor` of the selected lines, reckoned per receipt."""

    give: Positive
    per_minor: Ratio


class Percent(Earn, frozen=True, kw_only=True, tag="percent"):
    """A share of the selected lines' amount, rounded once per receipt."""

    percent: Ratio
    rounding: Rounding = Rounding.DOWN


class PerPiece(Earn, frozen=True, kw_only=True, tag="per_piece"):
    """`give` for each whole piece on the selected lines."""

    give: Positive


EarnRule = PerAmount | Percent | PerPiece


# --- tiers ---------------------------------------------------------------------------------


class Tier(Block, frozen=True, kw_only=True):
    """A level, lowest first in the file: from an amount on (`from_minor`) or above it."""

    name: Identifier
    label: Text = {}
    from_minor: Count | None = None
    above_minor: Count | None = None

    def is_reached_by(self, sum_minor: int) -> bool:
        """Tell whether purchases of this much reach the tier."""
        if self.above_minor is not None:
            return sum_minor > self.above_minor
        return self.from_minor is not None and sum_minor >= self.from_minor


class MonthLadder(Block, frozen=True, kw_only=True, tag_field="kind", tag="month"):
    """Tiers by the calendar month's purchases.

    A tier reached holds from the next day through that month and `months_kept` more;
    on the 1st it falls to the highest that one of those months' purchases earn.
    """

    months_kept: Annotated[int, Meta(ge=1, le=120)]


class ReviewLadder(Block, frozen=True, kw_only=True, tag_field="kind", tag="review"):
    """Tiers found by a review on each 1st over the `months` that ended the day before.

    Status found in year Y lasts to the end of year Y + `years_after`; it is renewed
    only by the review of `renewal_month`.
    """

    months: Months
    years_after: Annotated[int, Meta(ge=0, le=100)]
    renewal_month: Annotated[int, Meta(ge=1, le=12)]


Ladder = MonthLadder | ReviewLadder


class Counting(Block, frozen=True, kw_only=True):
    """Whose purchases count for the tier."""

    stores: Stores


class CardOrder(Block, frozen=True, kw_only=True):
    """Cards that are ordered when a tier is reached; a role counts if somebody has it."""

    tier: Identifier
    card: Identifier
    role: Identifier
    count: Annotated[int, Meta(ge=1, le=100)] = 1


# --- ends ----------------------------------------------------------------------------------


class Leaving(Block, frozen=True, kw_only=True):
    """A way in which a membership ends; unused balances lapse."""

    cause: Identifier
    reason_needed: bool = False


class Suspension(Block, frozen=True, kw_only=True):
    """That redemption can be suspended; nothing expires meanwhile and its length is added."""

    unit: Identifier


Operation = Literal["open_balances", "leave", "suspend", "grant_status", "accept_waiting"]
"""What can need a second person's approval."""


class Approval(Block, frozen=True, kw_only=True):
    """An operation that needs a second person's approval."""

    operation: Operation


class Transition(Block, frozen=True, kw_only=True):
    """What becomes of a tier or a unit that an earlier version had and this one drops."""

    what: Literal["tier", "unit"]
    old: Identifier
    new: Identifier
    ratio: Ratio = ONE


class Terms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole terms of a programme that are in force from the start of `valid_from`, local."""

    programme: Identifier
    valid_from: date
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
    zone: str
    languages: Annotated[tuple[str, ...], Meta(min_length=1)]
    entity: Identifier
    label: Text = {}
    membership: Membership
    pooling: Pooling
    claims: Claims
    lateness: Lateness | None = None
    status: tuple[Status, ...] = ()
    card: Annotated[tuple[Card, ...], Meta(min_length=1)]
    fee: tuple[Fee, ...] = ()
    unit: Annotated[tuple[Unit, ...], Meta(min_length=1)]
    expiry: tuple[Expiry, ...] = ()
    conversion: tuple[Conversion, ...] = ()
    redemption: tuple[Redemption, ...] = ()
    exclusion: tuple[Exclusion, ...] = ()
    earning_start: EarningStart | None = None
    earn: tuple[EarnRule, ...] = ()
    tier: tuple[Tier, ...] = ()
    ladder: Ladder | None = None
    counting: Counting | None = None
    card_order: tuple[CardOrder, ...] = ()
    leaving: tuple[Leaving, ...] = ()
    suspension: Suspension | None = None
    approval: tuple[Approval, ...] = ()
    transition: tuple[Transition, ...] = ()
