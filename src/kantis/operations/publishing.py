"""Terms published, stores and their tills made known."""

from datetime import datetime
from hashlib import sha256
from typing import Literal

import psycopg

from kantis.core.programme import Programme
from kantis.core.refusals import StoreUnknown
from kantis.core.terms_text import read_terms
from kantis.db import programmes
from kantis.db.programmes import KnownToken, Store


def publish_terms(connection: psycopg.Connection, *, source: str, at: datetime, by: str) -> bool:
    """Publish one version of a programme's terms for ever; give whether it is new.

    :raises TermsFaulty: with every fault, also against the versions already published
    :raises TermsAlreadyPublished: the day has other terms already
    :raises TermsTooLate: an account has lived through the day under the terms before
    """
    with connection.transaction():
        terms = read_terms(source)
        before = programmes.versions(connection, terms.programme)
        Programme([*(old for old in before if old.valid_from != terms.valid_from), terms])
        return programmes.publish(
            connection,
            programme=terms.programme,
            valid_from=terms.valid_from,
            source=source,
            at=at,
            by=by,
        )


def add_store(connection: psycopg.Connection, *, programme: str, store: Store) -> None:
    """Make a store known, or change its chain and entity from now on."""
    with connection.transaction():
        programmes.load(connection, programme)
        programmes.add_store(connection, programme, store)


def add_till(
    connection: psycopg.Connection,
    *,
    programme: str,
    store: str,
    label: str,
    kind: Literal["till", "staff"],
    token: str,
    at: datetime,
) -> None:
    """Let a till or a staff desk of a store in; only the hash of its token is kept.

    :raises StoreUnknown:
    """
    with connection.transaction():
        programmes.add_token(
            connection,
            token_hash=sha256(token.encode()).digest(),
            programme=programme,
            store=store,
            label=label,
            kind=kind,
            at=at,
        )


def list_tills(connection: psycopg.Connection, *, programme: str) -> list[KnownToken]:
    """Give which tills and desks were let in, also those whose token was revoked."""
    with connection.transaction():
        programmes.load(connection, programme)
        return programmes.tokens(connection, programme)


def revoke_till(
    connection: psycopg.Connection, *, programme: str, store: str, label: str, at: datetime
) -> int:
    """Let a till or desk in no more, at once; give how many tokens it had.

    :raises StoreUnknown:
    """
    with connection.transaction():
        if not programmes.stores(connection, programme, [store]):
            raise StoreUnknown(store=store)
        return programmes.revoke_tokens(
            connection, programme=programme, store=store, label=label, at=at
        )
