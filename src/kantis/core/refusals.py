"""Every "no" that a programme can say: a stable code, fields, and a way out.

A refusal is raised, rolls the transaction back, and so books nothing. One table in
`kantis.api.problems` maps codes to HTTP statuses.
"""

from functools import partial
from typing import Any, ClassVar


class Refusal(Exception):
    """The programme says no. `code` is stable; `fields` say about what; `way_out` what to do."""

    code: ClassVar[str]
    way_out: ClassVar[str]
    is_remembered: ClassVar[bool] = False
    """Whether the same request must stay refused though the account could bear it later."""

    def __init__(self, **fields: object) -> None:
        """Keep the fields that the message and the translations are made of."""
        super().__init__(self.code, fields)
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made anew from the fields, in another process."""
        return partial(type(self), **self.fields), ()

    def __str__(self) -> str:
        """Say what was refused, with its fields, for a log or a terminal."""
        about = ", ".join(f"{name} {value}" for name, value in self.fields.items())
        title = (self.__doc__ or self.code).splitlines()[0].rstrip(".")
        return f"{title} ({about}). {self.way_out}" if about else f"{title}. {self.way_out}"


class ReceiptDiffers(Refusal):
    """This receipt number was already booked with another content."""

    code = "receipt-differs"
    way_out = "Send the receipt as it was first sent, or give the new sale a number of its own."


class KeyReused(Refusal):
    """This idempotency key was already used for another request."""

    code = "idempotency-key-reused"
    way_out = "Make a new key for a new request; repeat the old one unchanged to retry."


class AmountsDoNotAddUp(Refusal):
    """The amounts do not add up."""

    code = "amounts-do-not-add-up"
    way_out = "Make the lines add up to the total, and the tenders too if any are given."


class CurrencyUnknown(Refusal):
    """The programme does not reckon in this currency at that time."""

    code = "currency-unknown"
    way_out = "Send amounts in the currency of the terms in force at the receipt's time."


class TimeImpossible(Refusal):
    """The time lies in the future or outside of every published version of the terms."""

    code = "time-impossible"
    way_out = "Check the till's clock; a receipt's time needs terms in force then."


class StoreUnknown(Refusal):
    """No such store."""

    code = "store-unknown"
    way_out = "Add the store first: `kantis store add`."


class StoreNotYours(Refusal):
    """The token is for another store."""

    code = "store-not-yours"
    way_out = "Use the token of the till's own store."


class AccountUnknown(Refusal):
    """No such account."""

    code = "account-unknown"
    way_out = "Check the number."


class MayNotJoin(Refusal):
    """The terms do not let this applicant join."""

    code = "may-not-join"
    way_out = "See the clause named for who may join."


class AlreadyJoined(Refusal):
    """The account's membership is already running."""

    code = "already-joined"
    way_out = "Use the account as it is, or end the membership first."


class UnitUnknown(Refusal):
    """The terms know no such unit or tier, a month is none, or the amount is not positive."""

    code = "unit-unknown"
    way_out = "Use the units and tiers of the terms in force, months as 2017-06, amounts above 0."


class CardUnknown(Refusal):
    """No such card."""

    code = "card-unknown"
    way_out = "Check the number; a new card is issued in the store."


class CardNumberTaken(Refusal):
    """This card number is already in use."""

    code = "card-number-taken"
    way_out = "Take another card from the pack, or let Kantis draw a number."


class CardKindUnknown(Refusal):
    """The terms know no such kind of card."""

    code = "card-kind-unknown"
    way_out = "Use a kind that the terms in force name."


class CardNotUsable(Refusal):
    """The card is blocked, replaced or not yet active."""

    code = "card-not-usable"
    way_out = "Use another card of the account, or have this one replaced."
    is_remembered = True


class RoleUnknown(Refusal):
    """The terms know no such role in an account."""

    code = "role-unknown"
    way_out = "Use a role that the terms in force name."


class PoolingNotAllowed(Refusal):
    """The terms do not let points move between accounts."""

    code = "pooling-not-allowed"
    way_out = "Each account keeps its own balance."


