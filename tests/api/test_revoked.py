"""Tills listed and revoked from the terminal, while a server answers them."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from kantis.db.cluster import APP, OWNER
from kantis.db.connect import open_pool
from kantis.serve import ASGI, build_asgi

CARD = "/v1/cards/7000000000001"


def test_a_revoked_till_is_let_in_no_more_from_the_next_request_on(
    fresh_database: Callable[[str], str],
    set_up_shop: Callable[[str], None],
    serving: Callable[[ASGI], AbstractContextManager[str]],
    a_receipt: Callable[[], dict[str, Any]],
    tmp_path: Path,
) -> None:
    set_up_shop(fresh_database(APP))
    environment = os.environ | {
        "KANTIS_DATABASE_URL": fresh_database(APP),
        "KANTIS_OWNER_URL": fresh_database(OWNER),
        "KANTIS_DATA_DIR": str(tmp_path),
        "COLUMNS": "100",
    }

    def kantis(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kantis", "till", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    of_alltid = ("--programme", "alltid")
    added = kantis("add", "north", "--label", "kiosk", *of_alltid)
    token = added.stdout.strip()
    assert len(token) == 43, added.stderr

    with (
        open_pool(fresh_database(APP)) as pool,
        serving(build_asgi(pool, {"api"})) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as till,
    ):
        assert till.get(CARD).status_code == 200
        assert till.post("/v1/receipts", json=a_receipt()).status_code == 200
        assert till.post("/v1/quotes", json=a_receipt()).status_code == 200
        revoked = kantis("revoke", "north", "--label", "kiosk", *of_alltid)
        assert (revoked.returncode, revoked.stdout.strip()) == (
            0,
            "alltid: north: 1 token of 'kiosk' revoked",
        )
        for answer in (
            till.post("/v1/receipts", json=a_receipt()),
            till.post("/v1/quotes", json=a_receipt()),
            till.get(CARD),
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, "token-unknown")
        other = {"Authorization": "Bearer till-alltid-north"}
        assert till.get(CARD, headers=other).status_code == 200

    listed = kantis("list", *of_alltid)
    assert listed.returncode == 0, listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines() if line.strip()]
    assert lines[0] == ["store", "label", "kind", "since", "revoked"]
    kiosk = next(line for line in lines if "kiosk" in line)
    # Two instants of a day and a time each; the others have one.
    assert (kiosk[:3], len(kiosk)) == (["north", "kiosk", "till"], 7)
    assert sorted(len(line) for line in lines[2:]) == [5, 5, 5, 5, 7]
    with open_pool(fresh_database(APP)) as pool, pool.connection() as connection:
        hashes = connection.execute("SELECT encode(token_hash, 'hex') FROM till_token").fetchall()
    for secret in (token, *(one[:16] for (one,) in hashes)):
        assert secret not in listed.stdout

    again = kantis("revoke", "north", "--label", "kiosk", *of_alltid)
    assert (again.returncode, again.stdout.strip()) == (
        1,
        "alltid: north: 0 tokens of 'kiosk' revoked",
    )
    unknown = kantis("revoke", "nowhere", "--label", "kiosk", *of_alltid)
    assert unknown.returncode == 1
    assert "No such store" in unknown.stderr
