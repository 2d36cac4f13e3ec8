"""Attacks on the books through SQL, as the application and as the tables' owner: all must fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from kantis.db import schema
from kantis.db.cluster import APP, OWNER
from kantis.db.connect import connect

if TYPE_CHECKING:
    from tests.conftest import Server

SQL = Path(schema.__file__).parent / "sql"

# Account 0: identities begin with 1, and other tests' accounts are in the same database.
A_TRANSFER = """
WITH transfers AS (
    INSERT INTO transfer (account_id, transfer_no, event_no, kind, clause, unit, entity, value_on,
                          corrects, postings, posted_at)
    VALUES (0, {no}, 1, 'earned', 'S-5', 'bonus', 'shop', '2024-03-04', false, {count}, now())
)
INSERT INTO posting (account_id, transfer_no, posting_no, book, amount, valid_until, earned_on,
                     valid_from)
VALUES {postings}
"""
MEMBER = "(0, {no}, 1, 'member', {amount}, '2029-03-04', '2024-03-04', '2024-03-04')"
ISSUED = "(0, {no}, {posting}, 'issued', {amount}, NULL, NULL, NULL)"


def transfer(no: int, *, member: int = 100, issued: int = -100, count: int = 2) -> str:
    postings = MEMBER.format(no=no, amount=member)
    if issued:
        postings += f", {ISSUED.format(no=no, posting=2, amount=issued)}"
    return A_TRANSFER.format(no=no, count=count, postings=postings)


BEGINNING = f"""
INSERT INTO programme VALUES ('shop');
INSERT INTO terms_version VALUES ('shop', '2024-01-01', sha256('x'), 'x', now(), 'publisher');
INSERT INTO account (account_id, programme, kind, standing, next_due_on)
VALUES (0, 'shop', 'person', '{{}}', '2024-04-01');
INSERT INTO event (account_id, event_no, kind, at, rank, key, content, decision, actor, recorded_at)
VALUES (0, 1, 'sale', now(), 2, 'receipt', '{{}}', '{{}}', 'till', now());
INSERT INTO receipt_key VALUES (sha256('receipt'), sha256('content'), 0, 1);
INSERT INTO receipt_key VALUES (sha256('stray'), sha256('content'), NULL, NULL);
INSERT INTO stray VALUES
    (sha256('stray'), 'shop', 'stray', NULL, '', 'no-card', '{{}}', '{{}}', now());
