"""Stores, and the tills that may ask."""

import secrets
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from kantis import terminal
from kantis.cli.common import console, database, now, store_app, till_app
from kantis.db import programmes
from kantis.db.programmes import Store
from kantis.operations import publishing


@store_app.command("add")
def store_add(
    store: Annotated[str, typer.Argument(help="The store's name on its receipts.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
    chain: Annotated[str, typer.Option(help="Its chain, which terms select by.")] = "",
    entity: Annotated[str, typer.Option(help="The legal entity that runs it.")] = "",
) -> None:
    """Make a store known, or change its chain and entity."""
    with database() as connection:
        name = Path(programme).name or only_programme(connection)
        publishing.add_store(connection, programme=name, store=Store(store, chain, entity))
    console.print(f"{name}: {store} is known")


@till_app.command("add")
def till_add(
    store: Annotated[str, typer.Argument(help="The till's store.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
    label: Annotated[str, typer.Option(help="What to call the till.")] = "till",
    staff: Annotated[bool, typer.Option("--staff", help="A desk: it also enrols.")] = False,
) -> None:
    """Let a till or a staff desk in: prints its token, once."""
    with database() as connection:
        name = Path(programme).name or only_programme(connection)
        console.print(new_token(connection, name, store, label, staff=staff), soft_wrap=True)


@till_app.command("list")
def till_list(
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
) -> None:
    """List the tills and desks that were let in; tokens are shown by `kantis till add` only."""
    with database() as connection:
        name = Path(programme).name or only_programme(connection)
        found = publishing.list_tills(connection, programme=name)
    console.print(terminal.tills(found))


@till_app.command("revoke")
def till_revoke(
    store: Annotated[str, typer.Argument(help="The till's store.")],
    label: Annotated[str, typer.Option(help="What the till is called.")],
    programme: Annotated[str, typer.Option(help="The programme.")] = "",
) -> None:
    """Let a till or desk in no more, at once: every token of this label in the store."""
    with database() as connection:
        name = Path(programme).name or only_programme(connection)
        revoked = publishing.revoke_till(
            connection, programme=name, store=store, label=label, at=now()
        )
    tokens = f"{revoked} token{'s' * (revoked != 1)} of {label!r} revoked"
    console.print(f"{name}: {store}: {tokens}", markup=False, soft_wrap=True)
    if not revoked:
        raise typer.Exit(1)


def new_token(
    connection: psycopg.Connection, programme: str, store: str, label: str, *, staff: bool = False
) -> str:
    token = secrets.token_urlsafe(32)
    publishing.add_till(
        connection,
        programme=programme,
        store=store,
        label=label,
        kind="staff" if staff else "till",
        token=token,
        at=now(),
    )
    return token


def only_programme(connection: psycopg.Connection) -> str:
    names = programmes.names(connection)
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "none is published yet"
        raise typer.BadParameter(f"name one: {there}", param_hint="--programme")
    return names[0]
