"""Every "no" as problem details (RFC 9457); one table says which HTTP status a code has."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import psycopg
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from kantis.core import refusals
from kantis.core.refusals import Refusal
from kantis.operations.sales import RETRIED

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

RETRY_AFTER_SECONDS = 2

ANSWER_WITHIN_SECONDS = 15
"""How long a till waits for any answer. Each wait of ours is shorter (`kantis.db.connect`), but one
request can meet several in a row: a connection, a lock, a statement, and others before it."""

KEY_HEADER = "Idempotency-Key"
"""The only header that a request may have to bring besides its token."""

STATUS: dict[type[Refusal], int] = {
    # Not with this token, this proof, or by this person alone.
    refusals.StoreNotYours: 403,
    refusals.ProofMissing: 403,
    refusals.ApprovalMissing: 403,
    # What the request is about does not exist.
    refusals.AccountUnknown: 404,
    refusals.CardUnknown: 404,
    refusals.SaleUnknown: 404,
    refusals.NotWaiting: 404,
    # The same request could be right at another moment, or after another step.
    refusals.ReceiptDiffers: 409,
    refusals.KeyReused: 409,
    refusals.AlreadyJoined: 409,
    refusals.AlreadyOpened: 409,
    refusals.CardNotUsable: 409,
    refusals.CardNumberTaken: 409,
    refusals.HoldUnknown: 409,
    refusals.HoldTooSmall: 409,
    refusals.InDebt: 409,
    refusals.MembershipEnded: 409,
    refusals.NotEnough: 409,
    refusals.RedemptionSuspended: 409,
    refusals.ReturnedMoreThanBought: 409,
    refusals.TermsAlreadyPublished: 409,
    refusals.TermsNotInForce: 409,
    refusals.TermsTooLate: 409,
    # The terms never allow this content.
    refusals.AmountsDoNotAddUp: 422,
    refusals.CardKindUnknown: 422,
    refusals.ClaimNotAllowed: 422,
    refusals.CurrencyUnknown: 422,
    refusals.LeavingCauseUnknown: 422,
    refusals.MayNotJoin: 422,
    refusals.PoolingNotAllowed: 422,
    refusals.ReasonMissing: 422,
    refusals.RoleUnknown: 422,
    refusals.StatusUnknown: 422,
    refusals.StoreUnknown: 422,
    refusals.SuspensionNotAllowed: 422,
    refusals.TimeImpossible: 422,
    refusals.UnitNotSpendable: 422,
    refusals.UnitUnknown: 422,
}
"""Exhaustive over `all_refusals()`, which a test holds."""


class Problem(Struct, frozen=True):
    """A problem: `code` is stable and for programs, `detail` and `way_out` are for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    way_out: str
    fields: dict[str, Any]


