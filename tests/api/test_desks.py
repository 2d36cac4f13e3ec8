"""What desks ask, over HTTP."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
from stdnum import ean

Json = dict[str, Any]
Make = Callable[..., Json]
Enrol = Callable[[], tuple[int, str]]
Count = Callable[[], list[int]]

ORGANIZATION = "974760673"
APPLICATION = {
    "applicant": {"organization_number": ORGANIZATION},
    "card_kind": "customer-card",
}
PERSON = {"applicant": {"born_on": "1990-01-01"}, "card_kind": "card"}


def send(client: httpx.Client, path: str, body: object, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid4())}
    return client.post(path, json=body, headers=headers)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_a_member_gets_a_drawn_card_number_once(till: httpx.Client, booked: Count) -> None:
    key = str(uuid4())
    first = send(till, "/v1/members", APPLICATION, key)
    assert first.status_code == 200
    number = first.json()["card_number"]
    assert len(number) == 13
    assert ean.is_valid(number)
    before = booked()
    assert send(till, "/v1/members", APPLICATION, key).content == first.content
    other = APPLICATION | {"card_number": "70000001"}
    assert code(send(till, "/v1/members", other, key)) == (409, "idempotency-key-reused")
    assert booked() == before
    assert send(till, "/v1/members", APPLICATION).json()["card_number"] != number


def test_two_stores_do_not_know_each_others_keys(
    till: httpx.Client, southern_till: httpx.Client
) -> None:
    key = str(uuid4())
    north = send(till, "/v1/members", APPLICATION, key).json()
    south = send(southern_till, "/v1/members", APPLICATION, key).json()
    assert north["account_id"] != south["account_id"]


def test_the_terms_say_who_may_join(
    till: httpx.Client, coop_till: httpx.Client, booked: Count
) -> None:
    before = booked()
    for client, applicant, kind in (
        (till, {"organization_number": "123456789"}, "customer-card"),
        (till, {"organization_number": "٩٧٤٧٦٠٦٧٣"}, "customer-card"),
        (till, {}, "customer-card"),
        (till, {"organization_number": ORGANIZATION, "trade": "wholesaler"}, "customer-card"),
        (coop_till, {"born_on": "2020-01-01"}, "card"),
        (coop_till, {"born_on": "9999-12-31"}, "card"),
        (coop_till, {}, "card"),
    ):
        body = {"applicant": applicant, "card_kind": kind}
        assert code(send(client, "/v1/members", body)) == (422, "may-not-join")
    golden = APPLICATION | {"card_kind": "gold"}
    assert code(send(till, "/v1/members", golden)) == (422, "card-kind-unknown")
    taken = APPLICATION | {"card_number": "7000000000001"}
    assert code(send(till, "/v1/members", taken)) == (409, "card-number-taken")
    assert booked() == before
    oldest = PERSON | {"applicant": {"born_on": "0001-01-01"}}
    assert send(coop_till, "/v1/members", oldest).status_code == 200


def test_a_further_card_is_issued(coop_till: httpx.Client, booked: Count) -> None:
    account_id = send(coop_till, "/v1/members", PERSON).json()["account_id"]
    key, body = str(uuid4()), {"account_id": account_id, "kind": "card", "role": "family"}
    card = send(coop_till, "/v1/cards", body, key)
    assert card.status_code == 200
    assert card.json()["role"] == "family"
    assert send(coop_till, "/v1/cards", body, key).content == card.content
    before = booked()
    for change, said in (
        ({"account_id": 2**63 - 1}, (404, "account-unknown")),
        ({"kind": "gold"}, (422, "card-kind-unknown")),
        ({"role": "butler"}, (422, "role-unknown")),
        ({"number": "7000000000001"}, (409, "card-number-taken")),
        ({"number": "70 00"}, (422, "malformed")),
        ({"account_id": 2**63}, (422, "malformed")),
    ):
        assert code(send(coop_till, "/v1/cards", body | change)) == said
    assert booked() == before


def test_another_programmes_account_is_unknown(till: httpx.Client, coop_till: httpx.Client) -> None:
    account_id = send(coop_till, "/v1/members", PERSON).json()["account_id"]
    body = {"account_id": account_id, "kind": "customer-card", "role": "main"}
    assert code(send(till, "/v1/cards", body)) == (404, "account-unknown")
    path = f"/v1/members/{account_id}/leave"
    assert code(send(till, path, {"cause": "member"})) == (404, "account-unknown")


def test_a_replaced_card_has_one_successor(
    till: httpx.Client, a_rich_member: Enrol, a_receipt: Make
) -> None:
    account_id, card = a_rich_member()
    first = till.post(f"/v1/cards/{card}/replace", json={})
    assert first.status_code == 200
    new = first.json()["number"]
    again = till.post(f"/v1/cards/{card}/replace", json={})
    assert again.json()["number"] == new
    assert till.post(f"/v1/cards/{card}/replace", json={"number": new}).json()["number"] == new
    other = till.post(f"/v1/cards/{card}/replace", json={"number": "70000099"})
    assert code(other) == (409, "card-not-usable")
    assert till.get(f"/v1/cards/{card}").json()["why_not"] == "card-blocked"
    shown = till.get(f"/v1/cards/{new}").json()
    assert (shown["usable"], shown["account_id"]) == (True, account_id)
    assert till.post("/v1/receipts", json=a_receipt(card=card)).json()["nothing"] == "card-blocked"


def test_a_card_is_blocked_at_the_first_time_asked(till: httpx.Client, a_member: Enrol) -> None:
    _, card = a_member()
    first = till.post(f"/v1/cards/{card}/block")
    assert first.json()["blocked_at"]
    assert till.post(f"/v1/cards/{card}/block").json() == first.json()
    assert code(till.post("/v1/cards/4711/block")) == (404, "card-unknown")
    assert code(till.post("/v1/cards/%00/block")) == (404, "card-unknown")


def test_points_are_pooled_where_the_terms_allow_it(
    till: httpx.Client, coop_till: httpx.Client, a_member: Enrol
) -> None:
    one = send(coop_till, "/v1/members", PERSON).json()
    other = send(coop_till, "/v1/members", PERSON).json()
    path = f"/v1/cards/{one['card_number']}"
    pooled = coop_till.post(f"{path}/pool", json={"onto": other["account_id"]})
    assert pooled.status_code == 200
    assert coop_till.get(path).json()["account_id"] == other["account_id"]
    unknown = coop_till.post(f"{path}/pool", json={"onto": 10**9})
    assert code(unknown) == (404, "account-unknown")
    account_id, card = a_member()
    refused = till.post(f"/v1/cards/{card}/pool", json={"onto": account_id})
    assert code(refused) == (422, "pooling-not-allowed")


def test_a_status_is_granted_and_ends(coop_till: httpx.Client) -> None:
    account_id = send(coop_till, "/v1/members", PERSON).json()["account_id"]
    path, key = f"/v1/members/{account_id}/status", str(uuid4())
    granted = send(coop_till, path, {"status": "cooperative-member"}, key)
    assert granted.status_code == 200
    assert send(coop_till, path, {"status": "cooperative-member"}, key).content == granted.content
    ended = {"status": "cooperative-member", "granted": False}
    assert code(send(coop_till, path, ended, key)) == (409, "idempotency-key-reused")
    assert send(coop_till, path, ended).status_code == 200
    assert code(send(coop_till, path, {"status": "king"})) == (422, "status-unknown")


def test_leaving_lapses_what_is_unused(till: httpx.Client, a_rich_member: Enrol) -> None:
    account_id, _ = a_rich_member()
    path, key = f"/v1/members/{account_id}/leave", str(uuid4())
    assert code(send(till, path, {"cause": "whim"})) == (422, "leaving-cause-unknown")
    assert code(send(till, path, {"cause": "breach"})) == (422, "reason-missing")
    left = send(till, path, {"cause": "member"}, key)
    assert left.status_code == 200
    assert left.json().get("balances", {}).get("bonus", {}).get("usable", 0) == 0
    assert send(till, path, {"cause": "member"}, key).content == left.content
    assert code(send(till, path, {"cause": "member"})) == (409, "membership-ended")
    for account in ("0", "x", "9" * 30, "%00", "-1"):
        answer = send(till, f"/v1/members/{account}/leave", {"cause": "member"})
        assert code(answer) == (404, "account-unknown")


def test_balances_are_opened_once_and_by_two_persons(
    till: httpx.Client, a_member: Enrol, booked: Count
) -> None:
    account_id, _ = a_member()
    path = f"/v1/members/{account_id}/opening"
    lot = {"unit": "bonus", "amount": 700, "earned_on": "2025-01-31"}
    body = {"lots": [lot], "sums_minor": {"2025-01": 70_000}, "approved_by": "Kari"}
    before = booked()
    for change, said in (
        ({"approved_by": ""}, (403, "approval-missing")),
        ({"approved_by": "staff:north/1"}, (403, "approval-missing")),
        ({"lots": [lot | {"unit": "beans"}]}, (422, "unit-unknown")),
        ({"tier": "level-9"}, (422, "unit-unknown")),
        ({"lots": [lot | {"amount": 2**64}]}, (422, "malformed")),
        ({"lots": [lot | {"amount": 0}]}, (422, "malformed")),
        ({"lots": [lot | {"earned_on": "9999-01-01"}]}, (422, "malformed")),
        ({"lots": [lot | {"earned_on": "0001-01-01"}]}, (422, "malformed")),
        ({"sums_minor": {"2025-13": 1}}, (422, "malformed")),
        ({"sums_minor": {"\0": 1}}, (422, "malformed")),
        ({"reason": "x" * 501}, (422, "malformed")),
    ):
        assert code(send(till, path, body | change)) == said, change
    assert booked() == before
    opened = send(till, path, body)
    assert opened.status_code == 200, opened.text
    assert opened.json()["balances"]["bonus"]["balance"] == 700
    assert code(send(till, path, body)) == (409, "already-opened")


def test_an_idempotency_key_is_needed_and_has_a_form(till: httpx.Client, booked: Count) -> None:
    before = booked()
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 121}):
        answer = till.post("/v1/members", json=APPLICATION, headers=headers)
        assert code(answer) == (422, "malformed")
        assert answer.json()["fields"]["path"] == "header Idempotency-Key"
    assert booked() == before


def test_a_tills_token_opens_no_desk(
    mere_till: httpx.Client, a_member: Enrol, booked: Count
) -> None:
    account_id, card = a_member()
    before = booked()
    for path, body in (
        ("/v1/members", APPLICATION),
        (f"/v1/members/{account_id}/opening", {"lots": []}),
        (f"/v1/members/{account_id}/leave", {"cause": "member"}),
        (f"/v1/cards/{card}/block", {}),
    ):
        assert code(send(mere_till, path, body)) == (403, "not-for-this-token"), path
    assert mere_till.get(f"/v1/cards/{card}").status_code == 200
    assert booked() == before
