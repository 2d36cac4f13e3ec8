"""What waits shares a transaction: nobody's answer changes, nobody else's fault is suffered."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from kantis.core.admission import Applicant, Warrant
from kantis.db.connect import open_pool
from kantis.operations import members, sales
from kantis.operations.limits import Limits
from kantis.operations.sales import Outcome
from kantis.serve import ASGI, build_asgi

Json = dict[str, Any]
Make = Callable[..., Json]
AMember = Callable[[], tuple[int, str]]

MANY = 40


@contextmanager
def held_up(pool: ConnectionPool) -> Iterator[None]:
    """Keep all bookings of the programme waiting for a lock, until the block ends."""
    with pool.connection() as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(1, hashtext('alltid'))")
        yield


def all_at_once(
    till: httpx.Client, pool: ConnectionPool, receipts: Sequence[Json], meanwhile: int
) -> list[httpx.Response]:
    """Send receipts in their order; they are booked when so many wait at the server."""
    with ThreadPoolExecutor(len(receipts)) as tills:
        with held_up(pool):
            asked = []
            for number, receipt in enumerate(receipts, start=1):
                asked.append(tills.submit(till.post, "/v1/receipts", json=receipt))
                until_waiting(pool, min(number, meanwhile))
        return [one.result() for one in asked]


def until_waiting(pool: ConnectionPool, number: int) -> None:
    """Wait until a booking waits for the lock, and let the others come in behind it."""
    with pool.connection() as connection:
        for _ in range(200):
            ((waiting,),) = connection.execute(
                "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
                " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
            ).fetchall()
            if waiting >= min(number, 1):
                connection.execute("SELECT pg_sleep(0.01)")
                return
            connection.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("no booking waits for the lock")


def until_locked(pool: ConnectionPool, number: int) -> None:
    """Wait until so many sessions wait for a lock on a row."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    with pool.connection() as connection:
        for _ in range(500):
            ((found,),) = connection.execute(waiting).fetchall()
            if found >= number:
                return
            connection.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("they do not wait")


def transactions_of(pool: ConnectionPool, receipts: Sequence[Json]) -> int:
    """Count the transactions that receipts were booked in: each has its own moment."""
    with pool.connection() as connection:
        ((count,),) = connection.execute(
            "SELECT count(DISTINCT recorded_at) FROM event WHERE content #>> '{receipt,number}'"
            " = ANY(%s)",
            [[receipt["number"] for receipt in receipts]],
        ).fetchall()
    return int(count)


def test_what_waits_is_booked_together(
    till: httpx.Client, pool: ConnectionPool, a_receipt: Make, a_member: AMember
) -> None:
    receipts = [a_receipt(card=a_member()[1]) for _ in range(MANY)]
    answers = all_at_once(till, pool, receipts, 1)
    assert {answer.status_code for answer in answers} == {200}
    assert transactions_of(pool, receipts) <= 5


def mixed(a_receipt: Make, card: str, prefix: str) -> list[Json]:
    """Make receipts of which some are refused, some repeated, some of no card or no known one."""
    begin = datetime.now(UTC) - timedelta(minutes=1)

    def made(number: int, *amounts: int, **changes: object) -> Json:
        at = (begin + timedelta(seconds=number)).isoformat()
        return a_receipt(
            *amounts, **{"at": at, "number": f"{prefix}-{number}", "card": card, **changes}
        )

    plain = [made(number, 10_000 * number, 4_000) for number in range(1, 8)]
    return [
        *plain,
        made(8, 5_000, total_minor=1),
        plain[0],
        plain[1] | {"total_minor": 30_000, "lines": [{"amount_minor": 30_000}]},
        made(9, 5_000, currency="EUR"),
        made(10, 5_000, card=""),
        made(11, 5_000, card="1234567890123"),
        made(12, 5_000, store="elsewhere"),
        made(13, 5_000, tenders=[{"kind": "bonus", "amount_minor": 5_000}], proof="staff"),
        made(14, -2_000),
        made(15, 99_900, training=True),
        made(16, 70_000),
    ]


