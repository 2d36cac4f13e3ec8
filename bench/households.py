"""A programme's stores, tills and households: a few made by Kantis, the others copies of them."""

import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString

import psycopg
from psycopg import sql

from bench import shop
from bench.place import ROOT, Database
from kantis.core.admission import Applicant, Warrant
from kantis.core.receipt import Line, Receipt
from kantis.core.refusals import Refusal
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.folder import Folder
from kantis.operations import members, publishing, sales

PROGRAMME = "kplussa"

FOLDER = Folder(ROOT / "programmes" / PROGRAMME)

CHAIN = "food"

MODELS = 100
"""Households that the operations make; each fifth of them is a best customer."""

MONTHS = 13
"""Months in which each has bought something, this one included."""

_BY = Warrant("bench", "to be measured")

_JOINED_BEFORE = timedelta(days=420)

_COPIES_FROM = 10**9
"""Copies' accounts have numbers from here on, those that Kantis opened are below."""


def open_stores(database: Database) -> list[str]:
    """Publish the programme's full terms and open the stores; give each store's token."""
    now = datetime.now(UTC)
    tokens = [secrets.token_urlsafe(16) for _ in shop.STORES]
    with connect(database.url) as connection:
        for source in FOLDER.sources:
            publishing.publish_terms(connection, source=source, at=now, by=_BY.actor)
        for store, token in zip(shop.STORES, tokens, strict=True):
            publishing.add_store(connection, programme=PROGRAMME, store=Store(store, CHAIN))
            publishing.add_till(
                connection,
                programme=PROGRAMME,
                store=store,
                label="bench",
                kind="till",
                token=token,
                at=now,
            )
    return tokens


def make_models(database: Database) -> None:
    """Enrol households that have bought something in each of the last months."""
    now = datetime.now(UTC)
    with connect(database.url) as connection, connection.transaction():
        for model in range(MODELS):
            members.enrol(
                connection,
                programme=PROGRAMME,
                application=members.Application(
                    applicant=Applicant(born_on=date(1980, 1, 1)),
                    card_kind="plussa",
                    card_number=_model_card(model),
                ),
                request_key=f"bench/{model}",
                at=now - _JOINED_BEFORE,
                warrant=_BY,
            )
        results = sales.record_receipts(
            connection,
            programme=PROGRAMME,
            receipts=list(_purchases(now)),
            now=now,
            warrant=_BY,
        )
    refused = [result for result in results if isinstance(result, Refusal)]
    assert not refused, f"the models buy what the programme takes: {refused[:1]}"


def _purchases(now: datetime) -> Iterator[Receipt]:
    for month in reversed(range(MONTHS)):
        at = now - timedelta(days=30 * month, minutes=1)
        for model in range(MODELS):
            amount_minor = 70_000 if model % 5 == 0 else 4_000 + 100 * model
            yield Receipt(
                store=shop.STORES[0],
                till="before",
                business_day=at.date(),
                number=str(MODELS * month + model),
                at=at,
                currency="EUR",
                total_minor=amount_minor,
                lines=(Line(amount_minor, "grocery"),),
                card=_model_card(model),
            )


def _model_card(model: int) -> str:
    return str(shop.FIRST_CARD - MODELS + model)


def copy_households(database: Database, *, first: int, until: int, bare: bool) -> None:
    """Make the households `first` to before `until` as copies of those that Kantis opened.

    They come with cards, first and latest event, latest transfer, lots and balances; `bare`
    ones with no more than the calendar needs. All come in one transaction.
    """
    with psycopg.connect(database.superuser_url, autocommit=True) as connection:
        with connection.transaction():
            # What is copied is whole and balanced already; the triggers would look at each row.
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(
                "CREATE TEMP TABLE model ON COMMIT DROP AS"
                " SELECT row_number() OVER (ORDER BY account_id) - 1 AS place, account_id,"
                " last_event AS latest_event, last_transfer AS latest_transfer"
                " FROM account WHERE account_id < %s",
                [_COPIES_FROM],
            )
            connection.execute("ANALYZE model")
            for table, columns in _tables(connection).items():
                if (kept := _kept(table, columns, bare=bare)) is not None:
                    _choose(connection, table, kept)
                    _copy(connection, table, columns, bare=bare, first=first, until=until)
        connection.execute("VACUUM (ANALYZE)")
    database.checkpoint()


def _tables(connection: psycopg.Connection) -> dict[str, list[str]]:
    """Give the columns of each table that says something of accounts, and of cards."""
    rows = connection.execute("""
        SELECT c.relname, array_agg(a.attname ORDER BY a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
          AND a.attgenerated = ''
        GROUP BY c.relname
        HAVING 'account_id' = ANY(array_agg(a.attname)) OR c.relname = 'card'
    """).fetchall()
    return dict(rows)


def _kept(table: str, columns: list[str], *, bare: bool) -> LiteralString | None:
    """Say which rows `t` of a model `m` are copied; None for none at all."""
    if bare:
        if table == "event":
            return "t.event_no = 1"
        counted = {"event_no", "transfer_no", "month_on", "card_number"}
        return None if counted & set(columns) else "true"
    if "transfer_no" in columns:
        return "t.transfer_no = m.latest_transfer"
    if "event_no" in columns:
        return "t.event_no IN (1, m.latest_event)"
    if "month_on" in columns:
        return "t.month_on >= date_trunc('month', now())::date"
    return "true"


_NEW: dict[str, LiteralString] = {
    "account_id": "%(copies_from)s::bigint + c.n",
    "card_number": "(%(first_card)s::bigint + c.n)::text",
    "key_hash": "sha256(convert_to(concat_ws('/', 'copy', c.n, t.event_no), 'UTF8'))",
}
"""What a copy has instead, by the name of the column."""

_NEW_IF_BARE: dict[str, LiteralString] = {"event_no": "t.latest_event"}
"""A single event stands for all, under the number of the latest."""


def _choose(connection: psycopg.Connection, table: str, kept: LiteralString) -> None:
    """Put those rows of the models that are copied into a table of their own."""
    of_model: LiteralString = "{table} t USING (account_id)"
    if table == "card":
        of_model = "card_link USING (account_id) JOIN card t USING (card_number)"
    connection.execute("DROP TABLE IF EXISTS chosen")
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE chosen ON COMMIT DROP AS"
            " SELECT m.place, m.latest_event, t.* FROM model m JOIN {} WHERE {}"
        ).format(sql.SQL(of_model).format(table=sql.Identifier(table)), sql.SQL(kept))
    )
    connection.execute("ANALYZE chosen")


def _copy(
    connection: psycopg.Connection,
    table: str,
    columns: list[str],
    *,
    bare: bool,
    first: int,
    until: int,
) -> None:
    """Copy what was chosen; the models take turns."""
    new = _NEW | _NEW_IF_BARE if bare else _NEW
    connection.execute(
        sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT {values}"
            " FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS c(n)"
            " JOIN chosen t ON t.place = c.n %% (SELECT count(*) FROM model)"
        ).format(
            table=sql.Identifier(table),
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            values=sql.SQL(", ").join(
                sql.SQL(new[column]) if column in new else sql.Identifier("t", column)
                for column in columns
            ),
        ),
        {
            "copies_from": _COPIES_FROM,
            "first_card": shop.FIRST_CARD,
            "first": first,
            "last": until - 1,
        },
    )
