"""Published terms, suspensions, stores and tokens."""

from collections.abc import Iterable
from datetime import date, datetime
from hashlib import sha256

import psycopg
from msgspec import Struct

from kantis.core.periods import Period
from kantis.core.programme import Programme
from kantis.core.refusals import StoreUnknown, TermsAlreadyPublished, TermsNotInForce, TermsTooLate
from kantis.core.terms import Terms
from kantis.core.terms_text import read_terms


class Store(Struct, frozen=True):
    """A store: its chain is what terms select by, its entity the legal one that runs it."""

    store: str
    chain: str = ""
    entity: str = ""


class Token(Struct, frozen=True):
    """What a token lets its bearer do: speak for one store of one programme.

    A `till` asks what tills ask; `staff` at a desk also enrol, grant and end. `asker` is what its
    misses are counted by; until `untold_until` it is told nothing of cards, having guessed too
    often (`kantis.operations.limits`).
    """

    programme: str
    store: str
    label: str
    kind: str
    asker: str
    untold_until: datetime | None = None


class KnownToken(Struct, frozen=True):
    """What may be shown of a token: whose it is and how long it was good. Never its hash."""

    programme: str
    store: str
    label: str
    kind: str
    created_at: datetime
    revoked_at: datetime | None


HOLD = 1
"""The kind of advisory lock that `hold_still` and publishing share."""

_cache: dict[str, tuple[tuple[object, ...], Programme]] = {}
"""Programmes made ready, by name, with what they were made from.

The revision alone would not do: one that was rolled back comes again with other content.
"""


def hold_still(connection: psycopg.Connection, name: str) -> None:
    """Keep a programme's terms and suspensions as they are until this transaction ends.

    Bookings share this lock and publishing takes it alone. It comes before every other
    lock, and in a statement of its own: what is read afterwards is what was waited for.
    """
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s, hashtext(%s))", [HOLD, name])


def load(connection: psycopg.Connection, name: str) -> Programme:
    """Give a programme with all its versions and suspensions; made ready once per revision.

    :raises TermsNotInForce: when nothing of that name is published
    """
    row = connection.execute(
        "SELECT terms, revision, suspensions FROM programme_mark(%s)", [name]
    ).fetchone()
    return ready(connection, name, row or (None, None, None))


def ready(connection: psycopg.Connection, name: str, mark: tuple[object, ...]) -> Programme:
    """Give the programme that has just been found with this mark: terms, revision, suspensions.

    :raises TermsNotInForce: when nothing of that name is published
    """
    if mark[0] is None:
        raise TermsNotInForce(programme=name)
    if (cached := _cache.get(name)) is not None and cached[0] == mark:
        return cached[1]
    programme = _read(connection, name)
    _cache[name] = (mark, programme)
    return programme


def _read(connection: psycopg.Connection, name: str) -> Programme:
    suspensions = connection.execute(
        "SELECT start_on, end_on FROM suspension WHERE programme = %s", [name]
    ).fetchall()
    return Programme(versions(connection, name), (Period(*row) for row in suspensions))


def versions(connection: psycopg.Connection, name: str) -> list[Terms]:
    """Give all published versions of a programme's terms."""
    rows = connection.execute(
        "SELECT source FROM terms_version WHERE programme = %s ORDER BY valid_from", [name]
    ).fetchall()
    return [read_terms(source) for (source,) in rows]


def names(connection: psycopg.Connection) -> list[str]:
    """Name the programmes that have published terms."""
    rows = connection.execute("SELECT DISTINCT programme FROM terms_version ORDER BY 1").fetchall()
    return [name for (name,) in rows]


def publish(
    connection: psycopg.Connection,
    *,
    programme: str,
    valid_from: date,
    source: str,
    at: datetime,
    by: str,
) -> bool:
    """Keep a version for ever; give whether it is new. Accounts look at it when it begins.

    :raises TermsAlreadyPublished: the day has other terms already
    :raises TermsTooLate: an account has lived through the day under the terms before
    """
    connection.execute(
        "INSERT INTO programme (programme) VALUES (%s) ON CONFLICT DO NOTHING", [programme]
    )
    change_alone(connection, programme)
    digest = sha256(source.encode()).digest()
    row = connection.execute(
        "SELECT hash FROM terms_version WHERE programme = %s AND valid_from = %s",
        [programme, valid_from],
    ).fetchone()
    if row is not None:
        if bytes(row[0]) != digest:
            raise TermsAlreadyPublished(programme=programme, valid_from=valid_from)
        return False
    passed_on = lived_through(connection, programme)
    if passed_on is not None and passed_on >= valid_from:
        raise TermsTooLate(valid_from=valid_from, passed_on=passed_on)
    connection.execute(
        "INSERT INTO terms_version (programme, valid_from, hash, source, published_at,"
        " published_by) VALUES (%s, %s, %s, %s, %s, %s)",
        [programme, valid_from, digest, source, at, by],
    )
    _revise(connection, programme, due_on=valid_from)
    return True