def told(answer: httpx.Response, prefix: str, card: str) -> tuple[int, str, Json]:
    """Give what is told, whoever it is told to."""
    text = answer.text.replace(f"{prefix}-", "").replace(card, "the card")
    replayed = answer.headers.get("Idempotency-Replayed", "")
    return answer.status_code, replayed, json.loads(text)


def early_member(pool: ConnectionPool) -> str:
    """Enrol somebody who joined 40 days ago and has earned since the day after; give the card."""
    number = f"71{secrets.randbelow(10**10):010d}"
    with pool.connection() as connection:
        members.enrol(
            connection,
            programme="alltid",
            application=members.Application(
                applicant=Applicant(organization_number="974760673"),
                card_kind="customer-card",
                card_number=number,
            ),
            request_key=f"early/{number}",
            at=datetime.now(UTC) - timedelta(days=40),
            warrant=Warrant("test"),
        )
    return number


def test_receipts_together_are_answered_as_one_by_one(
    till: httpx.Client, pool: ConnectionPool, a_receipt: Make
) -> None:
    """The same traffic for two members: by Litestar's own handler alone, and all at once."""
    one, other = early_member(pool), early_member(pool)
    alone, together = mixed(a_receipt, one, "alone"), mixed(a_receipt, other, "batch")
    # A slash at the end leads past the lanes.
    one_by_one = [till.post("/v1/receipts/", json=receipt) for receipt in alone]
    at_once = all_at_once(till, pool, together, 1)
    assert [told(answer, "alone", one) for answer in one_by_one] == [
        told(answer, "batch", other) for answer in at_once
    ]
    assert {answer.status_code for answer in at_once} == {200, 403, 409, 422}
    assert one_by_one[-1].json()["balances"] == at_once[-1].json()["balances"]
    assert transactions_of(pool, together) <= 3


def test_quotes_together_are_answered_as_one_by_one(
    till: httpx.Client, pool: ConnectionPool, a_receipt: Make
) -> None:
    card = early_member(pool)
    receipts = mixed(a_receipt, card, "quote")
    one_by_one = [till.post("/v1/quotes/", json=receipt) for receipt in receipts]
    with ThreadPoolExecutor(len(receipts)) as tills:
        at_once = list(tills.map(lambda one: till.post("/v1/quotes", json=one), receipts))
    assert [told(answer, "quote", card) for answer in one_by_one] == [
        told(answer, "quote", card) for answer in at_once
    ]


