"""Requests without a natural key: each idempotency key is used once for ever."""

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256

import msgspec
import psycopg

from kantis.core.refusals import KeyReused


def find(
    connection: psycopg.Connection, programme: str, asked: Mapping[str, object]
) -> dict[str, bytes]:
    """Give the first answers to requests that were made before, by their keys.

    `asked` is what they ask for by their keys. A twin under way is awaited.

    :raises KeyReused: the key was used for another request
    """
    # In one order, so that two wait for each other and no more.
    connection.execute(
        "SELECT pg_advisory_xact_lock(n) FROM (SELECT hashtextextended(key, 0) AS n"
        " FROM unnest(%s::text[]) AS key ORDER BY n) sorted",
        [[f"{programme}/{key}" for key in asked]],
    )
    rows = connection.execute(
        "SELECT request_key, content_hash, answer::text FROM request"
        " WHERE programme = %s AND request_key = ANY(%s)",
        [programme, list(asked)],
    ).fetchall()
    for key, content_hash, _ in rows:
        if bytes(content_hash) != _hash(asked[key]):
            raise KeyReused(key=key)
    return {key: answer.encode() for key, _, answer in rows}


def keep(
    connection: psycopg.Connection,
    programme: str,
    asked: Mapping[str, object],
    answers: Mapping[str, object],
    *,
    at: datetime,
) -> None:
    """Remember requests and their answers, both by their keys."""
    rows = [
        {"key": key, "hash": _hash(asked[key]).hex(), "answer": answer}
        for key, answer in answers.items()
    ]
    connection.execute(
        "INSERT INTO request (programme, request_key, content_hash, answer, recorded_at)"
        " SELECT %s, key, decode(hash, 'hex'), answer, %s FROM json_to_recordset(%s::text::json)"
        " AS r(key text, hash text, answer json)",
        [programme, at, msgspec.json.encode(rows).decode()],
    )


def _hash(content: object) -> bytes:
    return sha256(msgspec.json.encode(content, order="deterministic")).digest()
