"""Holds: an amount set aside at the till until its receipt captures it, or it is let go.

A capture is no operation of its own: the receipt names the hold in its payment and is booked
with it (`kantis.operations.sales`).
"""

from datetime import datetime

import psycopg
from msgspec import Struct

from kantis.core.admission import Warrant
from kantis.core.answers import Answer
from kantis.core.events import Held, Released
from kantis.core.programme import Programme
from kantis.core.refusals import CardNotUsable
from kantis.core.spending import admit_hold, admit_release
from kantis.core.standing import Standing
from kantis.db.journal import happen


class CardRead(Struct, frozen=True):
    """The card that was read for a hold, and why it does not work now; empty if it does."""

    number: str
    why_not: str = ""


def hold(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    held: Held,
    proof: str,
    warrant: Warrant,
    card: CardRead | None = None,
    now: datetime | None = None,
) -> Answer:
    """Set an amount aside; it runs out by itself after the terms' `hold_seconds`.

    Asked again, its first answer is given again, whatever the card or the clock say by then.
    `now` is our own time if it is a till that says when.

    :raises TimeImpossible: the till's clock and ours are too far apart
    :raises CardNotUsable:
    :raises Refusal: as `kantis.core.spending.authorize_spending`
    """

    def admit(terms: Programme, standing: Standing, asked: Held) -> Held:
        if card is not None and card.why_not:
            raise CardNotUsable(card=card.number, why=card.why_not)
        return admit_hold(terms, standing, asked, proof=proof)

    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=held,
        warrant=warrant,
        decide=admit,
        now=now,
    )


def release(
    connection: psycopg.Connection,
    *,
    programme: str,
    account_id: int,
    released: Released,
    warrant: Warrant,
    now: datetime | None = None,
) -> Answer:
    """Let a hold go.

    :raises TimeImpossible: the till's clock and ours are too far apart
    :raises HoldUnknown:
    """
    return happen(
        connection,
        programme=programme,
        account_id=account_id,
        asked=released,
        warrant=warrant,
        decide=lambda _, standing, asked: admit_release(standing, asked),
        now=now,
    )
