"""Holds: an amount set aside at the till until its receipt captures it, or it is let go.

A capture is no operation of its own: the receipt names the hold in its payment and is booked
with it (`kantis.operations.sales`).
"""

import psycopg

from kantis.core.admission import Warrant
from kantis.core.answers import Answer
from kantis.core.events import Held, Released
from kantis.core.spending import admit_hold, admit_release
from kantis.db.journal import happen


def hold(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    held: Held,
    proof: str,
    warrant: Warrant,
) -> Answer:
    """Set an amount aside; it runs out by itself after the terms' `hold_seconds`.

    :raises Refusal: as `kantis.core.spending.authorize_spending`
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=held,
        warrant=warrant,
        decide=lambda terms, standing, asked: admit_hold(terms, standing, asked, proof=proof),
    )


def release(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    released: Released,
    warrant: Warrant,
) -> Answer:
    """Let a hold go.

    :raises HoldUnknown:
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=released,
        warrant=warrant,
        decide=lambda _, standing, asked: admit_release(standing, asked),
    )
