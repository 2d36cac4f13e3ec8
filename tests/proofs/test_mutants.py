"""Mistakes put into the ledger on purpose: the tests must notice each of them.

`mutants.toml` lists mistakes in the code. Each is made in a copy of src, for which the tests that
are named beside it must fail. What the schema refuses is taken away piece by piece: without a
constraint or trigger some act must pass that it alone refuses.
"""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psycopg
import pytest

from kantis.db.cluster import OWNER, SUPERUSER

ROOT = Path(__file__).parents[2]

if TYPE_CHECKING:
    from tests.conftest import Server
    from tests.db import test_ledger_refuses as ledger_attacks
else:
    # Tests are no package: another test is loaded by its path.
    spec = importlib.util.spec_from_file_location(
        "ledger_attacks", ROOT / "tests/db/test_ledger_refuses.py"
    )
    ledger_attacks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ledger_attacks)

PATIENCE = 600
"""Seconds for the tests of one mutant."""

PLUGINS = ("_hypothesis_pytestplugin", "xdist.plugin", "pytest_timeout")
"""What the tests cannot do without; the plugins left out take seconds to load."""

SOME = 8
"""How many mutants a short run tries."""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mistake: in `file` (below src/kantis), `new` in place of `old`; tests in `by` notice it."""

    name: str
    file: str
    old: str
    new: str
    by: tuple[str, ...]


def mutants() -> list[Mutant]:
    text = Path(__file__).with_name("mutants.toml").read_text("utf-8")
    found = msgspec.convert(tomllib.loads(text)["mutant"], list[Mutant])
    assert len({mutant.name for mutant in found}) == len(found)
    return found


def mutated(mutant: Mutant, src: Path) -> None:
    """Make the mistake in a copy of src."""
    path = src / "kantis" / mutant.file
    text = path.read_text("utf-8")
    times = text.count(mutant.old)
    assert times == 1, f"{mutant.name}: its text stands {times} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")


def run(src: Path, tests: tuple[str, ...], database_url: str) -> tuple[int, str]:
    """Run tests on a copy of src, to the first failure; give pytest's code and what it said."""
    options = ["-x", "-q", "-rf", "--tb=line", "--timeout=60", "-pno:cacheprovider"]
    plugins = [f"-p{name}" for name in PLUGINS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *plugins, *tests],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "PYTHONPATH": str(src),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "KANTIS_DATABASE_URL": database_url,
            "COLUMNS": "300",  # so that the reason of a failure is not cut off
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def verdict(code: int, said: str) -> str:
    """Give the test that failed and why; empty if none did.

    :raises AssertionError: when the tests could not be run, or failed for being slow
    """
    if code == 0:
        return ""
    failed = re.search(r"^FAILED (.+)", said, re.MULTILINE)
    assert code == 1, said[-2000:]
    assert failed is not None, said[-2000:]
    assert "HealthCheck" not in failed[1], said[-2000:]
    return failed[1][:300]


# --- mistakes in the code -------------------------------------------------------------------