def lived_through(connection: psycopg.Connection, programme: str) -> date | None:
    """Give the latest day whose calendar an account has followed; None if there is no account."""
    row = connection.execute(
        "SELECT max((standing ->> 'through_on')::date) FROM account WHERE programme = %s",
        [programme],
    ).fetchone()
    return None if row is None else row[0]


def suspend(
    connection: psycopg.Connection,
    *,
    programme: str,
    period: Period,
    actor: str,
    reason: str,
    approved_by: str,
    at: datetime,
) -> None:
    """Keep a period without redemption; the same period again is kept once."""
    connection.execute(
        "INSERT INTO suspension (programme, start_on, end_on, actor, reason, approved_by,"
        " recorded_at) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [programme, period.start, period.end, actor, reason, approved_by, at],
    )
    _revise(connection, programme, due_on=period.end)


def change_alone(connection: psycopg.Connection, programme: str) -> None:
    """Wait until no booking of a programme is under way, and keep others out."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [HOLD, programme])


def _revise(connection: psycopg.Connection, programme: str, *, due_on: date) -> None:
    connection.execute(
        "UPDATE programme SET revision = revision + 1 WHERE programme = %s", [programme]
    )
    connection.execute(
        "UPDATE account SET next_due_on = %s WHERE programme = %s AND next_due_on > %s",
        [due_on, programme, due_on],
    )


def add_store(connection: psycopg.Connection, programme: str, store: Store) -> None:
    """Add a store, or change its chain and entity."""
    connection.execute(
        "INSERT INTO store (programme, store, chain, entity) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (programme, store) DO UPDATE"
        " SET chain = excluded.chain, entity = excluded.entity",
        [programme, store.store, store.chain, store.entity],
    )


def stores(
    connection: psycopg.Connection, programme: str, wanted: Iterable[str]
) -> dict[str, Store]:
    """Give those stores of these names that there are."""
    rows = connection.execute(
        "SELECT store, chain, entity FROM store WHERE programme = %s AND store = ANY(%s)",
        [programme, list(wanted)],
    ).fetchall()
    return {row[0]: Store(*row) for row in rows}


def add_token(
    connection: psycopg.Connection,
    *,
    token_hash: bytes,
    programme: str,
    store: str,
    label: str,
    kind: str,
    at: datetime,
) -> None:
    """Keep the hash of a till's token; the token itself is shown once and not kept.

    :raises StoreUnknown:
    """
    if not stores(connection, programme, [store]):
        raise StoreUnknown(store=store)
    connection.execute(
        "INSERT INTO till_token (token_hash, programme, store, label, kind, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [token_hash, programme, store, label, kind, at],
    )


def find_token(connection: psycopg.Connection, token_hash: bytes, *, at: datetime) -> Token | None:
    """Give what a token stands for, if it is known and not revoked."""
    row = connection.execute(
        "SELECT programme, store, label, kind, asker, untold_until FROM good_tokens(%s, %s)",
        [[token_hash], at],
    ).fetchone()
    return None if row is None else Token(*row)


def store_asker(programme: str, store: str) -> str:
    """Give what the misses of all tills of a store are counted by, as `good_tokens` does."""
    return f"store/{programme}/{store}"


def tokens(connection: psycopg.Connection, programme: str) -> list[KnownToken]:
    """Give a programme's tokens, those revoked too, by store."""
    rows = connection.execute(
        "SELECT programme, store, label, kind, created_at, revoked_at FROM till_token"
        " WHERE programme = %s ORDER BY store, created_at, label",
        [programme],
    ).fetchall()
    return [KnownToken(*row) for row in rows]


def revoke_tokens(
    connection: psycopg.Connection, *, programme: str, store: str, label: str, at: datetime
) -> int:
    """Revoke the tokens of a store's till; give how many were good until now."""
    return connection.execute(
        "UPDATE till_token SET revoked_at = %s"
        " WHERE programme = %s AND store = %s AND label = %s AND revoked_at IS NULL",
        [at, programme, store, label],
    ).rowcount
