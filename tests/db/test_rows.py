"""Row-level security: a session sees and books only what it speaks for, whatever the query."""

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from kantis.db.cluster import APP, OWNER
from kantis.db.connect import EVERY_PROGRAMME, connect, open_pool, speaking_for

if TYPE_CHECKING:
    from tests.conftest import Server

TWO_SHOPS = """
INSERT INTO programme VALUES ('{name}');
INSERT INTO account (account_id, programme, kind, standing, next_due_on)
VALUES ({no}, '{name}', 'person', '{{}}', '2024-04-01');
INSERT INTO card (card_number, programme, kind, role, issued_at)
VALUES ('444{no}', '{name}', 'card', 'main', now());
INSERT INTO card_link VALUES ('444{no}', now(), {no});
INSERT INTO card_change (card_number, change, at, actor, reason, approved_by)
VALUES ('444{no}', 'issued', now(), 'anna', '', '');
INSERT INTO event (account_id, event_no, kind, at, rank, key, content, decision, actor, recorded_at)
VALUES ({no}, 1, 'sale', now(), 2, 'receipt', '{{}}', '{{}}', 'till', now());
INSERT INTO receipt_key VALUES (sha256('stray{no}'), sha256('content'), NULL, NULL);
INSERT INTO stray (key_hash, programme, key, nothing, content, answer, recorded_at)
VALUES (sha256('stray{no}'), '{name}', 'stray', 'no-card', '{{}}', '{{}}', now());
INSERT INTO request VALUES ('{name}', 'request', sha256('content'), '{{}}', now());
WITH transfers AS (
    INSERT INTO transfer VALUES ({no}, 1, 1, 'earned', 'S-5', 'bonus', 'shop', '2024-03-04', false,
                                 2, now())
)
INSERT INTO posting VALUES
    ({no}, 1, 1, 'member', 100, '2029-03-04', '2024-03-04', '2024-03-04'),
    ({no}, 1, 2, 'issued', -100, NULL, NULL, NULL);
INSERT INTO lot VALUES ({no}, 'bonus', '2029-03-04', '2024-03-04', '2024-03-04', 100);
INSERT INTO balance VALUES ({no}, 'bonus', 100, 0);
INSERT INTO card_order VALUES ({no}, 1, 1, 'black', 'main', 1, 'K-3', '2024-03-04');
INSERT INTO tier_change VALUES ({no}, '2024-03-04', 1, '', 'silver', '2025-01-01', 'S-4');
INSERT INTO review VALUES ({no}, '2024-03-01', 'silver');
INSERT INTO snapshot VALUES ({no}, '2024-03-01', '{{}}');
INSERT INTO capture VALUES ({no}, 'hold', 1);
INSERT INTO seal VALUES ({no}, sha256('seal{no}'), 1, now());
INSERT INTO account_seal VALUES ({no}, {no}, 1, sha256('x'));
"""

FREE = {
    "programme": "names only",
    "terms_version": "published conditions",
    "suspension": "published too",
    "store": "names only",
    "till_token": "hashes, looked up before it is known for whom one speaks",
    "receipt_key": "hashes",
    "refused": "hashes and codes",
    "seal": "hashes",
    "miss": "counters",
}
"""Tables whose rows every session sees, and why."""


@pytest.fixture(scope="module")
def shops(server: "Server", worker_id: str) -> Iterator[Callable[[str], str]]:
    """Give a database with one member each of the programmes north and south."""
    name = f"{worker_id}-rows"
    server.create(name, template=server.database("template"))
    with connect(server.url(OWNER, server.database(name))) as owner:
        for no, programme in ((1, "north"), (2, "south")):
            owner.execute(TWO_SHOPS.format(no=no, name=programme).encode())
    yield lambda role: server.url(role, server.database(name))
    server.drop(name)


def guarded(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND relname !~ '^(django|procrastinate)_'"
    ).fetchall()
    return sorted({name for (name,) in rows} - FREE.keys())


