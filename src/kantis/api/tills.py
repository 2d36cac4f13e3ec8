"""What tills ask: quotes, receipts, returns, holds and what a card is."""

from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import msgspec
import psycopg
from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, FromPath, HeaderParameter, JSONBody
from msgspec import Raw, Struct

from kantis.api.access import UNKNOWN, Asker, Till, is_miss, now, too_many
from kantis.api.problems import KEY_HEADER, PROBLEMS, Fault, Malformed, Problem, encode, problem_of
from kantis.api.wire import NDJSON, HoldAsked, Lines, ReleaseAsked, card_in, hold_in
from kantis.core.answers import Answer
from kantis.core.events import Held, Released
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import (
    AmountsDoNotAddUp,
    CurrencyUnknown,
    ReceiptDiffers,
    Refusal,
    ReturnedMoreThanBought,
    SaleUnknown,
    StoreNotYours,
    StoreUnknown,
    TermsNotInForce,
    TimeImpossible,
)
from kantis.operations.lookup import CardShown, look_at_card
from kantis.operations.sales import Recorded, quote, record_receipts, record_returns
from kantis.operations.spending import CardRead, release
from kantis.operations.spending import hold as set_aside

CHUNK = 64
"""Receipts in one transaction: more would keep their accounts locked for too long."""

IdempotencyKey = Annotated[
    str,
    HeaderParameter(
        name=KEY_HEADER,
        pattern=r"^[!-~]{1,120}$",
        description="New for each request, unchanged in its repetitions; kept for ever",
    ),
]

TAGS = ["tills"]

OF_THE_DOCUMENT = (
    AmountsDoNotAddUp,
    CurrencyUnknown,
    ReceiptDiffers,
    ReturnedMoreThanBought,
    SaleUnknown,
    StoreNotYours,
    StoreUnknown,
    TermsNotInForce,
    TimeImpossible,
)
"""Refusals that say nothing of the card; the others are not told to whom has guessed too often."""

Said = Recorded | Refusal | Fault

_read_answer = msgspec.json.Decoder(Answer).decode


class Hold(Struct, frozen=True):
    """An amount set aside: a payment names `hold_id` to capture it."""

    hold_id: str
    answer: Answer


