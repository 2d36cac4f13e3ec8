"""What a till tells about a sale or a return. These types are also the wire format."""

from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
"""An identifier of a till's making: ASCII, no separators, so that keys join without doubt."""

Minor = Annotated[int, Meta(ge=-(10**12), le=10**12)]
"""Money in minor units (cents, øre, stotinki)."""

YEAR = "(?!000[0-2]|999[89])[0-9]{4}"
"""A pattern for the years that `check_year` lets pass."""

Instant = Annotated[
    datetime,
    Meta(
        tz=True,
        description="With its offset from UTC; no leap second, no year before 3 or after 9997",
        extra_json_schema={
            "pattern": f"^{YEAR}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-5][0-9]"
            r"(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$"
        },
    ),
]
"""A moment with its offset from UTC."""

LINES_MAX = 5_000
"""Lines on one receipt. The largest known trade limit is 1,000."""


def check_year(at: datetime) -> None:
    """Check that an instant can be told in every zone; msgspec names the document in its error.

    :raises ValueError: within two years of the ends that a calendar here knows
    """
    if not date.min.year + 1 < at.year < date.max.year - 1:
        raise ValueError(f"The year {at.year} is outside of every programme")


class Line(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One line: `amount_minor` is gross, after discounts; negative when taken back at once.

    `category` is a path from the general to the particular (`food/dairy`),
    `quantity_milli` thousandths of a piece, kilo or litre, `fee` the name of a
    programme's fee that this line charges (a fee is no purchase).
    """

    amount_minor: Minor
    category: Annotated[str, Meta(max_length=200)] = ""
    product: Annotated[str, Meta(max_length=64)] = ""
    quantity_milli: Minor = 1000
    own_brand: bool = False
    reduced: bool = False
    normal_price_minor: Minor | None = None
    vat_basis_points: Annotated[int, Meta(ge=0, le=10_000)] = 0
    fee: Annotated[str, Meta(max_length=64)] = ""


class Tender(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """How a part was paid; a `kind` that names a unit of the programme spends that unit.

    `hold` is the id of the hold that this payment captures.
    """

    kind: Name
    amount_minor: Minor
    hold: Annotated[str, Meta(max_length=64)] = ""


class SaleKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What identifies a receipt for ever, within its issuer; the till sends the business day."""

    store: Name
    till: Name
    business_day: date
    number: Name


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A sale: `card` was read, the `shown` cards were only shown (K-4.4)."""

    store: Name
    till: Name
    business_day: date
    number: Name
    at: Instant
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")]
    total_minor: Minor
    lines: Annotated[tuple[Line, ...], Meta(max_length=LINES_MAX)]
    tenders: Annotated[tuple[Tender, ...], Meta(max_length=50)] = ()
    card: Annotated[str, Meta(max_length=64)] = ""
    shown: Annotated[tuple[str, ...], Meta(max_length=10)] = ()
    proof: Annotated[str, Meta(max_length=64)] = ""
    training: bool = False

    def __post_init__(self) -> None:
        """Refuse what no clock shows."""
        check_year(self.at)


class ReturnLine(Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the sale's line (counted from 1) comes back, in minor units of what was paid."""

    line: Annotated[int, Meta(ge=1, le=LINES_MAX)]
    amount_minor: Annotated[int, Meta(ge=1, le=10**12)]


class Return(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Goods brought back: a receipt of its own that names the sale they came from."""

    store: Name
    till: Name
    business_day: date
    number: Name
    at: Instant
    sale: SaleKey
    lines: Annotated[tuple[ReturnLine, ...], Meta(min_length=1, max_length=LINES_MAX)]

    def __post_init__(self) -> None:
        """Refuse what no clock shows."""
        check_year(self.at)


def key_of(issuer: str, document: Receipt | Return | SaleKey) -> str:
    """Give a receipt's key as text; equal keys are the same receipt, whoever sends it."""
    return (
        f"{issuer}/{document.store}/{document.till}"
        f"/{document.business_day.isoformat()}/{document.number}"
    )


def fingerprint(document: Receipt | Return) -> bytes:
    """Give the SHA-256 of a document's content, the same however it was written down."""
    in_utc = msgspec.structs.replace(document, at=document.at.astimezone(UTC))
    return sha256(msgspec.json.encode(in_utc)).digest()


def first_difference(before: Receipt | Return, after: Receipt | Return) -> str:
    """Name the first field in which two documents of one key differ; empty if none does."""
    if type(before) is not type(after):
        return "kind"
    for field in before.__struct_fields__:
        if getattr(before, field) != getattr(after, field):
            return field
    return ""
