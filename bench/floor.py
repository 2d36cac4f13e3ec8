"""pgbench's floor: what PostgreSQL alone does with the rows of a receipt on this machine.

A receipt of ten lines as JSON text is one row with its lines under a unique key, two ledger rows
and one balance that changes, in one statement. Nothing is judged, looked up or explained.
"""

import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from msgspec import Struct

from bench import shop
from bench.place import Database
from kantis.db.cluster import program

ACCOUNTS = 10_000

BATCH = 64

_SCHEMA = f"""
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE receipt (idem uuid PRIMARY KEY, account int NOT NULL, total int NOT NULL,
                          lines text NOT NULL, at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                         idem uuid NOT NULL, account int NOT NULL, amount int NOT NULL);
    INSERT INTO account SELECT g, 0 FROM generate_series(1, {ACCOUNTS}) g;
"""  # noqa: S608 - what is put in is a constant of ours

_ONE = f"""
\\set a random(1, {ACCOUNTS})
\\set p random(10, 90)
WITH r AS (
    INSERT INTO receipt (idem, account, total, lines)
    VALUES (gen_random_uuid(), :a::int, 4711, 'LINES') RETURNING idem
), l AS (
    INSERT INTO ledger (idem, account, amount)
    SELECT idem, :a::int, x FROM r, (VALUES (:p::int), (-(:p::int))) v(x)
)
UPDATE account SET balance = balance + :p::int WHERE id = :a::int RETURNING balance;
"""  # noqa: S608 - likewise

_BATCH = f"""
\\set a random(1, {ACCOUNTS})
WITH b AS MATERIALIZED (
    SELECT gen_random_uuid() AS idem, 1 + (:a::int + 157 * g) % {ACCOUNTS} AS account, 10 + g AS p
    FROM generate_series(1, {BATCH}) g
), r AS (
    INSERT INTO receipt (idem, account, total, lines)
    SELECT idem, account, 4711, 'LINES' FROM b
), l AS (
    INSERT INTO ledger (idem, account, amount)
    SELECT idem, account, x FROM b, LATERAL (VALUES (p), (-p)) v(x)
)
UPDATE account SET balance = balance + p FROM b WHERE id = b.account RETURNING id, balance;
"""  # noqa: S608 - likewise

_RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


class Floor(Struct, frozen=True):
    """Receipts a second: a statement each from one client and from eight, and 64 a statement."""

    one_client: float
    eight_clients: float
    batched: float


def measure(database: Database, *, seconds: int) -> Floor:
    """Make the tables in an empty database and measure each way for so many seconds."""
    with psycopg.connect(database.owner_url) as connection:
        connection.execute(_SCHEMA)
    return Floor(
        one_client=one_by_one(database, clients=1, seconds=seconds),
        eight_clients=one_by_one(database, clients=8, seconds=seconds),
        batched=BATCH * _rate(database, _BATCH, clients=1, seconds=seconds),
    )


def one_by_one(database: Database, *, clients: int, seconds: int) -> float:
    """Give the receipts a second of so many clients, each receipt in a transaction of its own."""
    return _rate(database, _ONE, clients=clients, seconds=seconds)


def _rate(database: Database, script: str, *, clients: int, seconds: int) -> float:
    """Give the transactions a second.

    :raises RuntimeError: pgbench failed; with what it said
    """
    database.checkpoint()
    lines = shop.lines_text().replace(":", ": ")  # a colon with a word is a variable of pgbench's
    with TemporaryDirectory() as folder:
        file = Path(folder) / "receipt.sql"
        file.write_text(script.replace("LINES", lines))
        done = subprocess.run(
            [
                _pgbench(),
                "--no-vacuum",
                "--protocol=prepared",
                f"--client={clients}",
                f"--jobs={min(clients, 2)}",
                f"--time={seconds}",
                f"--file={file}",
                database.owner_url,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or (found := _RATE.search(done.stdout)) is None:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


def _pgbench() -> str:
    ours = program("pgbench")
    return str(ours) if ours.exists() else shutil.which("pgbench") or "pgbench"
