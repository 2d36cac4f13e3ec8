"""What most people would write: one handler, one transaction a receipt, objects for rows.

It does the same work as Kantis, one receipt at a time: who asks, whose card it is, whether the
receipt is known, what its lines earn, the books and the answer. FastAPI and SQLAlchemy as their
own tutorials show them; nothing is done to slow it down, lines are kept as one JSON column.
"""

import os
from datetime import date, datetime
from hashlib import sha256
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, ForeignKey, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

URL = "BENCH_PLAIN_URL"
"""The environment's name for where the database is."""

POINTS = "points"

NO_POINTS = ("deposit", "tobacco", "alcohol")
"""Categories that earn nothing (K-1.3)."""

PER_MINOR = 100
"""One point for each full euro of a receipt (K-1.1)."""

BEST_ABOVE_MINOR = 650_000
"""Purchases of twelve months above which a household is a best customer (K-3.1)."""

POOL_SIZE = 4
"""Connections, the best of those tried: more threads at once only hold each other up."""


class Base(DeclarativeBase):
    """The tables."""


class Token(Base):
    __tablename__ = "token"
    token_hash: Mapped[bytes] = mapped_column(primary_key=True)
    store: Mapped[str]


class Account(Base):
    __tablename__ = "account"
    account_id: Mapped[int] = mapped_column(primary_key=True)
    tier: Mapped[str] = mapped_column(default="")
    points: Mapped[int] = mapped_column(default=0)


class Card(Base):
    __tablename__ = "card"
    card_number: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.account_id))
    is_blocked: Mapped[bool] = mapped_column(default=False)


class MonthSum(Base):
    __tablename__ = "month_sum"
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.account_id), primary_key=True)
    month_on: Mapped[date] = mapped_column(primary_key=True)
    amount_minor: Mapped[int]


class Kept(Base):
    __tablename__ = "receipt"
    receipt_id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    till: Mapped[str]
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.account_id), index=True)
    at: Mapped[datetime]
    total_minor: Mapped[int]
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    tenders: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)


class Ledger(Base):
    __tablename__ = "ledger"
    ledger_id: Mapped[int] = mapped_column(primary_key=True)
    receipt_id: Mapped[int] = mapped_column(ForeignKey(Kept.receipt_id), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.account_id))
    book: Mapped[str]
    unit: Mapped[str]
    clause: Mapped[str]
    amount: Mapped[int]


class Lot(Base):
    __tablename__ = "lot"
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.account_id), primary_key=True)
    unit: Mapped[str] = mapped_column(primary_key=True)
    earned_on: Mapped[date] = mapped_column(primary_key=True)
    remaining: Mapped[int]


class Line(BaseModel):
    amount_minor: int
    category: str = ""
    product: str = ""
    quantity_milli: int = 1000
    own_brand: bool = False
    reduced: bool = False
    vat_basis_points: int = 0


class Tender(BaseModel):
    kind: str
    amount_minor: int


class Receipt(BaseModel):
    store: str
    till: str
    business_day: date
    number: str
    at: datetime
    currency: str
    total_minor: int
    lines: list[Line]
    tenders: list[Tender] = []
    card: str


class Given(BaseModel):
    clause: str
    unit: str
    amount: int


class Answer(BaseModel):
    key: str
    earned: dict[str, int]
    by_clause: list[Given]
    tier: str
    balances: dict[str, int]


def driver_url(url: str) -> str:
    """Name a database with the driver that Kantis uses too."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


engine = create_engine(
    driver_url(os.environ.get(URL, "postgresql://")),
    pool_size=POOL_SIZE,
    max_overflow=0,
)

sessions = sessionmaker(engine)

app = FastAPI()


@app.post("/v1/receipts")
def book(receipt: Receipt, authorization: Annotated[str, Header()]) -> Answer:
    """Book a receipt once; the same again gets its first answer."""
    with sessions() as db:
        if receipt.store != _store_of(db, authorization):
            raise HTTPException(403, "The token is another store's.")
        if sum(line.amount_minor for line in receipt.lines) != receipt.total_minor:
            raise HTTPException(422, "The lines do not add up to the total.")
        account = db.scalars(
            select(Account)
            .join(Card, Card.account_id == Account.account_id)
            .where(Card.card_number == receipt.card, Card.is_blocked.is_(False))
            .with_for_update()
        ).first()
        if account is None:
            raise HTTPException(404, "The card is not known.")
        key = f"{receipt.store}/{receipt.till}/{receipt.business_day}/{receipt.number}"
        if (known := db.scalars(select(Kept).where(Kept.key == key)).first()) is not None:
            return Answer.model_validate(known.answer)
        answer = _judge(db, account, receipt, key)
        db.commit()
        return answer


def _store_of(db: Session, authorization: str) -> str:
    """Name the store whose token was sent."""
    token = authorization.removeprefix("Bearer ")
    found = db.get(Token, sha256(token.encode()).digest())
    if found is None:
        raise HTTPException(401, "The token is not known.")
    return found.store


def _judge(db: Session, account: Account, receipt: Receipt, key: str) -> Answer:
    """Put all that a receipt comes to into the session."""
    earning = [line for line in receipt.lines if line.category.split("/")[0] not in NO_POINTS]
    points = max(0, sum(line.amount_minor for line in earning)) // PER_MINOR
    account.points += points
    _count_purchase(db, account, receipt)
    answer = Answer(
        key=key,
        earned={POINTS: points},
        by_clause=[Given(clause="K-1.1", unit=POINTS, amount=points)],
        tier=account.tier,
        balances={POINTS: account.points},
    )
    kept = Kept(
        key=key,
        till=receipt.till,
        account_id=account.account_id,
        at=receipt.at,
        total_minor=receipt.total_minor,
        lines=[line.model_dump() for line in receipt.lines],
        tenders=[tender.model_dump() for tender in receipt.tenders],
        answer=answer.model_dump(),
    )
    db.add(kept)
    db.flush()
    for book_, amount in (("member", points), ("issued", -points)):
        db.add(
            Ledger(
                receipt_id=kept.receipt_id,
                account_id=account.account_id,
                book=book_,
                unit=POINTS,
                clause="K-1.1",
                amount=amount,
            )
        )
    lot = db.get(Lot, (account.account_id, POINTS, receipt.at.date()))
    if lot is None:
        lot = Lot(
            account_id=account.account_id, unit=POINTS, earned_on=receipt.at.date(), remaining=0
        )
        db.add(lot)
    lot.remaining += points
    return answer


def _count_purchase(db: Session, account: Account, receipt: Receipt) -> None:
    """Add to the month's purchases; look whether those of the year make a best customer."""
    month_on = receipt.at.date().replace(day=1)
    month = db.get(MonthSum, (account.account_id, month_on))
    if month is None:
        month = MonthSum(account_id=account.account_id, month_on=month_on, amount_minor=0)
        db.add(month)
    month.amount_minor += receipt.total_minor
    year = db.scalar(
        select(func.sum(MonthSum.amount_minor)).where(
            MonthSum.account_id == account.account_id,
            MonthSum.month_on > month_on.replace(year=month_on.year - 1),
        )
    )
    if (year or 0) > BEST_ABOVE_MINOR:
        account.tier = "best"
