"""Who asks for cards or tokens that there are not: counted, and kept from guessing on.

A known card is never counted: asking for it writes nothing.
"""

from datetime import datetime

import psycopg
from msgspec import Struct

from kantis.db import misses, programmes
from kantis.db.misses import Counted, Limit
from kantis.db.programmes import Token

MINUTE = 60
HOUR = 3600

STORE_TIMES = 4
"""How many times what one till may do all tills of a store may do together."""

PROGRAMME_TIMES = 100
"""The same for a programme. Beyond it nothing is refused, only told to the operator: otherwise
whoever guesses could stop every till of a chain."""


class Limits(Struct, frozen=True, kw_only=True):
    """How many misses are answered in a minute and in an hour before no more are."""

    unknown_cards_per_minute: int = 30
    unknown_cards_per_hour: int = 300
    wrong_tokens_per_minute: int = 60


class Misses(Struct, frozen=True):
    """Misses after they were counted: until when nothing is told, and which windows they filled."""

    untold_until: datetime | None
    filled: tuple[Counted, ...]


def recognize(connection: psycopg.Connection, *, token_hash: bytes, at: datetime) -> Token | None:
    """Give what a token stands for, if it is known and not revoked, and whether it guesses."""
    return programmes.find_token(connection, token_hash, at=at)


def count_unknown_cards(
    connection: psycopg.Connection, *, token: Token, number: int, at: datetime, limits: Limits
) -> Misses:
    """Count unknown cards that a token asked for, for itself, its store and its programme."""
    asked = (
        (token.asker, 1, True),
        (programmes.store_asker(token.programme, token.store), STORE_TIMES, True),
        (f"programme/{token.programme}", PROGRAMME_TIMES, False),
    )
    each = {MINUTE: limits.unknown_cards_per_minute, HOUR: limits.unknown_cards_per_hour}
    # One statement is a transaction of its own, and whoever missed waits no longer than it.
    counted = misses.count(
        connection,
        [
            Limit(asker, seconds, allowed * times, refuses)
            for asker, times, refuses in asked
            for seconds, allowed in each.items()
        ],
        number=number,
        at=at,
    )
    return _judged(counted)


def count_wrong_token(
    connection: psycopg.Connection, *, address: str, at: datetime, limits: Limits
) -> Misses:
    """Count a token that nobody was given, for the address that it came from."""
    limit = Limit(f"address/{address}", MINUTE, limits.wrong_tokens_per_minute)
    with connection.transaction():
        if (until := misses.full_until(connection, limit.asker, at=at)) is not None:
            return Misses(until, ())
        return _judged(misses.count(connection, [limit], number=1, at=at))


def _judged(counted: list[Counted]) -> Misses:
    over = [one.ends_at for one in counted if one.limit.refuses and one.misses > one.limit.allowed]
    return Misses(max(over, default=None), tuple(one for one in counted if one.filled))