INSERT INTO capture VALUES (0, 'hold', 1);
INSERT INTO request VALUES ('shop', 'request', sha256('content'), '{{}}', now());
INSERT INTO refused VALUES (sha256('no'), sha256('content'), 'not-enough', '{{}}', now());
INSERT INTO tier_change VALUES (0, '2024-03-04', 1, '', 'silver', '2025-01-01', 'S-4');
INSERT INTO review VALUES (0, '2024-03-01', 'silver');
INSERT INTO seal VALUES (1, sha256('x'), 1, now());
INSERT INTO lot VALUES (0, 'bonus', '2029-03-04', '2024-03-04', '2024-03-04', 100);
INSERT INTO balance VALUES (0, 'bonus', 100, 0);
{transfer(1)};
"""  # noqa: S608 - nobody's input

UNBALANCED = "transfer 0/[0-9]+ is not balanced or not whole"
APPEND_ONLY = "is append-only"

ATTACKS = {
    "a transfer that does not balance": (transfer(2, issued=-99), UNBALANCED),
    "a transfer of one posting": (transfer(2, issued=0, count=2), UNBALANCED),
    "a transfer that says it has one posting": (transfer(2, issued=0, count=1), "violates check"),
    "a transfer with more postings than it says": (
        A_TRANSFER.format(
            no=2,
            count=2,
            postings=", ".join(
                [
                    MEMBER.format(no=2, amount=100),
                    ISSUED.format(no=2, posting=2, amount=-50),
                    ISSUED.format(no=2, posting=3, amount=-50),
                ]
            ),
        ),
        UNBALANCED,
    ),
    "a transfer whose postings are numbered with a gap": (
        A_TRANSFER.format(
            no=2,
            count=2,
            postings=f"{MEMBER.format(no=2, amount=100)},"
            f" {ISSUED.format(no=2, posting=3, amount=-100)}",
        ),
        UNBALANCED,
    ),
    "a transfer without postings": (
        (
            "INSERT INTO transfer VALUES (0, 2, 1, 'earned', 'S-5', 'bonus', 'shop', '2024-03-04',"
            " false, 2, now())"
        ),
        UNBALANCED,
    ),
    "postings without a transfer": (
        (
            f"INSERT INTO posting VALUES {MEMBER.format(no=2, amount=1)},"  # noqa: S608
            f" {ISSUED.format(no=2, posting=2, amount=-1)}"
        ),
        UNBALANCED,
    ),
    "balanced postings added to an old transfer": (
        (
            f"INSERT INTO posting VALUES {ISSUED.format(no=1, posting=3, amount=1)},"  # noqa: S608
            f" {ISSUED.format(no=1, posting=4, amount=-1)}"
        ),
        UNBALANCED,
    ),
    "one posting added to an old transfer": (
        f"INSERT INTO posting VALUES {ISSUED.format(no=1, posting=3, amount=1)}",  # noqa: S608
        UNBALANCED,
    ),
    "a posting of an old transfer once more": (
        f"INSERT INTO posting VALUES {ISSUED.format(no=1, posting=2, amount=-100)}",  # noqa: S608
        "duplicate key",
    ),
    "an old posting put in anew": (
        (
            "INSERT INTO posting (account_id, transfer_no, posting_no, book, amount)"
            " VALUES (0, 1, 2, 'spent', -100)"
            " ON CONFLICT (account_id, transfer_no, posting_no) DO UPDATE SET book = 'spent'"
        ),
        APPEND_ONLY,
    ),
    "a posting of nothing": (transfer(2, member=0, issued=0, count=2), "violates check"),
    "a posting in a book that there is not": (
        transfer(2).replace("'issued'", "'gift'"),
        "violates check",
    ),
    "a member's posting without its lot": (
        transfer(2).replace("'2029-03-04', '2024-03-04', '2024-03-04')", "NULL, NULL, NULL)"),
        "violates check",
    ),
    "a posting edited": ("UPDATE posting SET amount = 1", APPEND_ONLY),
    "a posting deleted": ("DELETE FROM posting", APPEND_ONLY),
    "postings truncated": ("TRUNCATE posting", APPEND_ONLY),
    "a transfer edited": ("UPDATE transfer SET clause = ''", APPEND_ONLY),
    "a transfer deleted": ("DELETE FROM transfer", APPEND_ONLY),
    "transfers truncated": ("TRUNCATE transfer, posting", APPEND_ONLY),
    "a lot below zero": ("UPDATE lot SET remaining = remaining - 101", "lot_remaining_check"),
    "a new lot below zero": (
        "INSERT INTO lot VALUES (0, 'bonus', '2030-01-01', '2025-01-01', '2025-01-01', -1)",
        "lot_remaining_check",
    ),
    "a negative debt": ("UPDATE balance SET debt = -1", "balance_debt_check"),
    "a receipt key deleted": (
        "DELETE FROM receipt_key WHERE event_no IS NOT NULL",
        APPEND_ONLY,
    ),
    "receipt keys truncated": (
        "TRUNCATE receipt_key CASCADE",
        APPEND_ONLY,
    ),
    "a receipt key used twice": (
        "INSERT INTO receipt_key VALUES (sha256('receipt'), sha256('other'), 0, 1)",
        "duplicate key",
    ),
    "a receipt key that leads halfway": (
        "UPDATE receipt_key SET event_no = NULL WHERE event_no IS NOT NULL",
        "violates check",
    ),
    "an event's content edited": (
        "UPDATE event SET content = '{}'",
        APPEND_ONLY,
    ),
    "an event's answer edited": (
        "UPDATE event SET answer = '{}'",
        APPEND_ONLY,
    ),
    "a receipt key for another content": (
        "UPDATE receipt_key SET content_hash = key_hash",
        APPEND_ONLY,
    ),
    "an event deleted": ("DELETE FROM event", APPEND_ONLY),
    "events truncated": ("TRUNCATE event CASCADE", APPEND_ONLY),
    "an event's key used twice": (
        (
            "INSERT INTO event (account_id, event_no, kind, at, rank, key, content, decision,"
            " actor, recorded_at)"
            " VALUES (0, 2, 'sale', now(), 2, 'receipt', '{}', '{}', 'till', now())"
        ),
        "duplicate key",
    ),
    "an event approved by its own actor": (
        (
            "INSERT INTO event (account_id, event_no, kind, at, rank, key, content, decision,"
            " actor, approved_by, recorded_at)"
            " VALUES (0, 2, 'left', now(), 1, 'left', '{}', '{}', 'anna', 'anna', now())"
        ),
        "violates check",
    ),
    "a suspension approved by its own actor": (
        (
            "INSERT INTO suspension VALUES"
            " ('shop', '2024-04-01', '2024-04-02', 'anna', 'flood', 'anna', now())"
        ),
        "violates check",
    ),
    "a suspension without a reason": (
        (
            "INSERT INTO suspension VALUES"
            " ('shop', '2024-04-01', '2024-04-02', 'anna', '', 'berit', now())"
        ),
        "violates check",
    ),
    "terms edited": ("UPDATE terms_version SET source = ''", APPEND_ONLY),
    "terms deleted": ("DELETE FROM terms_version", APPEND_ONLY),
    "terms truncated": ("TRUNCATE terms_version", APPEND_ONLY),
    "a hold captured twice": ("INSERT INTO capture VALUES (0, 'hold', 1)", "duplicate key"),
    "a capture edited": ("UPDATE capture SET hold_id = 'other'", APPEND_ONLY),
    "a request's key with another content": (
        "INSERT INTO request VALUES ('shop', 'request', sha256('other'), '{}', now())",
        "duplicate key",
    ),
    "a request's content edited": ("UPDATE request SET content_hash = sha256('x')", APPEND_ONLY),
    "a request deleted": ("DELETE FROM request", APPEND_ONLY),
    "a refusal withdrawn": ("DELETE FROM refused", APPEND_ONLY),
    "other terms for a day that has some": (
        (
            "INSERT INTO terms_version VALUES"
            " ('shop', '2024-01-01', sha256('y'), 'y', now(), 'publisher')"
        ),
        "duplicate key",
    ),
    "two tiers from one moment": (
        (
            "INSERT INTO tier_change VALUES"
            " (0, '2024-03-04', 1, 'silver', 'gold', '2025-01-01', 'S-4')"
        ),
        "duplicate key",
    ),
    "two reviews of a month": (
        "INSERT INTO review VALUES (0, '2024-03-01', 'gold')",
        "duplicate key",
    ),
    "a snapshot in the middle of a month": (
        "INSERT INTO snapshot VALUES (0, '2024-03-02', '{}')",
        "violates check",
    ),
    "a suspension withdrawn": ("DELETE FROM suspension", APPEND_ONLY),
    "a card order deleted": ("DELETE FROM card_order", APPEND_ONLY),
    "a seal edited": ("UPDATE seal SET hash = sha256('x')", APPEND_ONLY),
    "an account's seal cut off": ("DELETE FROM account_seal", APPEND_ONLY),
    "a second seal of one number": (
        "INSERT INTO seal VALUES (1, sha256('y'), 1, now())",
        "duplicate key",
    ),
    "a stray dismissed by nobody": (
        "UPDATE stray SET dismissed_at = now()",
        "violates check",
    ),
    "a card moved off its account": (
        "INSERT INTO card_link VALUES ('4444', now(), 0)",
        "violates foreign key",
    ),
}


@pytest.fixture(scope="module")
def attacked(server: "Server", worker_id: str) -> Iterator[Callable[[str], str]]:
    """Give a database of these tests' own, with the books of one receipt, to connect to as a role.

    It is committed: each attack is then a transaction of its own.
    """
    name = f"{worker_id}-attacked"
    server.create(name, template=server.database("template"))
    with connect(server.url(OWNER, server.database(name))) as owner:
        owner.execute(BEGINNING.encode())
    yield lambda role: server.url(role, server.database(name))
    server.drop(name)


@contextmanager
def session(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url) as connection:
        connection.execute("SET kantis.programme = '*'")
        yield connection
        connection.rollback()


@pytest.fixture
def books(attacked: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    """Give the books as the application has them."""
    with session(attacked(APP)) as connection:
        yield connection


@pytest.fixture
def books_of_owner(attacked: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    with session(attacked(OWNER)) as connection:
        yield connection


every_attack = pytest.mark.parametrize(("attack", "refusal"), ATTACKS.values(), ids=ATTACKS)


@every_attack
def test_the_application_is_refused(books: psycopg.Connection, attack: str, refusal: str) -> None:
    with pytest.raises(psycopg.Error, match=f"{refusal}|permission denied"):
        books.execute(attack.encode())


@every_attack
def test_the_owner_is_refused(
    books_of_owner: psycopg.Connection, attack: str, refusal: str
) -> None:
    with pytest.raises(psycopg.Error, match=refusal):
        books_of_owner.execute(attack.encode())


def test_what_is_right_is_taken(books_of_owner: psycopg.Connection) -> None:
    books = books_of_owner
    books.execute(transfer(2).encode())
    books.execute("UPDATE lot SET remaining = 0")
    books.execute("DELETE FROM stray")
    assert books.execute("SELECT count(*) FROM posting WHERE account_id = 0").fetchone() == (4,)


@pytest.mark.parametrize(
    "attack",
    [
        "CREATE TABLE mine (id bigint)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        (
            "CREATE OR REPLACE FUNCTION check_posted() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NULL; END'"
        ),
        (
            "CREATE TRIGGER mine BEFORE INSERT ON posting"
            " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        ),
        "ALTER TABLE posting DISABLE TRIGGER ALL",
        "ALTER TABLE posting DISABLE TRIGGER posting_append_only",
        "ALTER TABLE lot DROP CONSTRAINT lot_remaining_check",
        "DROP TRIGGER posting_belongs ON posting",
        "DROP TABLE posting",
        "DROP FUNCTION check_posted CASCADE",
        "SET session_replication_role = replica",
        "UPDATE event SET content = '{}'",
        "UPDATE event SET actor = 'nobody'",
        "UPDATE receipt_key SET content_hash = key_hash",
        "DELETE FROM account",
        "DELETE FROM card",
        "DELETE FROM lot",
        "DELETE FROM balance",
        "DELETE FROM request",
        "DELETE FROM suspension",
    ],
)
def test_the_application_changes_no_rule_and_no_history(
    books: psycopg.Connection, attack: str
) -> None:
    with pytest.raises((errors.InsufficientPrivilege, errors.DuplicateObject)):
        books.execute(attack.encode())


@pytest.mark.parametrize("attack", ["SET ROLE kantis_owner", "SET SESSION AUTHORIZATION postgres"])
def test_the_application_becomes_nobody_else(
    server: "Server", books: psycopg.Connection, attack: str
) -> None:
    if server.external_url is not None:
        pytest.skip("on a given server tests take their roles as its administrator")
    with pytest.raises(errors.InsufficientPrivilege):
        books.execute(attack.encode())


def test_the_application_puts_no_temporary_table_before_the_books(
    fresh_database: Callable[[str], str],
) -> None:
    # What a database allows is not copied from its template: granted here as migrations do.
    with psycopg.connect(fresh_database(OWNER), autocommit=True) as owner:
        owner.execute((SQL / "0001_grants.sql").read_text("utf-8").encode())
    with (
        psycopg.connect(fresh_database(APP)) as app,
        pytest.raises(errors.InsufficientPrivilege, match="temporary tables"),
    ):
        app.execute("CREATE TEMPORARY TABLE posting (LIKE public.posting)")
