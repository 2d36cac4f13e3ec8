"""What the books come to: questions over many accounts."""

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import psycopg

from kantis.core.periods import month_label, month_of
from kantis.core.totals import Totals


def account_ids(connection: psycopg.Connection, programme: str) -> Iterator[int]:
    """Give all accounts of a programme in order."""
    rows = connection.execute(
        "SELECT account_id FROM account WHERE programme = %s ORDER BY account_id", [programme]
    ).fetchall()
    return (account_id for (account_id,) in rows)


def totals(connection: psycopg.Connection, programme: str, *, on: date) -> Totals:
    """Give what the database holds of a programme, in the same terms as a replay."""

    def ask(query: str, *before: object) -> list[tuple[Any, ...]]:
        return connection.execute(query, [*before, programme]).fetchall()

    found = Totals()
    ((found.accounts, found.cards_ordered),) = ask(
        "SELECT count(DISTINCT account_id), coalesce(sum(count), 0)"
        " FROM account LEFT JOIN card_order USING (account_id) WHERE programme = %s"
    )
    ((found.receipts, found.lines, found.receipts_earning, found.fees_minor),) = ask(
        "SELECT count(*), coalesce(sum(json_array_length(content #> '{receipt,lines}')), 0),"
        " count(*) FILTER (WHERE json_array_length(decision -> 'earned') > 0),"
        " coalesce(sum((SELECT sum((fee ->> 'amount_minor')::bigint)"
        "     FROM json_array_elements(decision -> 'fees') fee)), 0)::bigint"
        " FROM event JOIN account USING (account_id) WHERE programme = %s AND event.kind = 'sale'"
    )
    for kind, unit, clause, value_on, amount in ask(
        "SELECT t.kind, t.unit, t.clause, date_trunc('month', value_on)::date,"
        " sum(amount)::bigint FROM transfer t JOIN posting USING (account_id, transfer_no)"
        " JOIN account USING (account_id) WHERE programme = %s AND book IN ('member', 'debt')"
        " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    ):
        found.count_moved(kind, unit, clause, value_on, amount)
    for old, new, from_on, times in ask(
        "SELECT old, new, from_on, count(*) FROM tier_change JOIN account USING (account_id)"
        " WHERE programme = %s GROUP BY 1, 2, 3"
    ):
        found.count_tier_change(old, new, from_on, times)
    for month_on, count in ask(
        "SELECT month_on, count(*) FROM review JOIN account USING (account_id)"
        " WHERE programme = %s GROUP BY 1 ORDER BY 1"
    ):
        found.reviewed[month_label(month_of(month_on))] = count
    for unit, pending, amount in ask(
        "SELECT unit, valid_from > %s, sum(remaining)::bigint FROM account"
        " JOIN lot USING (account_id) WHERE programme = %s AND remaining > 0 GROUP BY 1, 2",
        on,
    ):
        (found.pending if pending else found.outstanding)[unit] = amount
    for unit, debt in ask(
        "SELECT unit, sum(debt)::bigint FROM balance JOIN account USING (account_id)"
        " WHERE programme = %s AND debt > 0 GROUP BY 1"
    ):
        found.debts[unit] = debt
    return found


def busiest(connection: psycopg.Connection, programme: str) -> tuple[int, int, int] | None:
    """Give the account with the most receipts, how many they are and what they come to."""
    row = connection.execute(
        "SELECT account_id, count(*), sum((content #>> '{receipt,total_minor}')::bigint)::bigint"
        " FROM event JOIN account USING (account_id) WHERE programme = %s AND event.kind = 'sale'"
        " GROUP BY account_id ORDER BY 2 DESC, 1 LIMIT 1",
        [programme],
    ).fetchone()
    return None if row is None else (row[0], row[1], row[2])


def receipt_numbers(connection: psycopg.Connection, account_id: int, *, limit: int) -> list[str]:
    """Give the keys of an account's latest receipts, the latest first."""
    rows = connection.execute(
        "SELECT key FROM event WHERE account_id = %s AND kind = 'sale' ORDER BY at DESC LIMIT %s",
        [account_id, limit],
    ).fetchall()
    return [key for (key,) in rows]


def last_event_at(connection: psycopg.Connection, programme: str) -> datetime | None:
    """Give the instant of the latest event of a programme."""
    row = connection.execute(
        "SELECT max(at) FROM event JOIN account USING (account_id) WHERE programme = %s",
        [programme],
    ).fetchone()
    return None if row is None else row[0]
