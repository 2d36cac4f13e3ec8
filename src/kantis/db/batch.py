"""What a batch of receipts has to know, looked up in one round trip."""

from collections.abc import Iterable

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.cards import Card
from kantis.core.programme import Programme
from kantis.db import programmes
from kantis.db.accounts import Account
from kantis.db.programmes import Store

_decode_accounts = msgspec.json.Decoder(list[Account]).decode
_decode_cards = msgspec.json.Decoder(list[Card]).decode
_decode_stores = msgspec.json.Decoder(list[Store]).decode


def _json(values: Iterable[str]) -> str:
    """Write texts as JSON: as an array parameter each would cost psycopg a microsecond."""
    return msgspec.json.encode(list(values)).decode()


class Found(Struct):
    """What there is of what a batch names. `used` are the hashes of keys that are not new."""

    programme: Programme
    accounts: dict[int, Account]
    cards: dict[str, Card]
    stores: dict[str, Store]
    used: frozenset[bytes]


def look_up(
    connection: psycopg.Connection,
    programme: str,
    *,
    cards: Iterable[str],
    stores: Iterable[str],
    key_hashes: Iterable[bytes] = (),
    locking: bool,
) -> Found:
    """Look up a programme's cards with their accounts, its stores, and whether keys were used.

    With `locking`, the terms and the accounts stay as they are until the transaction ends; the
    accounts are locked in order and then read. Without, a card may have moved since its account
    was read, which then is not among them.

    :raises TermsNotInForce: when nothing of that name is published
    """
    row = connection.execute(
        "SELECT terms, revision, suspensions, accounts::text, cards::text, stores::text, used"
        " FROM look_up(%s, %s::text::json, %s::text::json, %s::text::json, %s)",
        [programme, _json(cards), _json(stores), _json(h.hex() for h in key_hashes), locking],
    ).fetchone()
    assert row is not None, "a function gives a row"
    terms, revision, suspensions, accounts_json, cards_json, stores_json, used = row
    return Found(
        programmes.ready(connection, programme, (terms, revision, suspensions)),
        {a.account_id: a for a in _decode_accounts(accounts_json or "[]")},
        {c.number: c for c in _decode_cards(cards_json or "[]")},
        {s.store: s for s in _decode_stores(stores_json or "[]")},
        frozenset(used or ()),
    )
