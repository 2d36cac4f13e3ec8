"""What a till or a desk may see of a card and the account it stands for."""

from datetime import date, datetime

import psycopg
from msgspec import Struct

from kantis.core.answers import Balance, answer_of
from kantis.core.cards import account_at, why_not_usable
from kantis.core.refusals import CardUnknown
from kantis.core.step import caught_up
from kantis.db import accounts, programmes

NO_ACCOUNT = 0
"""An account that never is."""


class CardShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A card and where its account stands; no name. `why_not` is why it does not work now."""

    number: str
    kind: str
    role: str
    account_id: int
    usable: bool
    why_not: str = ""
    tier: str = ""
    tier_until: date | None = None
    next_tier: str = ""
    next_tier_on: date | None = None
    balances: dict[str, Balance] = {}


def look_at_card(
    connection: psycopg.Connection, *, programme: str, number: str, at: datetime
) -> CardShown:
    """Show a card of a programme at a moment; nothing is written and nothing locked.

    :raises CardUnknown:
    """
    with connection.transaction():
        terms = programmes.load(connection, programme)
        card = accounts.cards(connection, programme, [number]).get(number)
        account_id = None if card is None else account_at(card, at=at)
        # Also for no account: a card that there is not is looked for as long as one that is.
        found = accounts.read(connection, [account_id or NO_ACCOUNT])
        if card is None or account_id is None:
            raise CardUnknown(card=number)
        account = found[account_id]
    standing, decision = caught_up(terms, account.standing, at=at)
    seen = answer_of("", decision, standing)
    why_not = why_not_usable(terms.terms_at(at), card, at=at)
    if account.standing.left_at is not None:
        why_not = why_not or "membership-ended"
    return CardShown(
        number=card.number,
        kind=card.kind,
        role=card.role,
        account_id=account_id,
        usable=not why_not,
        why_not=why_not,
        tier=seen.tier,
        tier_until=seen.tier_until,
        next_tier=seen.next_tier,
        next_tier_on=seen.next_tier_on,
        balances=seen.balances,
    )
