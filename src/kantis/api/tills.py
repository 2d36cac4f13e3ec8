"""What tills ask: quotes, receipts, returns, holds and what a card is."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from typing import Annotated

import psycopg
from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, FromPath, HeaderParameter, JSONBody
from msgspec import Raw, Struct

from kantis.api.access import Asker, Till, moment, now
from kantis.api.problems import KEY_HEADER, PROBLEMS, Fault, Malformed, encode, problem_of
from kantis.api.wire import NDJSON, HoldAsked, Lines, ReleaseAsked, card_in, hold_in
from kantis.core.answers import Answer
from kantis.core.events import Held, Released
from kantis.core.receipt import Receipt, Return
from kantis.core.refusals import CardNotUsable, Refusal
from kantis.operations.lookup import CardShown, look_at_card
from kantis.operations.sales import Recorded, quote, record_receipts, record_returns
from kantis.operations.spending import hold as set_aside
from kantis.operations.spending import release

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


class Hold(Struct, frozen=True):
    """An amount set aside: a payment names `hold_id` to capture it."""

    hold_id: str
    answer: Answer


@post("/quotes", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def quote_receipt(data: JSONBody[Receipt], till: Asker) -> Answer:
    """Say what a receipt would earn. Nothing is written."""
    till.check_store(data.store)
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
            Answer,
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
            if isinstance(result, Refusal):
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
    return _answer(
        till.ask(
            lambda c: record_returns(
                c, programme=till.programme, returns=[data], now=now(), warrant=till.warrant()
            )
        )
    )


@post("/holds", status_code=200, sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def hold(data: JSONBody[HoldAsked], till: Asker, idempotency_key: IdempotencyKey) -> Hold:
    """Set an amount aside until a receipt captures it, it is released or runs out."""
    at, key = moment(data.at), till.own(idempotency_key)
    # Drawn from the key, so that a repeated request names the same hold.
    hold_id = sha256(f"{till.programme}/{key}".encode()).hexdigest()[:32]

    def book(connection: psycopg.Connection) -> Answer:
        card = look_at_card(connection, programme=till.programme, number=data.card, at=now())
        if not card.usable:
            raise CardNotUsable(card=data.card, why=card.why_not)
        return set_aside(
            connection,
            programme=till.programme,
            account_id=card.account_id,
            held=Held(
                at=at,
                key=f"held/{key}",
                hold_id=hold_id,
                unit=data.unit,
                amount=data.amount,
                until_at=at,
            ),
            proof=data.proof,
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
    at, hold_id = moment(data.at), hold_in(hold_id)

    def book(connection: psycopg.Connection) -> Answer:
        card = look_at_card(connection, programme=till.programme, number=data.card, at=now())
        return release(
            connection,
            programme=till.programme,
            account_id=card.account_id,
            released=Released(at=at, key=f"released/{hold_id}", hold_id=hold_id),
            warrant=till.warrant(),
        )

    return till.ask(book)


@get("/cards/{number:str}", sync_to_thread=True, responses=PROBLEMS, tags=TAGS)
def show_card(number: FromPath[str], till: Asker) -> CardShown:
    """Show what a till may: the card, whether it works, level and balances; no name."""
    return till.ask(
        lambda c: look_at_card(c, programme=till.programme, number=card_in(number), at=now())
    )


def _record(till: Till, receipts: Sequence[Receipt]) -> list[Recorded | Refusal]:
    """Book receipts of the token's own store; refuse the others."""
    results: dict[int, Recorded | Refusal] = {}
    own: list[Receipt] = []
    for index, receipt in enumerate(receipts):
        try:
            till.check_store(receipt.store)
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
    return [results.get(index) or next(recorded) for index in range(len(receipts))]


def _answer(results: Sequence[Recorded | Refusal]) -> Response[Raw]:
    """Answer one document with the bytes that are kept of its first answer."""
    (result,) = results
    if isinstance(result, Refusal):
        raise result
    headers = {"Idempotency-Replayed": "true"} if result.replayed else {}
    return Response(result.answer, media_type="application/json", headers=headers)
