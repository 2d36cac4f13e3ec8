"""A desk with a real database behind it: everything is committed, on accounts of its own."""

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest

from kantis.core.admission import Applicant, Warrant
from kantis.core.answers import Answer
from kantis.core.events import AnyEvent
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender
from kantis.core.standing import Decision, Standing
from kantis.db import accounts, past
from kantis.db.cluster import APP
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.folder import Folder
from kantis.operations import audit, members, publishing, sales

PROGRAMMES = Path(__file__).parents[2] / "programmes"
ZONE = {
    "alltid": ZoneInfo("Europe/Oslo"),
    "coop": ZoneInfo("Europe/Sofia"),
    "kplussa": ZoneInfo("Europe/Helsinki"),
}
KIND = {"alltid": "customer-card", "coop": "card", "kplussa": "plussa"}
CURRENCY = {"alltid": "NOK", "coop": "BGN", "kplussa": "EUR"}
NOW = datetime(2026, 1, 15, 12, tzinfo=ZoneInfo("UTC"))
"""When everything is recorded, unless a test says otherwise."""

numbers = itertools.count(10**12 + secrets.randbelow(10**9) * 1000)


class Member(msgspec.Struct, frozen=True):
    """A member with the first card."""

    account_id: int
    card: str


class Desk:
    """One connection to one programme. Times are local, amounts in minor units."""

    def __init__(self, connection: psycopg.Connection, programme: str, url: str) -> None:
        self.connection = connection
        self.programme = programme
        self.url = url
        self.warrant = Warrant("desk")

    @contextmanager
    def another(self) -> Iterator["Desk"]:
        """Open a second desk, with a connection of its own."""
        with connect(self.url) as connection:
            yield Desk(connection, self.programme, self.url)

    def at(self, text: str) -> datetime:
        """Give an instant by its local time, `2024-03-04 10:00`."""
        return datetime.fromisoformat(text).replace(tzinfo=ZONE[self.programme])

    def new_number(self) -> str:
        return str(next(numbers))

    def join(self, at: str = "2024-03-01 10:00") -> Member:
        enrolled = members.enrol(
            self.connection,
            programme=self.programme,
            application=members.Application(
                applicant=Applicant(born_on=date(1980, 5, 1), organization_number="930258008"),
                card_kind=KIND[self.programme],
                card_number=self.new_number(),
            ),
            request_key=self.new_number(),
            at=self.at(at),
            warrant=self.warrant,
        )
        return Member(enrolled.account_id, enrolled.card_number)

    def receipt(
        self,
        card: str,
        at: str,
        *amounts: int,
        paid: dict[str, int] | None = None,
        hold: str = "",
        number: str = "",
        proof: str = "staff",
    ) -> Receipt:
        return Receipt(
            store="north",
            till="1",
            business_day=self.at(at).date(),
            number=number or self.new_number(),
            at=self.at(at),
            currency=CURRENCY[self.programme],
            total_minor=sum(amounts),
            lines=tuple(map(Line, amounts)),
            tenders=tuple(Tender(kind, paid, hold) for kind, paid in (paid or {}).items()),
            card=card,
            proof=proof,
        )

    def return_of(self, sale: Receipt, at: str, *lines: tuple[int, int]) -> Return:
        return Return(
            store="north",
            till="1",
            business_day=self.at(at).date(),
            number=self.new_number(),
            at=self.at(at),
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            lines=tuple(ReturnLine(*line) for line in lines),
        )

    def record(self, *receipts: Receipt, now: datetime = NOW) -> list[sales.Result]:
        return sales.record_receipts(
            self.connection,
            programme=self.programme,
            receipts=receipts,
            now=now,
            warrant=self.warrant,
        )

    def take_back(self, *returns: Return, now: datetime = NOW) -> list[sales.Result]:
        return sales.record_returns(
            self.connection,
            programme=self.programme,
            returns=returns,
            now=now,
            warrant=self.warrant,
        )

    def sell(self, member: Member, at: str, *amounts: int, **more: object) -> Answer:
        """Book one receipt and give its answer."""
        (result,) = self.record(self.receipt(member.card, at, *amounts, **more))  # type: ignore[arg-type]
        return answer(result)

    def standing(self, member: Member) -> Standing:
        return accounts.one(self.connection, self.programme, member.account_id).standing

    def history(self, member: Member) -> list[tuple[int, AnyEvent, Decision]]:
        return past.history(self.connection, member.account_id)

    def look(self, member: Member, at: str) -> Answer:
        return members.look(
            self.connection,
            programme=self.programme,
            account_id=member.account_id,
            at=self.at(at),
        )

    def wrong(self, *some: Member) -> list[str]:
        """Give what an audit of accounts and of the books finds."""
        found = self.wrong_accounts(*some)
        for finding in audit.audit_books(self.connection):
            found += [f"{finding.check}: {row}" for row in finding.wrong]
        return found

    def wrong_accounts(self, *some: Member) -> list[str]:
        """Give what an audit of accounts finds: the standing is the fold, and so are postings."""
        return [
            what
            for member in some
            for what in audit.audit_account(
                self.connection, programme=self.programme, account_id=member.account_id
            )
        ]

    def lots(self, member: Member) -> list[tuple[date, int]]:
        """Give what the lot table holds: until when, how much."""
        return self.connection.execute(
            "SELECT valid_until, remaining FROM lot WHERE account_id = %s AND remaining > 0"
            " ORDER BY valid_until",
            [member.account_id],
        ).fetchall()

    def rows(self) -> dict[str, int]:
        """Count the rows of every table of ours."""
        tables = self.connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        return {
            table: self.connection.execute(
                f"SELECT count(*) FROM {table}"  # noqa: S608 - a name from the catalog
            ).fetchall()[0][0]
            for (table,) in tables
            if table != "refused"  # remembered, which books nothing
        }