def counts(connection: psycopg.Connection) -> dict[str, int]:
    """Count the rows seen with no check of ours: what a forgotten condition would give away."""
    found = {}
    for table in guarded(connection):
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()  # noqa: S608
        assert row is not None
        found[table] = row[0]
    return found


@pytest.mark.parametrize("role", [APP, OWNER])
def test_a_session_sees_the_rows_of_the_programme_that_it_speaks_for(
    shops: Callable[[str], str], role: str
) -> None:
    with open_pool(shops(role), size=1) as pool:
        with pool.connection() as unset:
            assert set(counts(unset).values()) == {0}
        with pool.connection() as north:
            own = counts(speaking_for(north, "north"))
            assert set(own.values()) == {1, 2}
            assert north.execute("SELECT account_id FROM posting GROUP BY 1").fetchall() == [(1,)]
        with pool.connection() as unset_again:
            assert set(counts(unset_again).values()) == {0}
        with pool.connection() as nowhere:
            assert set(counts(speaking_for(nowhere, "")).values()) == {0}
    with connect(shops(role)) as everything:
        assert counts(everything) == {table: 2 * count for table, count in own.items()}


def test_every_guarded_table_holds_its_owner_too(shops: Callable[[str], str]) -> None:
    with connect(shops(APP)) as connection:
        rows = connection.execute(
            "SELECT relname, relrowsecurity AND relforcerowsecurity FROM pg_class"
            " WHERE relname = ANY(%s) AND relnamespace = 'public'::regnamespace",
            [guarded(connection)],
        ).fetchall()
        assert dict(rows) == dict.fromkeys(guarded(connection), True)


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE card SET blocked_at = now() WHERE card_number = '4442'",
        "UPDATE account SET next_due_on = '2024-01-01' WHERE account_id = 2",
        "UPDATE stray SET nothing = 'too-late'",
    ],
)
def test_what_is_not_seen_is_not_changed(shops: Callable[[str], str], attack: str) -> None:
    with open_pool(shops(APP), size=1) as pool, pool.connection() as north:
        speaking_for(north, "north")
        with north.transaction(force_rollback=True):
            changed = north.execute(attack.encode())
            assert changed.rowcount == (1 if "stray" in attack else 0)


@pytest.mark.parametrize(
    "attack",
    [
        "INSERT INTO card VALUES ('5555', 'south', 'card', 'main', now())",
        "INSERT INTO card_link VALUES ('4442', now() + interval '1 day', 1)",
        "INSERT INTO request VALUES ('south', 'other', sha256('x'), '{}', now())",
        (
            "INSERT INTO account (programme, kind, standing, next_due_on)"
            " VALUES ('south', 'person', '{}', '2024-04-01')"
        ),
    ],
)
def test_nothing_is_added_elsewhere(shops: Callable[[str], str], attack: str) -> None:
    with (
        open_pool(shops(APP), size=1) as pool,
        pool.connection() as north,
        pytest.raises(errors.InsufficientPrivilege, match="row-level security"),
    ):
        speaking_for(north, "north").execute(attack.encode())


OF_ACCOUNTS = [
    *("accounts", "events", "transfers", "receipt_keys", "card_orders", "tier_changes"),
    *("reviews", "snapshots", "captures", "decisions", "forgotten", "placed"),
]
BOTH = '[{"account_id": 1}, {"account_id": 2, "programme": "north"}]'
MOVED = '"standing": 1, "last_event": 1, "last_transfer": 1, "next_due_on": "2024-04-01"'
BOOKED = {f"{table}_in": BOTH for table in OF_ACCOUNTS} | {
    "accounts_in": f'[{{"account_id": 1, {MOVED}}}, {{"account_id": 2, {MOVED}}}]',
    "strays_in": '[{"key_hash": "00", "programme": "south"}]',
}


