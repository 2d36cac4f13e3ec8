"""Requests without a natural key: each idempotency key is used once for ever."""

from datetime import datetime
from hashlib import sha256

import msgspec
import psycopg

from kantis.core.refusals import KeyReused


def find(
    connection: psycopg.Connection, programme: str, request_key: str, content: object
) -> bytes | None:
    """Give the first answer to a request, if it was made before; a twin under way is awaited.

    :raises KeyReused: the key was used for another request
    """
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{programme}/{request_key}"]
    )
    row = connection.execute(
        "SELECT content_hash, answer::text FROM request WHERE programme = %s AND request_key = %s",
        [programme, request_key],
    ).fetchone()
    if row is None:
        return None
    if bytes(row[0]) != _hash(content):
        raise KeyReused(key=request_key)
    return str(row[1]).encode()


def keep(
    connection: psycopg.Connection,
    programme: str,
    request_key: str,
    content: object,
    *,
    answer: object,
    at: datetime,
) -> None:
    """Remember a request and its answer."""
    connection.execute(
        "INSERT INTO request (programme, request_key, content_hash, answer, recorded_at)"
        " VALUES (%s, %s, %s, %s, %s)",
        [programme, request_key, _hash(content), msgspec.json.encode(answer).decode(), at],
    )


def _hash(content: object) -> bytes:
    return sha256(msgspec.json.encode(content, order="deterministic")).digest()
