"""Cards: when one is active, and which account it stands for at a moment."""

from datetime import datetime, timedelta

from msgspec import Struct

from kantis.core.terms import Terms


class CardLink(Struct, frozen=True):
    """Which account a card stands for, from a moment on."""

    account_id: int
    from_at: datetime


class Card(Struct, frozen=True, kw_only=True):
    """A card's history: instants are None for what has not happened. `links` are in order."""

    number: str
    kind: str
    role: str
    issued_at: datetime
    activated_at: datetime | None = None
    blocked_at: datetime | None = None
    replaced_by: str | None = None
    links: tuple[CardLink, ...]


def active_from(terms: Terms, card: Card) -> datetime:
    """Give when a card becomes active: when it was activated, or hours after issue by itself.

    The hours are elapsed time, whatever the clocks do (C-5).
    """
    hours = next((k.activation_hours for k in terms.card if k.name == card.kind), 0)
    by_itself = card.issued_at + timedelta(hours=hours)
    return by_itself if card.activated_at is None else min(by_itself, card.activated_at)


def why_not_usable(terms: Terms, card: Card, *, at: datetime) -> str:
    """Give the code of why a card does not work at a moment; empty if it does."""
    if card.blocked_at is not None and at >= card.blocked_at:
        return "card-blocked"
    if at < active_from(terms, card):
        return "card-not-yet-active"
    return ""


def account_at(card: Card, *, at: datetime) -> int | None:
    """Give the account that a card stands for at a moment."""
    account = None
    for link in card.links:
        if link.from_at <= at:
            account = link.account_id
    return account