@post("/quotes", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def quote_receipt(data: JSONBody[Receipt], till: Asker) -> Answer:
    """Say what a receipt would earn. Nothing is written."""
    check_own(till, data)
    return till.ask(lambda c: quote(c, programme=till.programme, receipt=data, now=now()))


@post(
    "/receipts",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS | {200: ResponseSpec(Answer, generate_examples=False)},
    tags=TAGS,
)
def book_receipt(data: JSONBody[Receipt], till: Asker) -> Response[Raw]:
    """Book a receipt, once for ever: repeated, it gets its first answer again."""
    return _answer(_record(till, [data]))


@post(
    "/receipts/batch",
    dto=Lines,
    status_code=200,
    sync_to_thread=True,
    media_type=NDJSON,
    responses=PROBLEMS
    | {
        200: ResponseSpec(
            Answer | Problem,  # type: ignore[arg-type]  # a union is fine
            description="One answer or problem a line, in the order of the receipts",
            media_type=NDJSON,
            generate_examples=False,
        )
    },
    tags=TAGS,
)
def book_batch(
    data: Annotated[list[Receipt | Fault], Body(media_type=NDJSON)], till: Asker
) -> Response[bytes]:
    """Book stored receipts, one a line; each is answered as if it had been sent alone."""
    answers: dict[int, bytes] = {
        index: encode(problem_of(entry))
        for index, entry in enumerate(data)
        if isinstance(entry, Fault)
    }
    receipts = ((i, entry) for i, entry in enumerate(data) if isinstance(entry, Receipt))
    while chunk := list(islice(receipts, CHUNK)):
        results = _record(till, [receipt for _, receipt in chunk])
        for (index, _), result in zip(chunk, results, strict=True):
            if isinstance(result, (Refusal, Fault)):
                answers[index] = encode(problem_of(result))
            else:
                answers[index] = bytes(result.answer)
    body = b"".join(answers[index] + b"\n" for index in range(len(data)))
    return Response(body, media_type=NDJSON)


@post(
    "/returns",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS | {200: ResponseSpec(Answer, generate_examples=False)},
    tags=TAGS,
)
def book_return(data: JSONBody[Return], till: Asker) -> Response[Raw]:
    """Book a return, once for ever; one that comes before its sale waits for it."""
    till.check_store(data.store)
    recorded = till.ask(
        lambda c: record_returns(
            c, programme=till.programme, returns=[data], now=now(), warrant=till.warrant()
        )
    )
    return _answer(told_of(till, recorded))


@post("/holds", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def hold(data: JSONBody[HoldAsked], till: Asker, idempotency_key: IdempotencyKey) -> Hold:
    """Set an amount aside until a receipt captures it, it is released or runs out."""
    ours, key, hold_id = now(), till.own(idempotency_key), till.hold_id(idempotency_key)
    at = data.at or ours

    def book(connection: psycopg.Connection) -> Answer:
        card = look_at_card(connection, programme=till.programme, number=data.card, at=ours)
        return set_aside(
            connection,
            programme=till.programme,
            account_id=card.account_id,
            card=CardRead(data.card, card.why_not),
            held=Held(
                at=at,
                key=f"held/{key}",
                hold_id=hold_id,
                unit=data.unit,
                amount=data.amount,
                until_at=at,
            ),
            proof=data.proof,
            now=ours,
            warrant=till.warrant(),
        )

    return Hold(hold_id, till.ask(book))


@post(
    "/holds/{hold_id:str}/capture",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS | {200: ResponseSpec(Answer, generate_examples=False)},
    tags=TAGS,
)
def capture_hold(hold_id: FromPath[str], data: JSONBody[Receipt], till: Asker) -> Response[Raw]:
    """Book a receipt whose tender names the hold; what it leaves of the hold is released."""
    if hold_in(hold_id) not in {tender.hold for tender in data.tenders}:
        raise Malformed("No tender names the hold of this address.", path="$.tenders")
    return _answer(_record(till, [data]))


@post(
    "/holds/{hold_id:str}/release",
    status_code=200,
    sync_to_thread=True,
    responses=PROBLEMS,
    tags=TAGS,
)
def release_hold(hold_id: FromPath[str], data: JSONBody[ReleaseAsked], till: Asker) -> Answer:
    """Let a hold go."""
    ours, hold_id = now(), hold_in(hold_id)
    till.check_hold(hold_id)

    def book(connection: psycopg.Connection) -> Answer:
        card = look_at_card(connection, programme=till.programme, number=data.card, at=ours)
        released = Released(at=data.at or ours, key=f"released/{hold_id}", hold_id=hold_id)
        return release(
            connection,
            programme=till.programme,
            account_id=card.account_id,
            released=released,
            now=ours,
            warrant=till.warrant(),
        )

    return till.ask(book)


@get("/cards/{number:str}", sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def show_card(number: FromPath[str], till: Asker) -> CardShown:
    """Show what a till may: the card, whether it works, level and balances; no name."""
    return till.ask(
        lambda c: look_at_card(c, programme=till.programme, number=card_in(number), at=now())
    )


def _record(till: Till, receipts: Sequence[Receipt]) -> list[Said]:
    """Book receipts of the token's own store, paid with its own holds; refuse the others."""
    results: dict[int, Recorded | Refusal] = {}
    own: list[Receipt] = []
    for index, receipt in enumerate(receipts):
        try:
            check_own(till, receipt)
        except Refusal as refusal:
            results[index] = refusal
        else:
            own.append(receipt)
    recorded = iter(
        till.ask(
            lambda c: record_receipts(
                c, programme=till.programme, receipts=own, now=now(), warrant=till.warrant()
            )
        )
        if own
        else []
    )
    return told_of(till, [results.get(index) or next(recorded) for index in range(len(receipts))])


def check_own(till: Till, receipt: Receipt) -> None:
    """Check that a receipt is of the token's own store, and so are the holds that pay for it.

    :raises StoreNotYours:
    :raises HoldUnknown:
    """
    till.check_store(receipt.store)
    for tender in receipt.tenders:
        if tender.hold:
            till.check_hold(tender.hold)


def told_of(till: Till, results: Sequence[Recorded | Refusal]) -> list[Said]:
    """Give what may be told of what was done, which is nothing of cards after too many guesses.

    What was booked stays booked, and its answer is kept: sent again later, it is given.
    """
    if till.untold_until is None and (misses := sum(map(is_missed, results))):
        till.count_misses(misses)
    if (until := till.untold_until) is None:
        return list(results)
    said: list[Said] = []
    for result in results:
        if isinstance(result, Recorded):
            key = _read_answer(result.answer).key
            said.append(Recorded(Raw(msgspec.json.encode(Answer(key=key)))))
        else:
            said.append(result if isinstance(result, OF_THE_DOCUMENT) else too_many(until))
    return said


def read_said(result: Recorded | Refusal) -> Answer | Refusal:
    """Give the answer, or the refusal, that a result is."""
    return _read_answer(result.answer) if isinstance(result, Recorded) else result


def is_missed(result: Recorded | Refusal) -> bool:
    """Tell whether a result says that there is no such card; most answers need not be read."""
    if isinstance(result, Recorded) and UNKNOWN.encode() not in bytes(result.answer):
        return False
    return is_miss(read_said(result))


def _answer(results: Sequence[Said]) -> Response[Raw]:
    """Answer one document with the bytes that are kept of its first answer."""
    (result,) = results
    if isinstance(result, (Refusal, Fault)):
        raise result
    headers = {"Idempotency-Replayed": "true"} if result.replayed else {}
    return Response(result.answer, media_type="application/json", headers=headers)