class Fault(Exception):
    """A request that does not reach the programme, as a refusal is one that does."""

    code: ClassVar[str]
    status: ClassVar[int]
    way_out: ClassVar[str]

    def __init__(self, detail: str, *, retry_after: int = 0, **fields: object) -> None:
        """Keep what was wrong, where, and after how many seconds it may be otherwise."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.fields = fields


class NotJson(Fault):
    """The body is not JSON."""

    code = "not-json"
    status = 400
    way_out = "Send one JSON document in UTF-8."


class TokenUnknown(Fault):
    """The token is missing or not known."""

    code = "token-unknown"
    status = 401
    way_out = "Send `Authorization: Bearer <token>` with the token made for this till."


class NotForThisToken(Fault):
    """The token is known and not meant for this."""

    code = "not-for-this-token"
    status = 403
    way_out = "Use a token of the kind that `allowed` names."


class NotFound(Fault):
    """There is nothing at this address."""

    code = "not-found"
    status = 404
    way_out = "See /docs for the addresses that there are."


class MethodNotAllowed(Fault):
    """This address does not know this method."""

    code = "method-not-allowed"
    status = 405
    way_out = "Use a method that the header `Allow` names."


class TooLarge(Fault):
    """The body is larger than 1 MiB."""

    code = "too-large"
    status = 413
    way_out = "Send fewer receipts at once."


class Malformed(Fault):
    """The request has another form than this address expects."""

    code = "malformed"
    status = 422
    way_out = "Mend what `path` names; /docs has the form."


class TooManyUnknownCards(Fault):
    """This token, or its store, has asked for too many cards that there are not."""

    code = "too-many-unknown-cards"
    status = 429
    way_out = "Ask again after `Retry-After` seconds; receipts and returns are taken meanwhile."


class TooManyWrongTokens(Fault):
    """Too many wrong tokens came from this address."""

    code = "too-many-wrong-tokens"
    status = 429
    way_out = "Send the right token: it is let in at any time."


class InternalError(Fault):
    """Something went wrong in Kantis."""

    code = "internal-error"
    status = 500
    way_out = "Send the same request again later; if it stays, tell the operator the time."


class Unavailable(Fault):
    """The database does not answer."""

    code = "unavailable"
    status = 503
    way_out = "Keep the receipt and send it again, unchanged, after `Retry-After` seconds."


NOT_NOW = (
    TimeoutError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    *RETRIED,
)
"""The database is away, silent, full, shutting down or busy: the same request may succeed later."""

GONE = "client disconnected prematurely"
"""What Litestar calls a 500: whoever asked went away amid the body. Nobody reads the answer."""

_OF_STATUS = {fault.status: fault for fault in (NotFound, MethodNotAllowed, TooLarge)}

PROBLEMS = {
    status: ResponseSpec(Problem, description=text, media_type=MEDIA_TYPE, generate_examples=False)
    for status, text in {
        400: "Not JSON",
        401: "No valid token",
        403: "Not with this token or proof, or a second person has to approve",
        404: "What the request is about does not exist",
        409: "What happened before, or another step first, keeps this from being done",
        413: "The body is larger than 1 MiB",
        422: "The form or the terms do not allow this content",
        429: "Too many unknown cards or wrong tokens; ask again after `Retry-After` seconds",
        503: "The database does not answer; send the same again after `Retry-After` seconds",
    }.items()
}
"""What every operation may answer, for the OpenAPI document."""


def problem_of(reason: Refusal | Fault) -> Problem:
    """Give the problem details of a "no"."""
    if isinstance(reason, Refusal):
        status, detail = STATUS[type(reason)], str(reason).removesuffix(f" {reason.way_out}")
    else:
        status, detail = reason.status, reason.detail
    return Problem(
        type=f"urn:kantis:problem:{reason.code}",
        title=(reason.__doc__ or reason.code).splitlines()[0].rstrip("."),
        status=status,
        code=reason.code,
        detail=detail,
        way_out=reason.way_out,
        fields=reason.fields,
    )


def encode(problem: Problem) -> bytes:
    """Write a problem down; what JSON has no form for is written as text."""
    return msgspec.json.encode(problem, enc_hook=str)


class Told(Struct, frozen=True):
    """An answer to an exception."""

    status: int
    headers: dict[str, str]
    body: bytes


def told(error: Exception, method: str, path: str) -> Told:
    """Tell any exception as problem details; what is a bug is logged and not told."""
    reason, headers = _reason(error)
    if isinstance(reason, InternalError):
        log.error("%s %r failed", method, path, exc_info=error)
    elif isinstance(reason, Unavailable) and reason is not error:
        log.warning("%s %r: %s", method, path, error)
    problem = problem_of(reason)
    return Told(problem.status, {"Content-Type": MEDIA_TYPE, **headers}, encode(problem))


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer any exception of Litestar's with problem details."""
    one = told(error, request.method, request.url.path)
    return Response(one.body, status_code=one.status, media_type=MEDIA_TYPE, headers=one.headers)


def _reason(error: Exception) -> tuple[Refusal | Fault, Mapping[str, str]]:
    match error:
        case TokenUnknown():
            return error, {"WWW-Authenticate": 'Bearer realm="kantis"'}
        case Refusal() | Fault():
            seconds = error.retry_after if isinstance(error, Fault) else 0
            return error, {"Retry-After": f"{seconds}"} if seconds else {}
        case HTTPException() if fault := _OF_STATUS.get(error.status_code):
            return fault(fault.__doc__ or ""), error.headers or {}
        case HTTPException() if error.status_code < InternalError.status or error.detail == GONE:
            return _malformed(error), {}
        case _ if isinstance(error, NOT_NOW):
            retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return Unavailable("The database does not answer just now."), retry
        case _:
            return InternalError("The request could not be carried out."), {}


def _malformed(error: HTTPException) -> Fault:
    """Say what Litestar found wrong: bodies are read by ourselves, so it is a header."""
    if not isinstance(error, ValidationException):
        return Malformed(f"{error.detail}.")
    (fault, *_) = error.extra if isinstance(error.extra, list) and error.extra else [{}]
    if fault.get("key") == "data":
        return NotJson("The body is empty.")
    what = fault.get("message", "It is missing.")
    return Malformed(f"The header `{KEY_HEADER}`: {what}", path=f"header {KEY_HEADER}")
