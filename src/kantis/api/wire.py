"""Bodies as they come over the wire: strict JSON, and the types that only the API has."""

import json
import re
from collections.abc import Generator
from datetime import date
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from litestar._openapi.schema_generation import SchemaCreator  # a parameter's type, no more
from litestar.dto import AbstractDTO, DTOConfig
from litestar.dto._backend import DTOBackend  # likewise
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition
from msgspec import Meta, Struct

from kantis.api.problems import Fault, Malformed, NotJson
from kantis.core.admission import Applicant
from kantis.core.receipt import Instant, Minor, Receipt
from kantis.core.refusals import AccountUnknown, CardUnknown, HoldUnknown

T = TypeVar("T")

BODY_BYTES_MAX = 1024 * 1024
BATCH_LINES_MAX = 1_000
NDJSON = "application/x-ndjson"

CardNumber = Annotated[str, Meta(pattern=r"^[0-9]{4,40}\Z")]
Word = Annotated[str, Meta(max_length=64)]
Amount = Annotated[int, Meta(ge=1, le=10**12)]
AccountId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
EarnedDay = Annotated[date, Meta(extra_json_schema={"pattern": "^(19|20|21)[0-9]{2}-"})]
"""A day on which an older system can have given something."""


class HoldAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Set `amount` whole units aside; `proof` is what the terms accept, such as `staff`.

    `at` is the till's own time: by one clock, a hold comes before the receipt that captures it.
    """

    card: CardNumber
    unit: Word
    amount: Amount
    proof: Word = ""
    at: Instant | None = None


class ReleaseAsked(Struct, frozen=True, forbid_unknown_fields=True):
    """Let a hold on the account of a card go; `at` is the till's own time."""

    card: CardNumber
    at: Instant | None = None


