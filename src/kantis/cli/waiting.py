"""What waits until staff decide."""

from pathlib import Path
from typing import Annotated

import typer

from kantis.cli.common import console, database, now, waiting_app
from kantis.core.admission import Warrant
from kantis.db import programmes
from kantis.operations import waiting

WaitingKey = Annotated[str, typer.Argument(help="The key that `kantis waiting list` shows.")]
Why = Annotated[str, typer.Option("--reason", help="Why it is decided so.")]
Actor = Annotated[str, typer.Option(help="Who decides.")]
ApprovedBy = Annotated[str, typer.Option(help="Who else approved.")]


@waiting_app.command("list")
def waiting_list(
    programme: Annotated[str, typer.Argument(help="A programme; all if left out.")] = "",
) -> None:
    """List the receipts and returns that came too late or take back too much, oldest first."""
    with database() as connection:
        for name in [Path(programme).name] if programme else programmes.names(connection):
            for one in waiting.list_waiting(connection, programme=name):
                came_at = one.recorded_at.isoformat(timespec="minutes")
                told = f"{one.key}  {one.why}  came {came_at}"
                console.print(told, markup=False, soft_wrap=True)


@waiting_app.command("accept")
def waiting_accept(
    key: WaitingKey, reason: Why, actor: Actor = "terminal", approved_by: ApprovedBy = ""
) -> None:
    """Book it in its place, as if it had come in time."""
    with database() as connection:
        answer = waiting.accept(
            connection,
            programme=key.partition("/")[0],
            key=key,
            at=now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    earned = ", ".join(f"{amount:,} {unit}" for unit, amount in answer.earned.items())
    console.print(f"{key}: booked; earned {earned or 'nothing'}", markup=False, soft_wrap=True)


@waiting_app.command("dismiss")
def waiting_dismiss(
    key: WaitingKey, reason: Why, actor: Actor = "terminal", approved_by: ApprovedBy = ""
) -> None:
    """Decide that it is never booked; who and why are kept."""
    with database() as connection:
        waiting.dismiss(
            connection,
            programme=key.partition("/")[0],
            key=key,
            at=now(),
            warrant=Warrant(actor, reason, approved_by),
        )
    console.print(f"{key}: dismissed", markup=False)