def answer(result: sales.Result) -> Answer:
    assert isinstance(result, sales.Recorded), result
    return msgspec.json.decode(result.answer, type=Answer)


def set_up(url: str) -> None:
    with connect(url) as connection:
        for name in KIND:
            for path in Folder(PROGRAMMES / name).terms_files:
                publishing.publish_terms(
                    connection, source=path.read_text("utf-8"), at=NOW, by="publisher"
                )
            publishing.add_store(connection, programme=name, store=Store("north"))


@pytest.fixture(scope="session")
def shop_url(database_url: str) -> str:
    """Connect to this process's database, with terms published and a store."""
    set_up(database_url)
    return database_url


@pytest.fixture
def desk(shop_url: str) -> Iterator[Desk]:
    """Give a desk of the programme alltid."""
    with connect(shop_url) as connection:
        yield Desk(connection, "alltid", shop_url)


@pytest.fixture
def plussa(shop_url: str) -> Iterator[Desk]:
    """Give a desk of the programme kplussa."""
    with connect(shop_url) as connection:
        yield Desk(connection, "kplussa", shop_url)


@pytest.fixture
def coop(shop_url: str) -> Iterator[Desk]:
    """Give a desk of the programme coop."""
    with connect(shop_url) as connection:
        yield Desk(connection, "coop", shop_url)


@pytest.fixture
def lonely(fresh_database: Callable[[str], str]) -> Iterator[Desk]:
    """Give a desk of alltid with a database of its own, in which nobody else is counted."""
    with alone(fresh_database(APP)) as desk:
        yield desk


@pytest.fixture
def twin(make_database: Callable[[str], Callable[[str], str]]) -> Iterator[Desk]:
    """Give another one, to do the same in another way."""
    with alone(make_database("twin")(APP)) as desk:
        yield desk


@contextmanager
def alone(url: str) -> Iterator[Desk]:
    set_up(url)
    with connect(url) as connection:
        yield Desk(connection, "alltid", url)
