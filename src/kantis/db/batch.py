"""What a batch of receipts has to know, looked up in one round trip."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.cards import Card
from kantis.core.programme import Programme
from kantis.db import programmes
from kantis.db.accounts import Account
from kantis.db.programmes import Store, Token

_decode_accounts = msgspec.json.Decoder(list[Account]).decode
_decode_cards = msgspec.json.Decoder(list[Card]).decode
_decode_stores = msgspec.json.Decoder(list[Store]).decode


class GoodToken(Token, frozen=True):
    """A token with its hash."""

    hash: str = ""


_decode_tokens = msgspec.json.Decoder(list[GoodToken]).decode


def _json(values: Iterable[str]) -> str:
    """Write texts as JSON: as an array parameter each would cost psycopg a microsecond."""
    return msgspec.json.encode(list(values)).decode()


class Found(Struct):
    """What there is of what a batch names.

    `used` are the hashes of keys that are not new, `awaited` of those for which a return waits;
    `tokens` are those that are good, by their hashes.
    """

    programme: Programme
    accounts: dict[int, Account]
    cards: dict[str, Card]
    stores: dict[str, Store]
    tokens: dict[bytes, Token]
    used: frozenset[bytes]
    awaited: frozenset[bytes]

    def lets_in(self, token_hash: bytes | None) -> bool:
        """Tell whether a sender may speak: by a good token, or as an operator, without one."""
        return token_hash is None or token_hash in self.tokens

    def untold_until(self, token_hash: bytes | None) -> datetime | None:
        """Give until when a sender is told nothing of cards, having guessed too often."""
        return None if token_hash is None else self.tokens[token_hash].untold_until


def look_up(
    connection: psycopg.Connection,
    programme: str,
    *,
    cards: Iterable[str],
    stores: Iterable[str],
    key_hashes: Iterable[bytes] = (),
    tokens: Iterable[bytes] = (),
    at: datetime,
    locking: bool,
) -> Found:
    """Look up a programme's cards with their accounts, its stores, used keys, and senders' tokens.

    With `locking`, the terms, the accounts and whoever names the same keys stay as they are until
    the transaction ends; the accounts are locked in order and then read. Without, a card may have
    moved since its account was read, which then is not among them.

    :raises TermsNotInForce: when nothing of that name is published
    """
    row = connection.execute(
        "SELECT terms, revision, suspensions, accounts::text, cards::text, stores::text,"
        " tokens::text, used, awaited"
        " FROM look_up(%s, %s::text::json, %s::text::json, %s::text::json, %s::text::json, %s, %s)",
        [
            programme,
            _json(cards),
            _json(stores),
            _json(h.hex() for h in key_hashes),
            _json(h.hex() for h in tokens),
            at,
            locking,
        ],
    ).fetchone()
    assert row is not None, "a function gives a row"
    *mark, accounts_json, cards_json, stores_json, tokens_json, used, awaited = row
    return Found(
        programmes.ready(connection, programme, tuple(mark)),
        {a.account_id: a for a in _decode_accounts(accounts_json or "[]")},
        {c.number: c for c in _decode_cards(cards_json or "[]")},
        {s.store: s for s in _decode_stores(stores_json or "[]")},
        {bytes.fromhex(t.hash): t for t in _decode_tokens(tokens_json or "[]")},
        frozenset(used),
        frozenset(awaited or ()),
    )
