"""The schema can be distributed by account: every hot table carries `account_id` in every key."""

import psycopg

REFERENCE_TABLES = {
    "programme": "a handful of rows, on every node",
    "terms_version": "the same",
    "suspension": "the same",
    "store": "the same: thousands at most",
    "till_token": "looked up before the account is known",
    "card": "a card read leads to its account, so it cannot lie with it",
    "card_link": "the same",
    "card_change": "the same",
    "receipt_key": "one receipt under two cards books once, whatever the accounts",
    "refused": "a refusal has no account to lie with: the key may be another's",
    "seal": "one row for all accounts, sealed off the hot path",
    "stray": "stands for no account yet",
    "miss": "counts askers, who asked for what there is not",
    "request": "its key is used before there is an account",
}
"""Tables whose keys don't hold `account_id`, and why."""

OTHERS = ("django_", "procrastinate_")
"""Tables of libraries: jobs and logins, none of them per account."""

KEYS = """
SELECT t.relname, i.relname, array_agg(a.attname::text)
FROM pg_index x JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = ANY (x.indkey::int2[])
WHERE t.relnamespace = 'public'::regnamespace AND x.indisunique
GROUP BY t.relname, i.relname ORDER BY 1, 2
"""
TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
"""


def hot(database_url: str) -> tuple[set[str], list[tuple[str, str, list[str]]]]:
    """Give the tables distributed by account, and all their unique keys."""
    with psycopg.connect(database_url) as connection:
        tables = {
            name
            for (name,) in connection.execute(TABLES).fetchall()
            if not name.startswith(OTHERS) and name not in REFERENCE_TABLES
        }
        keys = [key for key in connection.execute(KEYS).fetchall() if key[0] in tables]
    return tables, keys


def test_every_key_of_a_hot_table_holds_the_account(database_url: str) -> None:
    tables, keys = hot(database_url)
    assert {"account", "event", "transfer", "posting", "lot", "balance"} <= tables
    assert {table for table, _, _ in keys} == tables
    assert [(table, key) for table, key, columns in keys if "account_id" not in columns] == []


def test_every_reference_table_is_there_and_is_none_by_account(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = {name for (name,) in connection.execute(TABLES).fetchall()}
        keys = {
            (table, column)
            for table, _, columns in connection.execute(KEYS).fetchall()
            for column in columns
        }
    assert REFERENCE_TABLES.keys() <= tables
    assert [table for table in REFERENCE_TABLES if (table, "account_id") in keys] == []


def test_foreign_keys_of_hot_tables_stay_on_the_account_or_lead_to_reference_tables(
    database_url: str,
) -> None:
    tables, _ = hot(database_url)
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT conrelid::regclass::text, confrelid::regclass::text,"
            " array_agg(a.attname::text) FROM pg_constraint"
            " JOIN pg_attribute a ON attrelid = conrelid AND attnum = ANY (conkey)"
            " WHERE contype = 'f' GROUP BY pg_constraint.oid, conrelid, confrelid"
        ).fetchall()
    crossing = [
        (table, other)
        for table, other, columns in found
        if table in tables and other in tables and "account_id" not in columns
    ]
    assert crossing == []