def test_one_that_makes_a_batch_fail_fails_alone(
    till: httpx.Client,
    pool: ConnectionPool,
    a_receipt: Make,
    a_member: AMember,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bug that one receipt meets, here one that is put in, is no other receipt's."""

    def with_a_bug(connection: psycopg.Connection, **asked: Any) -> list[Outcome | None]:  # noqa: ANN401
        if any(one.receipt.till == "bug" for one in asked["sent"]):
            connection.execute("SELECT 1 / 0")
        return sales.record_sent(connection, **asked)

    monkeypatch.setattr("kantis.api.counter.record_sent", with_a_bug)
    receipts = [a_receipt(card=a_member()[1]) for _ in range(10)]
    receipts[5]["till"] = "bug"
    answers = all_at_once(till, pool, receipts, 1)
    failed = [answer.status_code for answer in answers]
    assert failed == [500 if number == 5 else 200 for number in range(10)]
    assert answers[5].json()["code"] == "internal-error"
    monkeypatch.undo()
    assert "Idempotency-Replayed" not in till.post("/v1/receipts", json=receipts[5]).headers


def test_when_too_many_wait_the_next_are_told_to_come_again(
    till: httpx.Client,
    pool: ConnectionPool,
    a_receipt: Make,
    a_member: AMember,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kantis.api.lanes.WAITING_MAX", 5)
    receipts = [a_receipt(card=a_member()[1]) for _ in range(MANY)]
    answers = all_at_once(till, pool, receipts, 1)
    full = [answer for answer in answers if answer.status_code == 503]
    assert len(full) >= MANY // 2
    assert {answer.json()["code"] for answer in full} == {"unavailable"}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in full)
    again = [till.post("/v1/receipts", json=receipt) for receipt in receipts]
    assert {answer.status_code for answer in again} == {200}
    replayed = sum("Idempotency-Replayed" in answer.headers for answer in again)
    assert replayed == MANY - len(full)


def test_lanes_that_have_ended_begin_again(
    till: httpx.Client, a_receipt: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kantis.api.lanes.IDLE_SECONDS", 0.02)
    for pause in range(30):
        assert till.post("/v1/quotes", json=a_receipt(), timeout=5).status_code == 200
        assert till.post("/v1/receipts", json=a_receipt(), timeout=5).status_code == 200
        time.sleep(pause / 1000)


def test_a_burst_of_guesses_is_forgotten_when_its_time_is_over(
    shop_url: str,
    pool: ConnectionPool,
    serving: Callable[[ASGI], AbstractContextManager[str]],
    a_receipt: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many are under way when the limit is reached: none of them may shut the till out for good."""
    limits = Limits(
        unknown_cards_per_minute=10**9, unknown_cards_per_hour=3, wrong_tokens_per_minute=10**9
    )
    asker = "SELECT min(asker) FROM miss WHERE asker LIKE 'token/%' AND misses >= 3"
    token = {"Authorization": "Bearer till-alltid-south-till"}
    unknown = [a_receipt(card=f"72{number:011d}", store="south") for number in range(20)]
    with (
        open_pool(shop_url) as tills,
        serving(build_asgi(tills, {"api"}, limits)) as url,
        httpx.Client(base_url=url, headers=token, timeout=30) as till,
    ):
        with ThreadPoolExecutor(20) as many:
            answers = list(many.map(lambda one: till.post("/v1/quotes", json=one), unknown))
        assert {answer.status_code for answer in answers} <= {200, 429}
        known = a_receipt(store="south")
        assert till.post("/v1/quotes", json=known).status_code == 429
        with monkeypatch.context() as patch:
            # No time tells a card from none: nothing is looked at any more.
            patch.setattr("kantis.api.lanes.Lanes.ask", None)
            assert till.post("/v1/quotes", json=known).status_code == 429
        with pool.connection() as connection:
            assert connection.execute(asker).fetchone() is not None
            connection.execute("DELETE FROM miss")
        assert till.post("/v1/quotes", json=known).status_code == 200
        assert "balances" in till.post("/v1/receipts", json=known).json()


def test_reports_leave_tills_their_turn(
    till: httpx.Client, pool: ConnectionPool, a_receipt: Make, a_member: AMember
) -> None:
    """Whatever else is asked, and waits: receipts have lanes of their own."""
    account_id, card = a_member()
    others = [a_member()[1] for _ in range(3)]
    with ThreadPoolExecutor(12) as desks:
        with pool.connection() as connection, connection.transaction():
            connection.execute("SELECT FROM account WHERE account_id = %s FOR UPDATE", [account_id])
            stuck = [
                desks.submit(
                    till.post,
                    "/v1/holds",
                    json={"card": card, "unit": "bonus", "amount": 1, "proof": "staff"},
                    headers={"Idempotency-Key": f"stuck-{card}-{number}"},
                )
                for number in range(12)
            ]
            until_locked(pool, 6)
            answers = [
                till.post("/v1/receipts", json=a_receipt(card=other), timeout=5) for other in others
            ]
            assert {answer.status_code for answer in answers} == {200}
        assert {one.result().status_code for one in stuck} <= {200, 409, 503}
