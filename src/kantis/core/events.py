"""What can happen to an account. An event is a fact: `step` never refuses one.

Whether something may happen is asked before it does (`kantis.core.admission`,
`kantis.core.spending`); what has left the house enters the fold with its granted amount.
"""

from datetime import date, datetime

from msgspec import Struct

from kantis.core.receipt import Receipt, Return, key_of
from kantis.core.standing import Decision, EventOrder


class Event(Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """Something that happened `at` an instant; `key` is unique among the account's events."""

    at: datetime
    key: str


class Joined(Event, frozen=True, tag="joined"):
    """The membership began."""


class OpeningLot(Struct, frozen=True, forbid_unknown_fields=True):
    """A lot brought along from an older system; without `valid_until` the terms reckon it."""

    unit: str
    amount: int
    earned_on: date
    valid_until: date | None = None


class Opened(Event, frozen=True, tag="opened"):
    """Balances, tier and purchase sums (by `2017-06`) brought along from an older system."""

    lots: tuple[OpeningLot, ...] = ()
    tier: str = ""
    tier_until: date | None = None
    sums: dict[str, int] = {}
    fees_charged: tuple[str, ...] = ()


class RoleTaken(Event, frozen=True, tag="role-taken"):
    """Somebody got a card in this role of the account."""

    role: str


class StatusChanged(Event, frozen=True, tag="status-changed"):
    """A status such as cooperative member was granted, or ended."""

    status: str
    granted: bool


class Left(Event, frozen=True, tag="left"):
    """The membership ended."""

    cause: str


class Sale(Event, frozen=True, tag="sale"):
    """A receipt with the card read, in a store of `chain`, whose legal entity is `entity`."""

    receipt: Receipt
    chain: str = ""
    entity: str = ""


class PastSale(Struct, frozen=True):
    """What a return needs to know of its sale: the event, what was decided, what came back."""

    sale: Sale
    decision: Decision
    returned: dict[int, int]


class Returned(Event, frozen=True, tag="returned"):
    """Goods came back. `past` is looked up by whoever loads the event; it is not stored twice."""

    document: Return
    past: PastSale | None = None


class Held(Event, frozen=True, tag="held"):
    """An amount was set aside for a payment."""

    hold_id: str
    unit: str
    amount: int
    until_at: datetime


class Released(Event, frozen=True, tag="released"):
    """A hold was given up."""

    hold_id: str


AnyEvent = Joined | Opened | RoleTaken | StatusChanged | Left | Sale | Returned | Held | Released

_RANK: dict[type[Event], int] = {
    Joined: 1,
    Opened: 1,
    RoleTaken: 1,
    StatusChanged: 1,
    Left: 1,
    Sale: 2,
    Returned: 3,
    Held: 4,
    Released: 4,
}


def order_of(event: Event) -> EventOrder:
    """Give an event's place in the total order: instant, kind, key.

    The calendar comes before all of its day, then membership, sales, returns, redemptions.
    """
    return (event.at, _RANK[type(event)], event.key)


def sale_key_of(returned: Returned) -> str:
    """Give the key of the sale that a return takes back; both have the same issuer."""
    issuer, _, _ = returned.key.partition("/")
    return key_of(issuer, returned.document.sale)