def test_every_mistake_can_be_made(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    for mutant in mutants():
        before = (tmp_path / "src/kantis" / mutant.file).read_text("utf-8")
        mutated(mutant, tmp_path / "src")
        (tmp_path / "src/kantis" / mutant.file).write_text(before, "utf-8")


@pytest.mark.timeout(0)
def test_every_mistake_in_the_ledger_is_noticed(
    server: "Server",
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
) -> None:
    url = server.external_url or server.cluster.url(SUPERUSER, "postgres")
    everything = mutants()
    chosen = chance.sample(everything, long_or_short(len(everything), SOME))

    healthy = tmp_path / "healthy"
    shutil.copytree(ROOT / "src", healthy)
    files = sorted({file for mutant in chosen for file in mutant.by})
    assert verdict(*run(healthy, tuple(files), url)) == "", "the tests fail without a mistake"

    noticed = {}
    for number, mutant in enumerate(chosen):
        src = tmp_path / str(number)
        shutil.copytree(ROOT / "src", src)
        mutated(mutant, src)
        noticed[mutant.name] = verdict(*run(src, mutant.by, url))
        shutil.rmtree(src)
    survivors = [name for name, failed in noticed.items() if not failed]
    evidence(
        known=len(everything),
        tried=len(noticed),
        noticed=len(noticed) - len(survivors),
        survivors=survivors,
        by=noticed,
    )
    assert survivors == []


# --- mistakes in the schema -----------------------------------------------------------------

MORE = """
INSERT INTO store VALUES ('shop', 'north');
INSERT INTO till_token VALUES (sha256('token'), 'shop', 'north', 'till 1', 'till', now());
INSERT INTO card VALUES ('4444', 'shop', 'card', 'main', now());
INSERT INTO card_change (card_number, change, at, actor, reason, approved_by)
VALUES ('4444', 'issued', now(), 'desk', '', '');
INSERT INTO card_link VALUES ('4444', now(), 0);
INSERT INTO suspension VALUES ('shop', '2024-04-01', '2024-04-02', 'anna', 'flood', '', now());
INSERT INTO receipt_key VALUES (decode(repeat('01', 32), 'hex'), sha256('a'), NULL, NULL);
INSERT INTO card_order VALUES (0, 1, 1, 'card', 'main', 1, 'S-1', '2024-03-04');
INSERT INTO snapshot VALUES (0, '2024-03-01', '{}');
INSERT INTO seal VALUES (2, sha256('y'), 1, now());
INSERT INTO account_seal VALUES (0, 1, 1, sha256('z'));
"""
"""A row in each table that the attacks on the ledger have none in."""

A_HASH = "\\x" + "00" * 32

FRESH: dict[str, dict[str, object]] = {
    "account": {"account_id": 99},
    "account_seal": {"seal_no": 2},
    "balance": {"unit": "points"},
    "capture": {"hold_id": "another"},
    "card": {"card_number": "5555"},
    "card_change": {"change_no": 99},
    "card_link": {"from_at": "2024-03-04"},
    "card_order": {"order_no": 2},
    "event": {"event_no": 2, "key": "another"},
    "lot": {"unit": "points"},
    "posting": {"transfer_no": 2},
    "programme": {"programme": "club"},
    "receipt_key": {"key_hash": A_HASH},
    "refused": {"key_hash": A_HASH},
    "request": {"request_key": "another"},
    "review": {"month_on": "2024-04-01"},
    "seal": {"seal_no": 3, "hash": A_HASH},
    "snapshot": {"month_on": "2024-04-01"},
    "store": {"store": "south"},
    "stray": {"key_hash": "\\x" + "01" * 32},
    "suspension": {"end_on": "2024-04-03"},
    "terms_version": {"valid_from": "2025-01-01"},
    "tier_change": {"change_no": 2},
    "till_token": {"token_hash": A_HASH},
    "transfer": {"transfer_no": 2},
}
"""In what a new row of a table differs from the one that is there."""

Breach = tuple[str, dict[str, object]]

BREACHES: dict[str, Breach] = {
    # the same row twice
    **{
        f"{table}_pkey": (table, {}) for table in FRESH if table not in {"event", "posting", "seal"}
    },
    "seal_pkey": ("seal", {"hash": A_HASH}),
    "seal_hash_key": ("seal", {"seal_no": 3}),
    "event_pkey": ("event", {"key": "another"}),
    "event_account_id_key_key": ("event", {"event_no": 2}),
    # what there is not
    **{
        f"{table}_{column}_fkey": (table, {**FRESH[table], column: nobody})
        for table, column, nobody in (
            ("account", "programme", "nobody"),
            ("account_seal", "account_id", 99),
            ("account_seal", "seal_no", 99),
            ("balance", "account_id", 99),
            ("card", "programme", "nobody"),
            ("card", "replaced_by", "9999"),
            ("card_change", "card_number", "9999"),
            ("card_link", "account_id", 99),
            ("card_link", "card_number", "9999"),
            ("event", "account_id", 99),
            ("lot", "account_id", 99),
            ("request", "programme", "nobody"),
            ("review", "account_id", 99),
            ("snapshot", "account_id", 99),
            ("store", "programme", "nobody"),
            ("stray", "key_hash", "\\x" + "02" * 32),
            ("stray", "programme", "nobody"),
            ("suspension", "programme", "nobody"),
            ("terms_version", "programme", "nobody"),
            ("tier_change", "account_id", 99),
        )
    },
    "capture_account_id_event_no_fkey": (
        "capture",
        {"hold_id": "another", "event_no": 99},
    ),
    "card_order_account_id_event_no_fkey": ("card_order", {"event_no": 99}),
    "till_token_programme_store_fkey": (
        "till_token",
        {**FRESH["till_token"], "store": "nowhere"},
    ),
    # what makes no sense
    **{
        name: (table, {**FRESH[table], **changed})
        for name, table, changed in (
            ("account_last_event_check", "account", {"last_event": -1}),
            ("account_last_transfer_check", "account", {"last_transfer": -1}),
            ("account_seal_hash_check", "account_seal", {"hash": "\\x00"}),
            ("account_seal_last_transfer_check", "account_seal", {"last_transfer": 0}),
            ("balance_debt_check", "balance", {"debt": -1}),
            ("card_card_number_check", "card", {"card_number": "12a4"}),
            ("card_change_change_check", "card_change", {"change": "eaten"}),
            ("card_change_check", "card_change", {"approved_by": "desk"}),
            ("card_order_count_check", "card_order", {"count": 0}),
            ("event_check", "event", {"approved_by": "till"}),
            ("event_event_no_check", "event", {"event_no": 0}),
            ("lot_remaining_check", "lot", {"remaining": -1}),
            ("posting_book_check", "posting", {"book": "gift"}),
            ("posting_check", "posting", {"valid_from": "2024-03-04", "book": "member"}),
            ("programme_programme_check", "programme", {"programme": ""}),
            ("receipt_key_check", "receipt_key", {"account_id": 0, "event_no": None}),
            ("receipt_key_content_hash_check", "receipt_key", {"content_hash": "\\x00"}),
            ("receipt_key_key_hash_check", "receipt_key", {"key_hash": "\\x00"}),
            ("refused_content_hash_check", "refused", {"content_hash": "\\x00"}),
            ("refused_key_hash_check", "refused", {"key_hash": "\\x00"}),
            ("request_content_hash_check", "request", {"content_hash": "\\x00"}),
            ("request_request_key_check", "request", {"request_key": ""}),
            ("seal_hash_check", "seal", {"hash": "\\x00"}),
            ("seal_seal_no_check", "seal", {"seal_no": 0}),
            ("seal_transfers_check", "seal", {"transfers": 0}),
            ("snapshot_month_on_check", "snapshot", {"month_on": "2024-04-02"}),
            ("stray_check", "stray", {"dismissed_at": "2024-03-04T10:00:00Z"}),
            ("store_store_check", "store", {"store": "no/rth"}),
            ("suspension_check", "suspension", {"end_on": "2024-04-01"}),
            ("suspension_check1", "suspension", {"approved_by": "anna"}),
            ("suspension_reason_check", "suspension", {"reason": ""}),
            ("terms_version_hash_check", "terms_version", {"hash": "\\x00"}),
            ("till_token_kind_check", "till_token", {"kind": "guest"}),
            ("till_token_token_hash_check", "till_token", {"token_hash": "\\x00"}),
            ("transfer_transfer_no_check", "transfer", {"transfer_no": 0}),
        )
    },
}
"""What each constraint alone refuses: a copy of a table's row with something changed."""

A_TRANSFER = """
WITH t AS (
    INSERT INTO transfer SELECT (jsonb_populate_record(NULL::transfer,
        to_jsonb(t) || '{"transfer_no": 2}' || %s)).* FROM transfer t
)
"""
COPIED_POSTINGS = """
INSERT INTO posting SELECT (jsonb_populate_record(NULL::posting,
    to_jsonb(p) || CASE posting_no WHEN 2 THEN %s::jsonb ELSE %s::jsonb END)).* FROM posting p
"""
COPY = """
INSERT INTO {0} OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(NULL::{0},
    to_jsonb(t) || %s)).* FROM (SELECT * FROM {0} LIMIT 1) t
"""

TRICKS: dict[str, tuple[str, dict[str, object]]] = {
    "posting_amount_check": (
        "INSERT INTO posting VALUES (0, 2, 1, 'issued', 0), (0, 2, 2, 'issued', 0)",
        {},
    ),
    "posting_pkey": (
        "INSERT INTO posting VALUES (0, 2, 2, 'issued', 1), (0, 2, 2, 'issued', -1)",
        {},
    ),
    "posting_posting_no_check": (
        "INSERT INTO posting VALUES (0, 2, 0, 'issued', 1), (0, 2, 2, 'issued', -1)",
        {},
    ),
    "transfer_postings_check": (
        "INSERT INTO posting SELECT 0, 2, n, 'issued', (-1) ^ n FROM generate_series(1, 30002) n",
        {"postings": 30_002},
    ),
}
"""Likewise, where the triggers want more than a copy: the postings of a new transfer."""

WRITTEN_ONCE = ["account_id", "event_no", "kind", "at", "rank", "key", "sale_key", "content"]
WRITTEN_ONCE += ["answer", "actor", "reason", "approved_by", "recorded_at"]
"""The columns of an event that stay; only what is decided of it may become another."""

ACTS: dict[str, tuple[str, ...]] = {
    **{
        f"{table}_append_only": (
            f"UPDATE {table} SET {column} = {column}",  # noqa: S608 - names of ours
            f"DELETE FROM {table}",  # noqa: S608
            f"TRUNCATE {table}",
        )
        for table, column in (
            ("account_seal", "hash"),
            ("capture", "hold_id"),
            ("card_change", "reason"),
            ("card_order", "count"),
            ("refused", "code"),
            ("request", "answer"),
            ("suspension", "reason"),
        )
    },
    "seal_append_only": (
        "UPDATE seal SET sealed_at = sealed_at",
        "DELETE FROM seal WHERE seal_no = 2",
    ),
    "event_kept": ("DELETE FROM event WHERE event_no = 3",),  # what hangs on it is kept too
    "event_unchanged": tuple(
        f"UPDATE event SET {column} = {column}"  # noqa: S608 - names of ours
        for column in WRITTEN_ONCE
    ),
    "posting_append_only": (
        "UPDATE posting SET amount = -amount",
        "DELETE FROM posting",
        "TRUNCATE posting",
    ),
    "posting_belongs": (
        "INSERT INTO posting VALUES (0, 1, 3, 'issued', 1), (0, 1, 4, 'issued', -1)",
        "INSERT INTO posting VALUES (0, 1, 3, 'issued', 1)",
        "INSERT INTO posting VALUES (0, 7, 1, 'issued', 1), (0, 7, 2, 'issued', -1)",
    ),
    "receipt_key_kept": (
        "DELETE FROM receipt_key WHERE event_no IS NOT NULL",
        "TRUNCATE receipt_key CASCADE",
    ),
    "receipt_key_unchanged": (
        "UPDATE receipt_key SET content_hash = sha256('other')",
        "UPDATE receipt_key SET key_hash = sha256('other') WHERE event_no IS NOT NULL",
    ),
    "terms_append_only": (
        "UPDATE terms_version SET source = ''",
        "DELETE FROM terms_version",
        "TRUNCATE terms_version",
    ),
    "transfer_append_only": (
        "UPDATE transfer SET clause = ''",
        "DELETE FROM transfer",
        "TRUNCATE transfer",
    ),
    "transfer_posted": (
        """INSERT INTO transfer SELECT (jsonb_populate_record(NULL::transfer,
            to_jsonb(t) || '{"transfer_no": 2}')).* FROM transfer t""",
    ),
}
"""What each trigger alone refuses."""

GUARDED_TWICE = {("posting", "amount"), ("transfer", "postings")}
"""Columns whose NOT NULL the triggers keep too."""


Act = tuple[str, list[str]]
"""A statement with its parameters."""


def act_of(table: str, changed: dict[str, object]) -> Act:
    """Copy a table's row with changes; a transfer is copied whole, in one statement."""
    encoded = msgspec.json.encode(changed).decode()
    number = msgspec.json.encode({"transfer_no": changed.get("transfer_no", 2)}).decode()
    if table not in {"transfer", "posting"} or not changed:
        return COPY.format(table), [encoded]
    of_transfer, of_posting = (encoded, number) if table == "transfer" else (number, encoded)
    return A_TRANSFER + COPIED_POSTINGS, [of_transfer, of_posting, number]


def act_against(constraint: str) -> Act:
    """Give the act that a constraint alone refuses.

    :raises KeyError: nobody has thought of one
    """
    if constraint in TRICKS:
        postings, changed = TRICKS[constraint]
        return A_TRANSFER + postings, [msgspec.json.encode(changed).decode()]
    return act_of(*BREACHES[constraint])


class Books:
    """Books with a row in each table, on which acts are tried and then undone."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def refusal(self, act: Act, *, without: str = "") -> str:
        """Try an act, if need be without a rule; give what refuses it, empty if it passes."""
        statement, parameters = act
        try:
            with self.connection.transaction(force_rollback=True):
                if without:
                    self.connection.execute(without.encode())
                self.connection.execute(statement.encode(), parameters)
                self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.errors.NotNullViolation as error:
            return f"{error.diag.table_name}.{error.diag.column_name}"
        except psycopg.errors.IntegrityError as error:
            # What a trigger raises names no constraint.
            return error.diag.constraint_name or str(error)
        return ""

    def constraints(self) -> list[tuple[str, str]]:
        return self.ask(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint"
            " WHERE conrelid::regclass::text = ANY(%s) AND contype <> 'n' ORDER BY 1, 2"
        )

    def triggers(self) -> list[tuple[str, str]]:
        return self.ask(
            "SELECT tgrelid::regclass::text, tgname FROM pg_trigger"
            " WHERE tgrelid::regclass::text = ANY(%s) AND NOT tgisinternal ORDER BY 1, 2"
        )

    def columns(self) -> list[tuple[str, str]]:
        """Give the columns that must be filled and belong to no primary key."""
        return self.ask(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute"
            " WHERE attrelid::regclass::text = ANY(%s) AND attnotnull AND attnum > 0"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = attrelid"
            "     AND contype = 'p' AND attnum = ANY(conkey)) ORDER BY 1, attnum"
        )

    def ask(self, query: str) -> list[tuple[str, str]]:
        return self.connection.execute(query.encode(), [[*FRESH]]).fetchall()


@pytest.fixture
def books(
    server: "Server", make_database: Callable[[str], Callable[[str], str]]
) -> Iterator[Books]:
    url = make_database("schema")(OWNER if server.external_url else SUPERUSER)
    with psycopg.connect(url) as connection:
        connection.execute(ledger_attacks.BEGINNING)
        connection.execute(MORE)
        connection.commit()
        yield Books(connection)
        connection.rollback()


def test_every_piece_of_the_schema_alone_refuses_something(
    books: Books, evidence: Callable[..., None]
) -> None:
    """Without it an act passes that it refused: a constraint, a trigger, a NOT NULL."""
    unproved = []
    legal = [table for table in FRESH if books.refusal(act_of(table, FRESH[table]))]
    assert legal == [], "what is right is refused"

    def prove(what: str, act: Act, *, without: str, named: str) -> None:
        refusal = books.refusal(act)
        passes = books.refusal(act, without=without)
        if not re.search(named, refusal) or passes:
            unproved.append((what, refusal, passes))

    constraints = books.constraints()
    for table, name in constraints:
        prove(
            name,
            act_against(name),
            without=f"ALTER TABLE {table} DROP CONSTRAINT {name} CASCADE",
            named=f"^{name}$",
        )
    triggers = books.triggers()
    for table, name in triggers:
        for statement in ACTS[name]:
            prove(
                f"{name}: {statement}",
                (statement, []),
                without=f"DROP TRIGGER {name} ON {table}",
                named="append-only|not balanced or not whole",
            )
    columns = [column for column in books.columns() if column not in GUARDED_TWICE]
    for table, column in columns:
        prove(
            f"{table}.{column}",
            act_of(table, {**FRESH[table], column: None}),
            without=f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL",
            named=f"^{table}[.]{column}$",
        )
    evidence(
        constraints=len(constraints),
        triggers=len(triggers),
        acts_against_triggers=sum(map(len, ACTS.values())),
        not_null=len(columns),
        unproved=unproved,
    )
    assert unproved == []


def test_every_table_of_the_schema_is_attacked() -> None:
    files = sorted((ROOT / "src/kantis/db/sql").glob("*.sql"))
    text = "".join(path.read_text("utf-8") for path in files)
    assert set(re.findall(r"^CREATE TABLE (\w+)", text, re.MULTILINE)) == {*FRESH}