class Why(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why something is done, and who else approved it, where the terms ask for it."""

    reason: Annotated[str, Meta(max_length=500)] = ""
    approved_by: Annotated[str, Meta(max_length=100)] = ""


class EnrolAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An application, and the card handed over; without a number Kantis draws one."""

    applicant: Applicant = msgspec.field(default_factory=Applicant)
    card_kind: Word
    card_number: CardNumber | None = None


class IssueAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further card of an account; without a number Kantis draws one."""

    account_id: AccountId
    kind: Word
    role: Word
    number: CardNumber | None = None


class ReplaceAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of the new card; without one Kantis draws it."""

    number: CardNumber | None = None


class PoolAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The account that the card collects on from now on."""

    onto: AccountId


class StatusAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A status that begins (`granted`) or ends."""

    status: Word
    granted: bool = True


class LeaveAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cause for which the membership ends, by its name in the terms."""

    cause: Word


class LotBrought(Struct, frozen=True, forbid_unknown_fields=True):
    """A lot of an older system; without `valid_until` the terms reckon it."""

    unit: Word
    amount: Amount
    earned_on: EarnedDay
    valid_until: date | None = None

    def __post_init__(self) -> None:
        """Refuse a day from which the terms' months could lead out of the calendar."""
        if not 1900 <= self.earned_on.year < 2200:  # noqa: PLR2004 - no programme is so old
            raise ValueError(f"The year {self.earned_on.year} is outside of every programme")


class WaitingDecided(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is decided on something that waits for staff."""

    key: Annotated[str, Meta(max_length=300)]


class OpeningAsked(Why, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an older system knew; `sums_minor` are purchases by month (`2017-06`)."""

    lots: Annotated[tuple[LotBrought, ...], Meta(max_length=1000)] = ()
    tier: Word = ""
    tier_until: date | None = None
    sums_minor: Annotated[
        dict[Annotated[str, Meta(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])\Z")], Minor],
        Meta(max_length=600),
    ] = {}
    fees_charged: Annotated[tuple[Word, ...], Meta(max_length=20)] = ()


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped U+0000, which PostgreSQL keeps in no text; a raw one is no JSON."""

_ESCAPED_NUL = rb"\u0000"
"""Without these six bytes there is none, which is found out a hundred times faster."""


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read one document, strictly: no guessed types, unknown fields or fields named twice.

    :raises NotJson:
    :raises Malformed: with the path of the field and what is wrong with it
    """
    try:
        document = decoder.decode(body)
    except msgspec.ValidationError as error:
        wrong, _, path = str(error).partition(" - at ")
        raise Malformed(f"{wrong}.", path=path.strip("`") or "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"{error}.") from error
    if _ESCAPED_NUL in body and _NUL.search(body):
        raise Malformed("A string contains the character U+0000.", path="$")
    if not _is_plain(body):
        _read_once(body.decode())
    return document


_NOT_PLAIN = (b"\\", b'" ', b"\n", b"\r", b"\t")
"""Escapes, and blanks between a name and its colon."""


def _is_plain(body: bytes) -> bool:
    """Tell at once of most documents that no name occurs twice in one object.

    Of two of a name the reader drops the first: there are fewer then in what is written anew.
    Where nothing is escaped and each name has its colon beside it, nothing else makes a difference.
    """
    if any(each in body for each in _NOT_PLAIN):
        return False
    anew = msgspec.json.encode(msgspec.json.decode(body))
    return body.count(b'":') == anew.count(b'":')


def _refuse_twice(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"The field `{twice}` is there twice.", path=f"$..{twice}")


_read_once = json.JSONDecoder(object_pairs_hook=_refuse_twice).decode
"""A second reading, only for names that occur twice: it takes longer than the first.

Which of two amounts counts would differ from reader to reader."""


class Strict(AbstractDTO[Any]):
    """Read the body of a handler's `data` with `decode`, whatever its content type says.

    Litestar's own reading goes through Python objects and turns "1" into 1.
    """

    config = DTOConfig()
    _decoders: ClassVar[dict[str, msgspec.json.Decoder[Any]]] = {}

    @classmethod
    def create_for_field_definition(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,
        backend_cls: type[DTOBackend] | None = None,
    ) -> None:
        """Prepare a decoder for a handler."""
        del backend_cls
        cls._decoders[handler_id] = msgspec.json.Decoder(field_definition.annotation)

    def decode_bytes(self, value: bytes) -> object:
        """Read a body."""
        return decode(self._decoders[self.asgi_connection.route_handler.handler_id], value)

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """Give the schema of the type itself."""
        del handler_id
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Never called: there is no transfer type besides the type itself."""
        raise NotImplementedError

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Never called, as above."""
        raise NotImplementedError


_receipt = msgspec.json.Decoder(Receipt)


class Lines(Strict):
    """Read a body of one receipt a line; a bad line becomes its fault, so that others are taken."""

    @classmethod
    def create_for_field_definition(
        cls,
        field_definition: FieldDefinition,
        handler_id: str,
        backend_cls: type[DTOBackend] | None = None,
    ) -> None:
        """Nothing to prepare: it is always receipts."""

    def decode_bytes(self, value: bytes) -> list[Receipt | Fault]:
        """Read a body; empty lines do not count.

        :raises Malformed: with more lines than `BATCH_LINES_MAX`
        """
        lines = [line for line in value.split(b"\n") if line.strip()]
        if len(lines) > BATCH_LINES_MAX:
            raise Malformed(f"{len(lines)} lines are more than {BATCH_LINES_MAX}.", path="$")
        return [self._line(line) for line in lines]

    @staticmethod
    def _line(line: bytes) -> Receipt | Fault:
        try:
            return decode(_receipt, line)
        except Fault as fault:
            return fault

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """Give the schema of one line."""
        del field_definition, handler_id
        line = FieldDefinition.from_annotation(Receipt)
        return schema_creator.for_field_definition(line)


# --- what stands in an address -------------------------------------------------------------


def card_in(address: str) -> str:
    """Give a card's number from an address.

    :raises CardUnknown: no card can have such a number
    """
    if not re.fullmatch(r"[0-9]{4,40}", address):
        raise CardUnknown(card=address)
    return address


def account_in(address: str) -> int:
    """Give an account's id from an address.

    :raises AccountUnknown: no account can have such an id
    """
    if not re.fullmatch(r"[0-9]{1,18}", address):
        raise AccountUnknown(account=address)
    return int(address)


def hold_in(address: str) -> str:
    """Give a hold's id from an address.

    :raises HoldUnknown: no hold can have such an id
    """
    if not re.fullmatch(r"[0-9a-f]{32}", address):
        raise HoldUnknown(hold=address)
    return address
