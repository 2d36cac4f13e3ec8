"""Why a receipt earned what it earned: line by line, with the clause that says so."""

from msgspec import Struct

from kantis.core.programme import Programme
from kantis.core.receipt import Receipt
from kantis.core.standing import Decision


class Share(Struct, frozen=True):
    """What a line earned under one clause."""

    clause: str
    unit: str
    amount: int


class LineReason(Struct, frozen=True):
    """A line's earnings, or the clause that keeps it from earning."""

    line: int
    amount_minor: int
    earned: tuple[Share, ...]
    excluded_by: str = ""


def explain(programme: Programme, receipt: Receipt, decision: Decision) -> list[LineReason]:
    """Share out what a receipt earned over its lines, so that they add up to it."""
    earner = programme.version(decision.terms).earner
    shares = [(earned, earner.by_line(receipt, earned)) for earned in decision.earned]
    return [
        LineReason(
            number,
            line.amount_minor,
            tuple(
                Share(earned.clause, earned.unit, parts[number - 1])
                for earned, parts in shares
                if parts[number - 1]
            ),
            earner.exclusion_of(line),
        )
        for number, line in enumerate(receipt.lines, start=1)
    ]
