"""What spends needs what the terms accept as proof, in each programme and for each unit."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from kantis.core.terms import Redemption
from kantis.folder import find_folder

Json = dict[str, Any]
Make = Callable[..., Json]
Count = Callable[[], list[int]]

PROGRAMMES = Path(__file__).parents[2] / "programmes"
APPLICATIONS = {
    "alltid": ("customer-card", {"organization_number": "974760673"}),
    "kplussa": ("plussa", {"born_on": "1980-01-01"}),
    "coop": ("card", {"born_on": "1980-01-01"}),
}
TODAY = datetime.now(UTC).date()


def redemptions() -> Iterator[tuple[str, str, Redemption]]:
    """Give each unit that can be spent today, with its programme and currency."""
    for name in APPLICATIONS:
        terms = find_folder(PROGRAMMES / name).programme().on(TODAY).terms
        for redemption in terms.redemption:
            yield name, terms.currency, redemption


REDEMPTIONS = list(redemptions())
PROOFS = {proof for _, _, redemption in REDEMPTIONS for proof in redemption.proofs}

each = pytest.mark.parametrize(
    ("programme", "currency", "redemption"),
    REDEMPTIONS,
    ids=[f"{name}-{redemption.unit}" for name, _, redemption in REDEMPTIONS],
)


def test_units_that_can_be_spent_are_found() -> None:
    assert {(name, redemption.unit) for name, _, redemption in REDEMPTIONS} == {
        ("alltid", "bonus"),
        ("kplussa", "plussa-money"),
    }
    assert all(redemption.proofs and "" not in redemption.proofs for *_, redemption in REDEMPTIONS)


@pytest.fixture
def desk(base_url: str, programme: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer till-{programme}-north"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=30) as client:
        yield client


def send(client: httpx.Client, path: str, body: Json) -> httpx.Response:
    return client.post(path, json=body, headers={"Idempotency-Key": str(uuid4())})


@pytest.fixture
def rich_card(desk: httpx.Client, programme: str, redemption: Redemption) -> str:
    """Enrol somebody who has 5,000 to spend."""
    kind, applicant = APPLICATIONS[programme]
    enrolled = send(desk, "/v1/members", {"applicant": applicant, "card_kind": kind}).json()
    lot = {"unit": redemption.unit, "amount": 5_000, "earned_on": TODAY.isoformat()}
    path = f"/v1/members/{enrolled['account_id']}/opening"
    opened = send(desk, path, {"lots": [lot], "approved_by": "Kari"})
    assert opened.status_code == 200, opened.text
    return str(enrolled["card_number"])


@each
def test_a_bare_card_or_a_wrong_proof_spends_nothing(
    desk: httpx.Client,
    rich_card: str,
    a_receipt: Make,
    booked: Count,
    currency: str,
    redemption: Redemption,
) -> None:
    wrong = {"", "card", "STAFF", "none", redemption.unit, rich_card, *PROOFS} - {
        *redemption.proofs
    }
    assert len(wrong) >= 6
    before = booked()
    for proof in sorted(wrong):
        unit = redemption.unit
        held = send(
            desk, "/v1/holds", {"card": rich_card, "unit": unit, "amount": 100, "proof": proof}
        )
        receipt = a_receipt(
            10_000,
            card=rich_card,
            currency=currency,
            proof=proof,
            tenders=[
                {"kind": unit, "amount_minor": 100},
                {"kind": "cash", "amount_minor": 9_900},
            ],
        )
        for answer in (
            held,
            desk.post("/v1/quotes", json=receipt),
            desk.post("/v1/receipts", json=receipt),
        ):
            body = answer.json()
            assert (answer.status_code, body["code"]) == (403, "proof-missing"), proof
            assert body["fields"] == {"unit": unit, "accepted": list(redemption.proofs)}
    # Left out is as good as empty.
    bare = {"card": rich_card, "unit": redemption.unit, "amount": 100}
    assert send(desk, "/v1/holds", bare).json()["code"] == "proof-missing"
    assert booked() == before


@each
def test_each_accepted_proof_spends(
    desk: httpx.Client, rich_card: str, a_receipt: Make, currency: str, redemption: Redemption
) -> None:
    unit, left = redemption.unit, 5_000
    for proof in redemption.proofs:
        held = send(
            desk, "/v1/holds", {"card": rich_card, "unit": unit, "amount": 200, "proof": proof}
        )
        assert held.status_code == 200, held.text
        hold_id = held.json()["hold_id"]
        # The proof was given for the hold: its capture needs none.
        captured = desk.post(
            f"/v1/holds/{hold_id}/capture",
            json=a_receipt(
                200,
                card=rich_card,
                currency=currency,
                tenders=[{"kind": unit, "amount_minor": 200, "hold": hold_id}],
            ),
        )
        assert captured.json()["redeemed"] == {unit: 200}
        paid = desk.post(
            "/v1/receipts",
            json=a_receipt(
                100,
                card=rich_card,
                currency=currency,
                proof=proof,
                tenders=[{"kind": unit, "amount_minor": 100}],
            ),
        )
        left -= 300
        assert paid.json()["redeemed"] == {unit: 100}
        shown = desk.get(f"/v1/cards/{rich_card}").json()["balances"][unit]
        assert shown["usable"] == left
