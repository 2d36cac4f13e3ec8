"""Cases: what a retailer expects of the terms, as steps in local time. `docs/cases.md` explains."""

import tomllib
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal

from msgspec import Struct, field
from msgspec.structs import fields

from kantis.core.toml_text import UNREADABLE, Path, Reader, TextFaulty, locate, syntax_fault

YEARS = range(1900, 2200)
"""When a step can happen: far from the ends of the calendar."""

Amount = Decimal | int
"""Money in major units (`12.50`), points as whole numbers."""


class CaseFaulty(TextFaulty):
    """A case file with faults."""


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a receipt; `amount` is what was paid for it."""

    amount: Amount
    category: str = ""
    product: str = ""
    pieces: int = 1
    own_brand: bool = False
    reduced: bool = False
    fee: str = ""


class Join(Struct, frozen=True, forbid_unknown_fields=True):
    """An application, and the kind of the first card; the card is called as the account."""

    card: str
    born_on: date | None = None
    organization_number: str = ""
    trade: str = ""


class Issue(Struct, frozen=True, forbid_unknown_fields=True):
    """A card of a kind for somebody in a role; later steps call it `name`."""

    name: str
    card: str
    role: str = "main"


class Replace(Struct, frozen=True, forbid_unknown_fields=True):
    """A lost card `old`, blocked and replaced by `new`."""

    old: str
    new: str


class Pool(Struct, frozen=True, forbid_unknown_fields=True):
    """From now on the card collects on another account."""

    card: str
    onto: str


class OpenLot(Struct, frozen=True, forbid_unknown_fields=True):
    """A balance brought along."""

    unit: str
    amount: Amount
    earned_on: date
    valid_until: date | None = None


class Open(Struct, frozen=True, forbid_unknown_fields=True):
    """What an older system knew of the account."""

    lots: tuple[OpenLot, ...] = ()
    tier: str = ""
    tier_until: date | None = None
    sums: dict[str, Amount] = {}
    fees_charged: tuple[str, ...] = ()


class Buy(Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt. Without `items` it is one line of `amount`; `card` is the account's first card.

    An empty `card` means that none was read. `receipt` names it for later steps.
    """

    amount: Amount = 0
    items: tuple[Item, ...] = ()
    paid_with: dict[str, Amount] = {}
    card: str | None = None
    receipt: str = ""
    chain: str = "food"
    proof: str = ""
    hold: str = ""
    currency: str = ""
    training: bool = False


class BackLine(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a line, counted from 1, comes back."""

    line: int
    amount: Amount


class Back(Struct, frozen=True, forbid_unknown_fields=True):
    """Goods brought back; without `lines` all that is left of the sale."""

    receipt: str
    lines: tuple[BackLine, ...] = ()


class HoldStep(Struct, frozen=True, forbid_unknown_fields=True):
    """An amount set aside for a payment; later steps call it `name`."""

    name: str
    unit: str
    amount: Amount
    proof: str = ""


class Leave(Struct, frozen=True, forbid_unknown_fields=True):
    """The membership ends."""

    cause: str


class Suspend(Struct, frozen=True, forbid_unknown_fields=True):
    """Redemption is suspended on the days from `start` to before `end`."""

    start: date
    end: date


class Expect(Struct, frozen=True, forbid_unknown_fields=True):
    """What must have come of the step. What is not named is not looked at."""

    earned: dict[str, Amount] | None = None
    by: dict[str, Amount] | None = None
    lines: tuple[Amount, ...] | None = None
    tier: str | None = None
    tier_until: date | None = None
    balance: dict[str, Amount] | None = None
    usable: dict[str, Amount] | None = None
    debt: dict[str, Amount] | None = None
    expires: dict[str, Amount] | None = None
    refused: str = ""
    reason: str | None = None
    fee: Amount | None = None
    orders: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that happens at a local time (or at an instant, if `at` has an offset)."""

    at: datetime
    account: str = "member"
    join: Join | None = None
    issue: Issue | None = None
    activate: str = ""
    block: str = ""
    replace: Replace | None = None
    pool: Pool | None = None
    open: Open | None = None
    grant: str = ""
    withdraw: str = ""
    buy: Buy | None = None
    back: Back | None = field(default=None, name="return")
    hold: HoldStep | None = None
    release: str = ""
    claim: str = ""
    leave: Leave | None = None
    suspend: Suspend | None = None
    look: bool = False
    why: str = ""
    approved_by: str = ""
    expect: Expect = Expect()

    @property
    def action(self) -> str:
        """Name what the step does."""
        done = [name for name in ACTIONS if getattr(self, name)]
        return done[0] if len(done) == 1 else ""


ACTIONS = (
    "join",
    "issue",
    "activate",
    "block",
    "replace",
    "pool",
    "open",
    "grant",
    "withdraw",
    "buy",
    "back",
    "hold",
    "release",
    "claim",
    "leave",
    "suspend",
    "look",
)


class Case(Struct, frozen=True, forbid_unknown_fields=True):
    """A story with what must come of it, and the clauses that it shows."""

    title: str
    clauses: tuple[str, ...]
    step: tuple[Step, ...]


def read_case(text: str) -> Case:
    """Read a case.

    :raises CaseFaulty: with every fault found
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except UNREADABLE as error:
        raise CaseFaulty([syntax_fault(error)]) from None
    reader = Reader(locate(text))
    case: Case | None = reader.struct(Case, document, ())
    if case is not None:
        for index, step in enumerate(case.step):
            if not step.action:
                words = [f.encode_name for f in fields(Step) if f.name in ACTIONS]
                reader.fault(("step", index), f"a step does one of: {', '.join(words)}")
            if not YEARS.start <= step.at.year < YEARS.stop:
                reader.fault(("step", index, "at"), f"`at`: no programme runs in {step.at.year}")
    for path in _odd_amounts(document, ()):
        reader.fault(path, f"`{path[-1]}`: an amount has at most two decimals")
    if case is None or reader.faults:
        raise CaseFaulty(reader.faults)
    return case


def _odd_amounts(value: object, path: Path) -> Iterator[Path]:
    """Find amounts that are not whole in minor units: they would be cut off unseen."""
    if isinstance(value, Decimal):
        if not (value.is_finite() and value.as_tuple().exponent in {0, -1, -2}):
            yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _odd_amounts(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _odd_amounts(item, (*path, index))
