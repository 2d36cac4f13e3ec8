"""Refusals that are remembered for ever, so that asking again never turns a no into a yes.

A till that lost the answer "not enough" has meanwhile taken cash: its retry must not take
bonus too. What another moment cannot change, or what staff must first set right (an unknown
store, a clock), is judged anew each time.
"""

from collections.abc import Iterable

import msgspec
import psycopg

from kantis.core.refusals import Refusal, all_refusals
from kantis.db.past import hash_of

_OF_CODE = {refusal.code: refusal for refusal in all_refusals()}


def recall(
    connection: psycopg.Connection, keys: Iterable[str]
) -> dict[tuple[bytes, bytes], Refusal]:
    """Give the refusals that keys have met, by the hashes of key and content."""
    rows = connection.execute(
        "SELECT key_hash, content_hash, code, fields::text FROM refused WHERE key_hash = ANY(%s)",
        [[hash_of(key) for key in keys]],
    ).fetchall()
    return {
        (bytes(key_hash), bytes(content_hash)): _OF_CODE[code](**msgspec.json.decode(fields))
        for key_hash, content_hash, code, fields in rows
    }


def row(key: str, content_hash: bytes, refusal: Refusal) -> dict[str, object]:
    """Give what is kept of a refusal."""
    return {
        "key_hash": hash_of(key).hex(),
        "content_hash": content_hash.hex(),
        "code": refusal.code,
        "fields": msgspec.Raw(msgspec.json.encode(refusal.fields, enc_hook=str)),
    }
