"""The cases once more, through the real operations on PostgreSQL.

Each case happens in one transaction that is rolled back at its end, under a name that no
programme has (`alltid-cases`): nothing of it stays, what is published and booked for real
is neither seen nor touched, and no case sees another's suspensions. The operations'
own transactions become savepoints; the ledger's triggers fire at each statement's end all the
same. What a rollback cannot show, other tests do: that it is committed, and who waits for whom.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
import psycopg

from kantis.check import (
    Outcome,
    World,
    applicant_of,
    instant_of,
    opening_of,
    receipt_of,
    return_of,
    whole,
)
from kantis.core.answers import Answer
from kantis.core.cases import Buy, Case, Step
from kantis.core.events import Held, Joined, Left, Released, StatusChanged
from kantis.core.periods import Period
from kantis.core.programme import Programme
from kantis.core.receipt import Receipt, SaleKey, key_of
from kantis.core.refusals import Refusal
from kantis.core.standing import Standing
from kantis.core.step import caught_up
from kantis.core.terms_text import read_terms
from kantis.core.toml_text import locate
from kantis.db import accounts, past, programmes
from kantis.operations import audit, cards, members, publishing, sales, spending, upkeep

NOBODY = 0
"""An account number that no account has."""


class DatabaseWorld(World):
    """A case in PostgreSQL; `sources` are the texts of a programme's versions, oldest first."""

    def __init__(self, connection: psycopg.Connection, sources: Sequence[str]) -> None:
        """Begin on a connection that is in no transaction."""
        super().__init__()
        self.connection = connection
        self.name = f"{read_terms(sources[0]).programme[:34]}-cases"
        self.sources = [_renamed(source, self.name) for source in sources]
        self.programme = Programme(map(read_terms, self.sources))

    @contextmanager
    def telling(self, case: Case) -> Iterator[None]:
        """Publish the terms and let one case happen, then roll everything back."""
        super().__init__()
        self.steps = case.step
        self.accounts: dict[str, int] = {}
        self.numbers: dict[str, str] = {}
        self.sales: dict[str, Receipt] = {}
        self.stores: dict[str, str] = {}
        with self.connection.transaction(force_rollback=True):
            at = instant_of(case.step[0], self.programme)
            for source in self.sources:
                publishing.publish_terms(self.connection, source=source, at=at, by="cases")
            self.programme = programmes.load(self.connection, self.name)
            yield

    def contradictions(self) -> Iterator[str]:
        """Let the calendar catch up, then prove the books of all accounts of the case."""
        through = self.programme.day(self.now)
        upkeep.tick(self.connection, programme=self.name, through=through, now=self.now)
        for name, account_id in self.accounts.items():
            for found in audit.audit_account(
                self.connection, programme=self.name, account_id=account_id
            ):
                yield f"{name}: {found}"

    # --- membership ------------------------------------------------------------------------

    def do_join(self, step: Step, at: datetime) -> Outcome:
        join = step.join
        assert join is not None
        if step.account in self.accounts:
            return self._join_again(step, at)
        number = self._new_number()
        enrolled = members.enrol(
            self.connection,
            programme=self.name,
            application=members.Application(
                applicant=applicant_of(join), card_kind=join.card, card_number=number
            ),
            request_key=self.key,
            at=at,
            warrant=self.warrant,
        )
        self.accounts[step.account] = enrolled.account_id
        self.numbers[step.account] = number
        return self._outcome(enrolled.account_id, f"joined/{self.key}")

    def _join_again(self, step: Step, at: datetime) -> Outcome:
        assert step.join is not None
        with self.connection.transaction():
            members.rejoin(
                self.connection,
                programme=self.name,
                account_id=self._account(step),
                joined=Joined(at=at, key=self.key),
                applicant=applicant_of(step.join),
                warrant=self.warrant,
            )
            role = self.programme.terms_at(at).membership.roles[0]
            self._issue(step, step.account, step.join.card, role, at)
        return self._outcome(self._account(step), self.key)

    def do_issue(self, step: Step, at: datetime) -> Outcome:
        assert step.issue is not None
        self._issue(step, step.issue.name, step.issue.card, step.issue.role, at)
        return self._outcome(self._account(step), f"issued/{self.key}")

    def _issue(self, step: Step, name: str, kind: str, role: str, at: datetime) -> None:
        number = self._new_number()
        cards.issue_card(
            self.connection,
            programme=self.name,
            issue=cards.Issue(account_id=self._account(step), kind=kind, role=role, number=number),
            request_key=self.key,
            at=at,
            warrant=self.warrant,
        )
        self.numbers[name] = number

    def do_open(self, step: Step, at: datetime) -> Outcome:
        assert step.open is not None
        terms = self.programme.terms_at(at)
        members.open_balances(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            opening=opening_of(step.open, terms=terms, at=at, key=self.key),
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), self.key)

    def do_grant(self, step: Step, at: datetime) -> Outcome:
        return self._change_status(
            step, StatusChanged(at=at, key=self.key, status=step.grant, granted=True)
        )

    def do_withdraw(self, step: Step, at: datetime) -> Outcome:
        return self._change_status(
            step, StatusChanged(at=at, key=self.key, status=step.withdraw, granted=False)
        )

    def _change_status(self, step: Step, change: StatusChanged) -> Outcome:
        members.grant_status(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            change=change,
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), self.key)

    def do_leave(self, step: Step, at: datetime) -> Outcome:
        assert step.leave is not None
        members.leave(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            left=Left(at=at, key=self.key, cause=step.leave.cause),
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), self.key)

    def do_suspend(self, step: Step, at: datetime) -> Outcome:
        assert step.suspend is not None
        upkeep.suspend(
            self.connection,
            programme=self.name,
            period=Period(step.suspend.start, step.suspend.end),
            now=at,
            warrant=self.warrant,
        )
        self.programme = programmes.load(self.connection, self.name)
        return self._as_it_stands(step)

    def do_look(self, step: Step, at: datetime) -> Outcome:
        members.look(self.connection, programme=self.name, account_id=self._account(step), at=at)
        account = accounts.one(self.connection, self.name, self._account(step))
        standing, decision = caught_up(self.programme, account.standing, at=at)
        return Outcome(decision=decision, standing=standing)

    # --- cards -----------------------------------------------------------------------------

    def do_activate(self, step: Step, at: datetime) -> Outcome:
        cards.activate_card(
            self.connection,
            programme=self.name,
            number=self._number(step.activate),
            at=at,
            warrant=self.warrant,
        )
        return self._as_it_stands(step)

    def do_block(self, step: Step, at: datetime) -> Outcome:
        cards.block_card(
            self.connection,
            programme=self.name,
            number=self._number(step.block),
            at=at,
            warrant=self.warrant,
        )
        return self._as_it_stands(step)

    def do_replace(self, step: Step, at: datetime) -> Outcome:
        assert step.replace is not None
        number = self._new_number()
        cards.replace_card(
            self.connection,
            programme=self.name,
            number=self._number(step.replace.old),
            new_number=number,
            at=at,
            warrant=self.warrant,
        )
        self.numbers[step.replace.new] = number
        return self._as_it_stands(step)

    def do_pool(self, step: Step, at: datetime) -> Outcome:
        assert step.pool is not None
        cards.pool_card(
            self.connection,
            programme=self.name,
            number=self._number(step.pool.card),
            onto=self.accounts.get(step.pool.onto, NOBODY),
            at=at,
            warrant=self.warrant,
        )
        return self._as_it_stands(step)

    # --- sales and spending ----------------------------------------------------------------

    def do_buy(self, step: Step, at: datetime) -> Outcome:
        receipt = self._receipt(step, at, number=self.key)
        answer = _answer(
            sales.record_receipts(
                self.connection,
                programme=self.name,
                receipts=[receipt],
                now=self.now,
                warrant=self.warrant,
            )
        )
        self.sales[receipt.number] = receipt
        return self._outcome_of_document(answer, receipt)

    def do_back(self, step: Step, at: datetime) -> Outcome:
        assert step.back is not None
        sale = self.sales.get(step.back.receipt) or self._sale_to_come(step.back.receipt)
        key = key_of(self.name, sale)
        known = past.known(self.connection, [key]).get(past.hash_of(key))
        returned: dict[int, int] = {}
        if known is not None and known.account_id is not None:
            returned = past.past_sale(self.connection, key, known).returned
        document = return_of(
            step,
            at,
            self.programme,
            sale=sale,
            returned=returned,
            number=f"back-{self.key}",
        )
        answer = _answer(
            sales.record_returns(
                self.connection,
                programme=self.name,
                returns=[document],
                now=self.now,
                warrant=self.warrant,
            )
        )
        return self._outcome_of_document(answer)

    def do_claim(self, step: Step, at: datetime) -> Outcome:
        sale = self.sales.get(step.claim) or self._sale_to_come(step.claim)
        answer = sales.claim_receipt(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            at=at,
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), answer.key)

    def do_hold(self, step: Step, at: datetime) -> Outcome:
        assert step.hold is not None
        spending.hold(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            held=Held(
                at=at,
                key=self.key,
                hold_id=step.hold.name,
                unit=step.hold.unit,
                amount=whole(self.programme.terms_at(at), step.hold.unit, step.hold.amount),
                until_at=at,
            ),
            proof=step.hold.proof,
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), self.key)

    def do_release(self, step: Step, at: datetime) -> Outcome:
        spending.release(
            self.connection,
            programme=self.name,
            account_id=self._account(step),
            released=Released(at=at, key=self.key, hold_id=step.release),
            warrant=self.warrant,
        )
        return self._outcome(self._account(step), self.key)

    # --- names in a case, numbers here -----------------------------------------------------

    def _account(self, step: Step) -> int:
        return self.accounts.get(step.account, NOBODY)

    def _new_number(self) -> str:
        """Give a card number as no retailer has: a card's number is its own in all programmes."""
        return f"{'9' * 28}{self.count:06d}{len(self.numbers):06d}"

    def _number(self, card: str) -> str:
        return self.numbers.setdefault(card, self._new_number()) if card else ""

    def _store(self, chain: str) -> str:
        """Give the store of a chain; a chain's name may be more than a store's may."""
        if chain not in self.stores:
            self.stores[chain] = f"store-{len(self.stores)}"
            store = programmes.Store(self.stores[chain], chain)
            publishing.add_store(self.connection, programme=self.name, store=store)
        return self.stores[chain]

    def _receipt(self, step: Step, at: datetime, *, number: str) -> Receipt:
        assert step.buy is not None
        card = step.account if step.buy.card is None else step.buy.card
        return receipt_of(
            step,
            at,
            self.programme,
            store=self._store(step.buy.chain),
            number=number,
            card=self._number(card),
        )

    def _sale_to_come(self, name: str) -> Receipt:
        """Give the receipt that a later step makes: its customer has it in hand already."""
        for step in self.steps:
            if step.buy is not None and step.buy.receipt == name:
                return self._receipt(step, instant_of(step, self.programme), number=name)
        return receipt_of(
            Step(at=self.now, buy=Buy()),
            self.now,
            self.programme,
            store=self._store(""),
            number=name,
            card="",
        )

    # --- what came of it -------------------------------------------------------------------

    def _outcome_of_document(self, answer: Answer, receipt: Receipt | None = None) -> Outcome:
        known = past.known(self.connection, [answer.key])[past.hash_of(answer.key)]
        if known.account_id is None:
            return Outcome(nothing=answer.nothing, receipt=receipt)
        outcome = self._outcome(known.account_id, answer.key)
        outcome.receipt = receipt
        return outcome

    def _outcome(self, account_id: int, key: str) -> Outcome:
        """Give the decision that is kept of an event, and where its account stands."""
        decision = next(
            decision
            for _, event, decision in past.history(self.connection, account_id)
            if event.key == key
        )
        return Outcome(decision=decision, standing=self._standing(account_id))

    def _as_it_stands(self, step: Step) -> Outcome:
        known = step.account in self.accounts
        return Outcome(standing=self._standing(self._account(step)) if known else None)

    def _standing(self, account_id: int) -> Standing:
        standing = accounts.one(self.connection, self.name, account_id).standing
        return caught_up(self.programme, standing, at=self.now)[0]


def _renamed(source: str, name: str) -> str:
    """Give the text of terms under another name of the programme."""
    lines = source.split("\n")
    lines[locate(source)["programme",] - 1] = f'programme = "{name}"'
    return "\n".join(lines)


def _answer(results: Sequence[sales.Result]) -> Answer:
    """Give the answer to the only document.

    :raises Refusal:
    """
    (result,) = results
    if isinstance(result, Refusal):
        raise result
    return msgspec.json.decode(result.answer, type=Answer)