class StatusUnknown(Refusal):
    """The terms know no such status."""

    code = "status-unknown"
    way_out = "Use a status that the terms in force name."


class NotEnough(Refusal):
    """The balance does not cover this."""

    code = "not-enough"
    way_out = "Ask for no more than `available`."
    is_remembered = True


class InDebt(Refusal):
    """A correction left a debt; nothing can be redeemed while it stands."""

    code = "in-debt"
    way_out = "Later earnings pay the debt first."
    is_remembered = True


class RedemptionSuspended(Refusal):
    """Redemption is suspended for the time being."""

    code = "redemption-suspended"
    way_out = "Earning goes on; nothing expires meanwhile. Try again after the suspension."
    is_remembered = True


class ProofMissing(Refusal):
    """Spending needs a proof that the terms name; a card alone authorizes nothing."""

    code = "proof-missing"
    way_out = "Send one of the proofs in `accepted`."


class SuspensionNotAllowed(Refusal):
    """The terms know no suspension, or its days are over or in no order."""

    code = "suspension-not-allowed"
    way_out = "Name a first day that is not past and a later end, if the terms have [suspension]."


class UnitNotSpendable(Refusal):
    """The terms do not let this unit pay for goods."""

    code = "unit-not-spendable"
    way_out = "Pay with a unit that the terms let pay."


class HoldUnknown(Refusal):
    """No such hold is open on this account."""

    code = "hold-unknown"
    way_out = "It may have been captured, released or run out; make a new hold."
    is_remembered = True


class HoldTooSmall(Refusal):
    """A capture is at most what was held."""

    code = "hold-too-small"
    way_out = "Capture at most `held`; hold and capture the rest apart."
    is_remembered = True


class MembershipEnded(Refusal):
    """The membership has ended."""

    code = "membership-ended"
    way_out = "The applicant may join anew if the terms allow it."
    is_remembered = True


class LeavingCauseUnknown(Refusal):
    """The terms know no such way to end a membership."""

    code = "leaving-cause-unknown"
    way_out = "Use a cause that the terms in force name."


class ReasonMissing(Refusal):
    """This needs a reason."""

    code = "reason-missing"
    way_out = "Say why; the reason is kept with what is done."


class ApprovalMissing(Refusal):
    """This needs a second person's approval."""

    code = "approval-missing"
    way_out = "Have another person than the one who asks approve it."


class SaleUnknown(Refusal):
    """No sale with this key was booked, and waiting for it is over."""

    code = "sale-unknown"
    way_out = "Send the sale first, or name the right one."


class ReturnedMoreThanBought(Refusal):
    """More would come back than was bought."""

    code = "returned-more-than-bought"
    way_out = "Return at most what is left of the line."
    is_remembered = True


class NotWaiting(Refusal):
    """Nothing of this key waits for staff."""

    code = "not-waiting"
    way_out = "`kantis waiting list` names what waits; somebody may have decided already."


class ClaimNotAllowed(Refusal):
    """A purchase made without a card cannot be claimed afterwards."""

    code = "claim-not-allowed"
    way_out = "Have the card read at the till next time."


class AlreadyOpened(Refusal):
    """The account already has a history; an opening comes before everything else."""

    code = "already-opened"
    way_out = "Open balances right after joining, once."


class TermsNotInForce(Refusal):
    """No terms of this programme are in force then."""

    code = "terms-not-in-force"
    way_out = "Publish terms that cover the time: `kantis terms publish`."


class TermsAlreadyPublished(Refusal):
    """Terms from this day are already published with another content."""

    code = "terms-already-published"
    way_out = "A published version is never edited; publish a new one from a later day."


class TermsTooLate(Refusal):
    """Accounts have already lived through the day from which these terms would hold."""

    code = "terms-too-late"
    way_out = "Publish terms before they begin: from a day after the one named in `passed_on`."


def all_refusals() -> tuple[type[Refusal], ...]:
    """Give every refusal, in the order of this file."""
    return tuple(Refusal.__subclasses__())
