"""What Schemathesis has to know of us: loaded by it, not by pytest.

It sees only the OpenAPI document, which cannot say that lines add up to their total, or which
cards there are. So most of its well-formed requests are given what makes them real; the others
stay as drawn. Its malformed requests stay as they are.
"""

import json
import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response, SerializationContext

NDJSON = "application/x-ndjson"
SHOP = json.loads(os.environ["KANTIS_FUZZED_SHOP"])
"""`store`, `currency`, `unit`, `card_kind`, `cards`, `accounts` and `organization` of the shop."""

chance = random.Random(os.environ["KANTIS_SEED"])
CARDS, CARDS_TO_LOSE = SHOP["cards"][:8], SHOP["cards"][8:]
ACCOUNTS, ACCOUNTS_TO_LOSE = SHOP["accounts"][:8], SHOP["accounts"][8:]
"""Most stay as they are, so that tills go on."""

LOSING = ("/block", "/replace", "/leave")

newcomers: list[int] = []
holds: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
"""With their cards: some to capture, some to let go."""

sales: list[dict[str, Any]] = []


@schemathesis.serializer(NDJSON)
def write_lines(_: SerializationContext, value: object) -> bytes:
    """Write one document as the only line."""
    return json.dumps(value).encode()


@schemathesis.deserializer(NDJSON)
def read_lines(_: object, response: Response) -> object:
    """Read the answer to the only line."""
    (line,) = response.content.splitlines()
    return json.loads(line)


@schemathesis.check
def well_formed_is_not_called_malformed(
    _: CheckContext, response: Response, case: Case[Any]
) -> None:
    """A request that the document allows may be refused by the terms, never for its form.

    This is what `positive_data_acceptance` leaves open, because a refusal is a 422 too.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code != 422:
        return
    said = response.json()
    # The only bond between an address and its body; no schema can express it.
    if case.operation.path.endswith("/capture") and said["fields"] == {"path": "$.tenders"}:
        return
    assert said["code"] != "malformed", said["detail"]


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Make most well-formed requests real."""
    del context, kwargs
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    case.body = whole(case.body)
    if chance.random() < 0.8:
        make_real(case)


@schemathesis.hook
def after_call(context: HookContext, case: Case[Any], response: Response) -> None:
    """Remember what can be captured, released or brought back, and who has just joined."""
    del context
    if response.status_code != 200:
        return
    sent: Any = case.body
    path = case.operation.path
    if path == "/v1/members":
        newcomers.append(response.json()["account_id"])
    elif path == "/v1/holds":
        chance.choice(holds).append((response.json()["hold_id"], sent["card"]))
    elif path == "/v1/receipts" and sent["lines"] and sent["lines"][0]["amount_minor"] > 0:
        sales.append(sent)


def whole(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Write 1.0 as 1: JSON Schema calls it an integer, and we refuse amounts that were floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(one) for one in value]
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    return value


def make_real(case: Case[Any]) -> None:
    """Put in what the shop knows."""
    path, body = case.operation.path, case.body
    addressed = case.path_parameters or {}
    is_losing = path.endswith(LOSING)
    some = holds[path.endswith("/release")]
    hold_id, card = chance.choice(some) if some else ("0" * 32, CARDS[0])
    if "number" in addressed:
        addressed["number"] = chance.choice(CARDS_TO_LOSE if is_losing else CARDS)
    if "account_id" in addressed:
        addressed["account_id"] = str(chance.choice(ACCOUNTS_TO_LOSE if is_losing else ACCOUNTS))
    if path.endswith("/opening") and newcomers:
        addressed["account_id"] = str(newcomers.pop())
    if "hold_id" in addressed:
        addressed["hold_id"] = hold_id
    if not isinstance(body, dict):
        return
    match path:
        case "/v1/quotes" | "/v1/receipts" | "/v1/receipts/batch":
            make_receipt(body)
        case "/v1/holds/{hold_id}/capture":
            make_receipt(body)
            body["card"] = card
            paid = {"kind": SHOP["unit"], "amount_minor": 1, "hold": hold_id}
            body["tenders"], body["lines"], body["total_minor"] = [paid], [{"amount_minor": 1}], 1
        case "/v1/returns":
            make_return(body)
        case "/v1/holds":
            body |= {"card": chance.choice(CARDS), "unit": SHOP["unit"], "proof": "staff"}
            body["amount"] = chance.randint(1, 3)
            body.pop("at", None)
        case "/v1/holds/{hold_id}/release":
            body["card"] = card
            body.pop("at", None)
        case _:
            make_errand(path, body)


def make_errand(path: str, body: dict[str, Any]) -> None:
    """Put in what a desk knows."""
    body.pop("card_number", None)
    body.pop("number", None)
    known: dict[str, dict[str, Any]] = {
        "/v1/members": {
            "applicant": {"organization_number": SHOP["organization"], "born_on": "1980-05-01"},
            "card_kind": SHOP["card_kind"],
        },
        "/v1/cards": {
            "account_id": chance.choice(ACCOUNTS),
            "kind": SHOP["card_kind"],
            "role": SHOP["role"],
        },
        "/v1/cards/{number}/pool": {"onto": chance.choice(ACCOUNTS)},
        "/v1/members/{account_id}/status": {"status": SHOP["status"]},
        "/v1/members/{account_id}/leave": {"cause": "member"},
        "/v1/members/{account_id}/opening": {"tier": "", "approved_by": "Kari"},
    }
    body |= known.get(path, {})
    for lot in body.get("lots", ()):
        lot["unit"] = SHOP["unit"]


def make_receipt(body: dict[str, Any]) -> None:
    """Let lines add up, paid in cash, of just now."""
    body |= {
        "store": SHOP["store"],
        "currency": SHOP["currency"],
        "at": just_now().isoformat(),
        "card": chance.choice([*CARDS, ""]),
        "total_minor": sum(line["amount_minor"] for line in body["lines"]),
    }
    body.pop("tenders", None)
    body["number"] = f"{chance.getrandbits(64)}"


def make_return(body: dict[str, Any]) -> None:
    """Bring something of an earlier sale back."""
    body |= {"store": SHOP["store"], "at": datetime.now(UTC).isoformat()}
    body["number"] = f"{chance.getrandbits(64)}"
    if sales:
        sale = chance.choice(sales)
        body["sale"] = {name: sale[name] for name in ("store", "till", "business_day", "number")}
        body["lines"] = [{"line": 1, "amount_minor": 1}]


def just_now() -> datetime:
    return datetime.now(UTC) - timedelta(seconds=chance.randint(0, 3600))
