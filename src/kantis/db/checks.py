"""Whether the books are right, as far as the database alone can tell."""

from datetime import datetime

import psycopg

CHECKS = {
    "every transfer is whole and sums to zero": """
        SELECT account_id, transfer_no, p.total, p.postings
        FROM transfer t FULL JOIN (
            SELECT account_id, transfer_no, sum(amount) AS total, count(*) AS postings
            FROM posting GROUP BY account_id, transfer_no
        ) p USING (account_id, transfer_no)
        WHERE p.total IS DISTINCT FROM 0 OR p.postings IS DISTINCT FROM t.postings""",
    "no transfer and no event is missing": """
        SELECT account_id, last_transfer, t.count, last_event, e.count
        FROM account
        LEFT JOIN (SELECT account_id, count(*) FROM transfer GROUP BY account_id) t
            USING (account_id)
        LEFT JOIN (SELECT account_id, count(*) FROM event GROUP BY account_id) e
            USING (account_id)
        WHERE last_transfer <> coalesce(t.count, 0) OR last_event <> coalesce(e.count, 0)""",
    "every lot and every debt is what was posted to it": """
        SELECT account_id, unit, valid_until, earned_on, valid_from, sum(amount) FROM (
            SELECT account_id, unit, valid_until, earned_on, valid_from, amount
            FROM posting JOIN transfer USING (account_id, transfer_no)
            WHERE book IN ('member', 'debt')
            UNION ALL
            SELECT account_id, unit, valid_until, earned_on, valid_from, -remaining FROM lot
            UNION ALL
            SELECT account_id, unit, NULL, NULL, NULL, debt FROM balance
        ) kept
        GROUP BY account_id, unit, valid_until, earned_on, valid_from
        HAVING sum(amount) <> 0""",
    "every balance is its lots less its debt": """
        SELECT account_id, unit, balance, coalesce(lots, 0), debt
        FROM balance FULL JOIN (
            SELECT account_id, unit, sum(remaining) AS lots FROM lot GROUP BY account_id, unit
        ) l USING (account_id, unit)
        WHERE coalesce(balance, 0) <> coalesce(lots, 0) - coalesce(debt, 0)""",
    "no account has both lots and debt in a unit": """
        SELECT account_id, unit, debt FROM balance b WHERE debt > 0 AND EXISTS (
            SELECT FROM lot l WHERE l.account_id = b.account_id AND l.unit = b.unit
            AND remaining > 0)""",
    "every tier follows from the one before": """
        SELECT account_id, from_on, old, before FROM (
            SELECT account_id, from_on, old, coalesce(lag(new) OVER (
                PARTITION BY account_id ORDER BY from_on, change_no), '') AS before
            FROM tier_change
        ) c WHERE old <> before""",
    "every receipt key leads to its receipt": """
        SELECT encode(k.key_hash, 'hex') FROM receipt_key k
        LEFT JOIN event e USING (account_id, event_no) LEFT JOIN stray s USING (key_hash)
        WHERE (e.account_id IS NULL) = (s.key_hash IS NULL)""",
    "everything is as it was sealed": """
        SELECT account_id, seal_no FROM (
            SELECT account_id, seal_no, last_transfer, hash, lag(hash) OVER chain AS before,
                   coalesce(lag(last_transfer) OVER chain, 0) AS after_transfer
            FROM account_seal
            WINDOW chain AS (PARTITION BY account_id ORDER BY seal_no)
        ) s
        WHERE hash IS DISTINCT FROM
            sealed_hash(before, account_id, after_transfer, last_transfer)""",
    "every seal follows from the one before": """
        SELECT seal_no FROM (
            SELECT seal_no, hash, transfers, sealed_at,
                   lag(hash) OVER (ORDER BY seal_no) AS before,
                   row_number() OVER (ORDER BY seal_no) AS place
            FROM seal
        ) s
        LEFT JOIN (
            SELECT seal_no, string_agg(hash, '' ORDER BY account_id) AS hashes
            FROM account_seal GROUP BY seal_no
        ) a USING (seal_no)
        WHERE seal_no <> place OR hash IS DISTINCT FROM
            seal_hash(before, transfers, sealed_at, hashes)""",
}
"""Each finds the rows that contradict its name; all must find none."""


def contradictions(
    connection: psycopg.Connection, query: str, *, limit: int = 10
) -> list[tuple[object, ...]]:
    """Give the first rows that contradict a check, within a transaction of the caller's."""
    # Memory for sums over all postings. Row-level security hides from the planner that a check
    # reads everything: left to itself it looks each transfer's postings up, one by one.
    connection.execute(
        "SELECT set_config('work_mem', '256MB', true), set_config('enable_nestloop', 'off', true),"
        " set_config('jit', 'off', true)"
    )
    return connection.execute(f"SELECT * FROM ({query}) q LIMIT {limit}").fetchall()  # noqa: S608


def seal(connection: psycopg.Connection, *, at: datetime) -> int | None:
    """Seal what was posted since the last seal; give the new seal's number, None if nothing was."""
    row = connection.execute("SELECT seal_books(%s)", [at]).fetchone()
    assert row is not None, "a function gives a row"
    number: int | None = row[0]
    return number


def head(connection: psycopg.Connection) -> tuple[int, bytes] | None:
    """Give the latest seal: its number and its hash."""
    row = connection.execute(
        "SELECT seal_no, hash FROM seal ORDER BY seal_no DESC LIMIT 1"
    ).fetchone()
    return None if row is None else (row[0], bytes(row[1]))


def has_seal(connection: psycopg.Connection, number: int, digest: bytes) -> bool:
    """Tell whether a seal that was kept elsewhere is among ours."""
    row = connection.execute(
        "SELECT FROM seal WHERE seal_no = %s AND hash = %s", [number, digest]
    ).fetchone()
    return row is not None
