"""Why a receipt earned what it earned: the decision read out, line by line."""

import msgspec
import psycopg
from msgspec import Struct

from kantis.core.events import Sale
from kantis.core.explain import LineReason, explain
from kantis.core.refusals import SaleUnknown
from kantis.core.standing import Decision
from kantis.core.terms import Terms
from kantis.db import past, programmes


class Explanation(Struct, frozen=True):
    """A booked receipt with its decision, its lines' reasons and the terms that judged it."""

    account_id: int
    sale: Sale
    decision: Decision
    lines: list[LineReason]
    terms: Terms


def explain_receipt(connection: psycopg.Connection, receipt: str) -> Explanation:
    """Explain a receipt by its key, or by its number if only one has it.

    :raises SaleUnknown: there is none, or more than one
    """
    with connection.transaction():
        found = past.find_sale(connection, receipt)
        if found is None:
            raise SaleUnknown(sale=receipt)
        programme_name, account_id, content, decided = found
        programme = programmes.load(connection, programme_name)
    sale = msgspec.json.decode(content, type=Sale)
    decision = msgspec.json.decode(decided, type=Decision)
    return Explanation(
        account_id=account_id,
        sale=sale,
        decision=decision,
        lines=explain(programme, sale.receipt, decision),
        terms=programme.version(decision.terms).terms,
    )