def test_all_that_is_booked_is_looked_at_but_postings_and_refusals(
    shops: Callable[[str], str],
) -> None:
    with connect(shops(APP)) as connection:
        names = connection.execute(
            "SELECT unnest(proargnames) FROM pg_proc WHERE proname = 'book'"
        ).fetchall()
    bare = {"now_in", "documents_in", "postings_in", "refused_in"}
    assert {name for (name,) in names} == BOOKED.keys() | bare


def book(session: psycopg.Connection, parameter: str, rows: str) -> None:
    """Book rows of one table and nothing else."""
    names = session.execute(
        "SELECT unnest(proargnames) FROM pg_proc WHERE proname = 'book'"
    ).fetchall()
    given = {parameter: rows, "now_in": "2024-03-04", "documents_in": "{}"}
    values = [given.get(name) for (name,) in names]
    session.execute(f"SELECT book({', '.join(['%s'] * len(values))})".encode(), values)


@pytest.mark.parametrize(("parameter", "rows"), BOOKED.items(), ids=BOOKED)
def test_booking_elsewhere_is_refused(
    shops: Callable[[str], str], parameter: str, rows: str
) -> None:
    with open_pool(shops(APP), size=1) as pool, pool.connection() as north:
        speaking_for(north, "north")
        with pytest.raises(errors.InsufficientPrivilege, match="speaks for another programme"):
            book(north, parameter, rows)
        # And the session speaks for no more than before.
        assert counts(north)["account"] == 1


def test_nothing_is_looked_up_elsewhere(shops: Callable[[str], str]) -> None:
    look_up = "SELECT look_up(%s, %s, NULL, NULL, NULL, now(), false)::text"
    with open_pool(shops(APP), size=1) as pool, pool.connection() as north:
        with pytest.raises(errors.InsufficientPrivilege, match="speaks for another programme"):
            north.execute(look_up, ["north", '["4441"]'])
        speaking_for(north, "north")
        with pytest.raises(errors.InsufficientPrivilege, match="speaks for another programme"):
            north.execute(look_up, ["south", '["4442"]'])
        ((own,),) = north.execute(look_up, ["north", '["4441"]']).fetchall()
        ((other,),) = north.execute(look_up, ["north", '["4442"]']).fetchall()
        # And the session speaks for no more than before.
        assert counts(north)["account"] == 1
    assert "4441" in own
    assert "444" not in other


def test_anothers_stray_is_not_taken_in_by_its_key(shops: Callable[[str], str]) -> None:
    stolen = (
        '[{"account_id": 1, "event_no": 1, "key_hash":'
        f' "{hashlib.sha256(b"stray2").hexdigest()}"}}]'
    )
    with open_pool(shops(APP), size=1) as pool, pool.connection() as north:
        book(speaking_for(north, "north"), "placed_in", stolen)
    with connect(shops(APP)) as everything:
        assert counts(everything)["stray"] == 2
        led = everything.execute(
            "SELECT account_id FROM receipt_key WHERE key_hash = sha256('stray2')"
        ).fetchone()
        assert led == (None,)


def test_a_hundred_thousand_tries_find_no_foreign_row(shops: Callable[[str], str]) -> None:
    with open_pool(shops(APP), size=1) as pool, pool.connection() as north:
        ((found,),) = (
            speaking_for(north, "north")
            .execute(
                "SELECT count(*) FROM generate_series(1, 100000) no"
                " JOIN LATERAL (SELECT FROM account WHERE account_id = no AND no <> 1"
                " UNION ALL SELECT FROM event WHERE account_id = no AND no <> 1) f ON true"
            )
            .fetchall()
        )
        assert found == 0


def test_an_operator_sees_every_programme(shops: Callable[[str], str]) -> None:
    with open_pool(shops(APP), size=1, sees=EVERY_PROGRAMME) as pool:
        for _ in range(2):
            with pool.connection() as operator:
                assert counts(operator)["account"] == 2
