"""A small model of one small programme: what the ledger must come to, in plain Python.

It shares Kantis's words for what happens (receipts, returns, events) and none of its reckoning.
Where Kantis is quick, the model is naive: it folds an account's whole history anew whenever it is
asked, lives through every single day, spreads a payment out into its single cents, and finds a
lot's last day by counting the days on which it could be used.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import msgspec

from kantis.core.admission import Applicant, Warrant
from kantis.core.events import (
    AnyEvent,
    Held,
    Joined,
    Left,
    Opened,
    Released,
    Returned,
    RoleTaken,
    Sale,
    StatusChanged,
)
from kantis.core.receipt import Line, Receipt, Return

TERMS = """
programme = "NAME"
valid_from = 2024-01-01
currency = "EUR"
zone = "Europe/Helsinki"
languages = ["en"]
entity = "shop"
label.en = "A small programme"
membership = { clause = "1", account = "person", roles = ["main", "family"], minimum_age_years = 18, text.en = "Adults may join." }
pooling = { clause = "2", allowed = true, text.en = "Cards may collect on one account." }
claims = { clause = "3", allowed = true, text.en = "A purchase may be claimed." }
card = [
    { clause = "4", name = "plastic", activation_hours = 24, text.en = "Active after a day." },
    { clause = "4", name = "app", text.en = "Active at once." },
]
status = [{ clause = "5", name = "friend", text.en = "Friends of the shop." }]
unit = [
    { clause = "6", name = "bonus", kind = "money", label.en = "bonus", text.en = "Bonus pays for goods." },
    { clause = "6", name = "stars", kind = "points", label.en = "stars", text.en = "Stars stay." },
]
earn = [
    { clause = "7", kind = "per_amount", unit = "bonus", give = 1, per_minor = 10, text.en = "A cent for ten." },
    { clause = "8", kind = "per_amount", unit = "stars", give = 1, per_minor = 100, tier = ["gold"], text.en = "A star." },
    { clause = "9", kind = "per_amount", unit = "stars", give = 2, per_minor = 100, status = ["friend"], text.en = "Two stars." },
]
exclusion = [{ clause = "10", lines = { category = ["gift"] }, text.en = "Gift cards earn nothing." }]
expiry = [{ clause = "11", unit = "bonus", months = 1, text.en = "Bonus expires after a month." }]
redemption = [{ clause = "12", unit = "bonus", proofs = ["pin"], hold_seconds = 172800, paid_part_counts_for = "tier", text.en = "A PIN spends bonus." }]
tier = [
    { clause = "13", name = "basic", label.en = "basic", from_minor = 0, text.en = "Everybody." },
    { clause = "13", name = "gold", label.en = "gold", from_minor = 20000, text.en = "From 200 EUR in a month." },
]
ladder = { clause = "14", kind = "month", months_kept = 1, text.en = "For one month more." }
leaving = [
    { clause = "15", cause = "member", text.en = "A member may leave." },
    { clause = "15", cause = "abuse", reason_needed = true, text.en = "The shop may end it." },
]
suspension = { clause = "16", unit = "bonus", text.en = "Redemption may be suspended." }
approval = [{ clause = "17", operation = "open_balances", text.en = "Two persons open balances." }]
"""  # noqa: E501 - a line a clause

ZONE = ZoneInfo("Europe/Helsinki")
FIRST = date(2024, 1, 1)
BONUS, STARS = "bonus", "stars"
STORES = ("north", "south")
HOURS = {"plastic": 24, "app": 0}
HELD_FOR = timedelta(days=2)
GOLD_FROM = 20_000
AHEAD = timedelta(minutes=5)
INSTANT = timedelta(microseconds=1)
NEVER = date.max
START_OF_TIME = datetime(1, 1, 1, tzinfo=UTC)

Key = tuple[date, date]
"""A lot: its last day without suspensions (exclusive), and when it was earned."""


def day_of(at: datetime) -> date:
    return at.astimezone(ZONE).date()


def month_of(day: date) -> int:
    return day.year * 12 + day.month


def a_month_after(day: date) -> date:
    year, month = (day.year, day.month + 1) if day.month < 12 else (day.year + 1, 1)
    for number in range(day.day, 0, -1):
        try:
            return date(year, month, number)
        except ValueError:
            continue
    raise AssertionError


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """Give each weight what the shares up to it exceed the shares before it."""
    upto = [total * sum(weights[:n]) // sum(weights) for n in range(len(weights) + 1)]
    return [after - before for before, after in pairwise(upto)]


def order(event: AnyEvent) -> tuple[datetime, int, str]:
    rank = 2 if isinstance(event, Sale) else 3 if isinstance(event, Returned) else 1
    return event.at, 4 if isinstance(event, Held | Released) else rank, event.key


@dataclass
class Hold:
    """Points set aside, by the lots that they are in."""

    name: str
    held_at: datetime
    until: datetime
    pins: dict[Key, int] = field(default_factory=dict)

    @property
    def amount(self) -> int:
        return sum(self.pins.values())


@dataclass
class Said:
    """What an event did."""

    earned: Counter[str] = field(default_factory=Counter)
    redeemed: Counter[str] = field(default_factory=Counter)
    taken_back: Counter[str] = field(default_factory=Counter)
    given_back: Counter[str] = field(default_factory=Counter)
    nothing: str = ""


@dataclass
class Gift:
    """What one clause gave on one receipt: how much, line by line, and into which lots."""

    unit: str
    by_line: list[int]
    lots: list[Key]


@dataclass
class Past:
    """A sale as its return needs it: each payment is the list of its single cents' lots."""

    receipt: Receipt
    at: datetime
    counted: bool = False
    gifts: list[Gift] = field(default_factory=list)
    payments: list[list[Key | None]] = field(default_factory=list)
    returned: Counter[int] = field(default_factory=Counter)


@dataclass
class Standing:
    """Where an account stands while its history is lived through."""

    suspended: frozenset[date]
    joined: bool = False
    left: bool = False
    day: date = date.min
    statuses: frozenset[str] = frozenset()
    sums: Counter[int] = field(default_factory=Counter)
    tier: str = ""
    rises_on: date = NEVER
    lots: dict[str, dict[Key, int]] = field(default_factory=dict)
    debts: Counter[str] = field(default_factory=Counter)
    holds: list[Hold] = field(default_factory=list)
    opened: bool = False
    sales: dict[str, Past] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)

    # --- the calendar ---

    def live_until(self, at: datetime) -> None:
        while self.joined and self.day < day_of(at):
            self.day += timedelta(days=1)
            self.end_holds(datetime.combine(self.day, time.min, ZONE))
            self.expire()
            if not self.left:
                self.look_at_tier()
        self.day = max(self.day, day_of(at))
        self.end_holds(at)

    def end_holds(self, at: datetime) -> None:
        over = [hold for hold in self.holds if hold.until <= at]
        self.holds = [hold for hold in self.holds if hold not in over]
        if over:
            self.expire()

    def expire(self) -> None:
        for key in list(self.lots.get(BONUS, ())):
            if self.ends_on(key) <= self.day:
                self.change(BONUS, key, -self.free(BONUS, key))

    def ends_on(self, key: Key) -> date:
        """Count the days on which bonus could be spent; those suspended count for nothing."""
        until, day = key
        left = (until - day).days
        if not self.suspended or left <= 0:
            return until
        while left > 0:
            left -= day not in self.suspended
            day += timedelta(days=1)
        return day

    def look_at_tier(self) -> None:
        if self.rises_on <= self.day:
            self.tier, self.rises_on = "gold", NEVER
        if self.day.day == 1:
            month = month_of(self.day)
            self.tier = "gold" if self.sums[month - 1] >= GOLD_FROM else "basic"
            self.rises_on = NEVER
            self.sums = Counter({m: bought for m, bought in self.sums.items() if m >= month - 2})

    # --- lots, debts and holds ---

    def free(self, unit: str, key: Key) -> int:
        pinned = sum(hold.pins.get(key, 0) for hold in self.holds) if unit == BONUS else 0
        return self.lots.get(unit, {}).get(key, 0) - pinned

    def spendable(self, on: date) -> int:
        lots = self.lots.get(BONUS, {})
        return sum(self.free(BONUS, key) for key in lots if key[1] <= on)

    def change(self, unit: str, key: Key, amount: int) -> None:
        lots = self.lots.setdefault(unit, {})
        lots[key] = lots.get(key, 0) + amount
        assert lots[key] >= self.free(unit, key) >= 0
        if not lots[key]:
            del lots[key]

    def put(self, unit: str, key: Key, amount: int) -> list[Key]:
        """Put an amount into a lot, what is owed first; give the lots that got something."""
        paid = min(amount, self.debts[unit])
        self.debts[unit] -= paid
        if amount > paid:
            self.change(unit, key, amount - paid)
        return [key] * (amount > paid)

    def take_out(self, unit: str, amount: int, first: Iterable[Key] = ()) -> list[Key | None]:
        """Take an amount out; give the lot of each single cent, None for one that is owed."""
        lots = self.lots.get(unit, {})
        self.shrink_holds(unit, amount - sum(self.free(unit, key) for key in lots))
        wanted = [*dict.fromkeys(first), *sorted(lots)]
        taken: list[Key | None] = []
        for key in dict.fromkeys(key for key in wanted if key in lots):
            some = min(amount - len(taken), self.free(unit, key))
            self.change(unit, key, -some)
            taken += [key] * some
        self.debts[unit] += amount - len(taken)
        return taken + [None] * (amount - len(taken))

    def shrink_holds(self, unit: str, missing: int) -> None:
        """What nothing else can cover comes out of holds, the one made last first."""
        for hold in reversed(self.holds if unit == BONUS else []):
            if missing > 0:
                had = hold.amount
                hold.pins = {}
                self.pin(hold, max(0, had - missing))
                missing -= had

    def pin(self, hold: Hold, amount: int) -> None:
        for key in sorted(self.lots.get(BONUS, {})):
            some = min(amount, self.free(BONUS, key))
            if some:
                hold.pins[key] = some
                amount -= some

    # --- events ---

    def take(self, event: AnyEvent) -> None:
        said = self.said[event.key] = Said()
        match event:
            case Joined():
                self.joined, self.left, self.statuses = True, False, frozenset()
                self.tier, self.rises_on = "basic", NEVER
            case Opened():
                self.open(event)
            case RoleTaken():
                pass
            case StatusChanged(status=status, granted=granted):
                self.statuses = self.statuses | {status} if granted else self.statuses - {status}
            case Left():
                self.holds = []
                self.left, self.rises_on = True, NEVER
                self.lapse()
            case Held():
                hold = Hold(event.hold_id, event.at, event.until_at)
                self.pin(hold, event.amount)
                self.holds.append(hold)
            case Released(hold_id=name):
                self.holds = [hold for hold in self.holds if hold.name != name]
                self.expire()
            case Sale():
                self.sell(event, said)
            case Returned():
                self.bring_back(event.document, self.sales[sale_key(event.document, event)], said)

    def open(self, event: Opened) -> None:
        for lot in event.lots:
            key = (NEVER, date.min)
            if lot.valid_until is not None or lot.unit == BONUS:
                key = (lot.valid_until or a_month_after(lot.earned_on), lot.earned_on)
            self.put(lot.unit, key, lot.amount)
        for label, amount in event.sums.items():
            self.sums[month_of(date.fromisoformat(f"{label}-01"))] += amount
        self.opened = True
        if event.tier:
            self.tier, self.rises_on = event.tier, NEVER

    def lapse(self) -> None:
        for unit, lots in self.lots.items():
            for key in list(lots):
                self.change(unit, key, -self.free(unit, key))

    def sell(self, event: Sale, said: Said) -> None:
        receipt = event.receipt
        past = self.sales[event.key] = Past(receipt, event.at)
        if receipt.training:
            said.nothing = "training"
            return
        for tender in receipt.tenders:
            if tender.kind == BONUS:
                hold = next((hold for hold in self.holds if hold.name == tender.hold), None)
                self.holds = [one for one in self.holds if one is not hold]
                first = hold.pins if hold is not None else ()
                past.payments.append(self.take_out(BONUS, tender.amount_minor, first))
                said.redeemed[BONUS] += tender.amount_minor
        if not self.joined or self.left:
            said.nothing = "membership-ended" if self.left else "not-a-member"
            return
        self.earn(receipt, past, said)
        past.counted = True
        self.count(receipt.total_minor, self.day)

    def earn(self, receipt: Receipt, past: Past, said: Said) -> None:
        amounts = [line.amount_minor for line in receipt.lines]
        paid = min(sum(map(len, past.payments)), sum(amounts))
        if paid > 0:
            shares = share_out(paid, amounts)
            amounts = [amount - share for amount, share in zip(amounts, shares, strict=True)]
        for number, line in enumerate(receipt.lines):
            amounts[number] *= line.category != "gift"
        for unit, each, gives in self.rates():
            if amount := max(0, sum(amounts)) // each * gives:
                key = (a_month_after(self.day), self.day) if unit == BONUS else (NEVER, date.min)
                lots = self.put(unit, key, amount)
                past.gifts.append(Gift(unit, share_out(amount, amounts), lots))
                said.earned[unit] += amount
        if not said.earned:
            said.nothing = "nothing-earns"

    def rates(self) -> list[tuple[str, int, int]]:
        """Give what is earned: which unit, for each how much, how many."""
        found = [(BONUS, 10, 1)]
        if self.tier == "gold":
            found.append((STARS, 100, 1))
        if "friend" in self.statuses:
            found.append((STARS, 100, 2))
        return found

    def count(self, amount: int, on: date) -> None:
        if not amount:
            return
        self.sums[month_of(on)] += amount
        reached = self.sums[month_of(on)] >= GOLD_FROM
        if amount > 0 and reached and self.tier != "gold" and self.rises_on == NEVER:
            self.rises_on = on + timedelta(days=1)

    def bring_back(self, document: Return, past: Past, said: Said) -> None:
        total = past.receipt.total_minor
        before = sum(past.returned.values())
        after = before + sum(line.amount_minor for line in document.lines)
        for cents in past.payments if total > 0 else []:
            last_first = cents[::-1]
            paid = len(cents)
            back = last_first[paid * before // total : paid * after // total]
            for key in back:
                fresh = (a_month_after(self.day), self.day)
                self.put(BONUS, key if key is not None else fresh, 1)
            if back:
                said.given_back[BONUS] += len(back)
        for gift in past.gifts:
            returned = past.returned.copy()
            amount = 0
            for line in document.lines:
                gave = gift.by_line[line.line - 1]
                whole = past.receipt.lines[line.line - 1].amount_minor
                amount -= gave * returned[line.line] // whole
                returned[line.line] += line.amount_minor
                amount += gave * returned[line.line] // whole
            if amount:
                same = [key for one in past.gifts if one.unit == gift.unit for key in one.lots]
                self.take_out(gift.unit, amount, same)
                said.taken_back[gift.unit] += amount
        past.returned.update({line.line: 0 for line in document.lines})
        for line in document.lines:
            past.returned[line.line] += line.amount_minor
        if self.left:
            self.lapse()
        sold = day_of(past.at)
        if past.counted and month_of(sold) >= month_of(self.day) - 2:
            self.count(before - after, sold)


def sale_key(document: Return, event: Returned) -> str:
    """Give the key of a return's sale; both have the same issuer."""
    sale = document.sale
    return "/".join(
        [event.key.split("/")[0], sale.store, sale.till, str(sale.business_day), sale.number]
    )


# --- the shop: who may do what -------------------------------------------------------------


@dataclass
class Card:
    """A card's history."""

    kind: str
    role: str
    issued: datetime
    activated: datetime | None = None
    blocked: datetime | None = None
    replaced_by: str = ""
    links: list[tuple[datetime, int]] = field(default_factory=list)

    def account(self, at: datetime) -> int | None:
        return next((account for since, account in reversed(self.links) if since <= at), None)

    def why_not(self, at: datetime) -> str:
        if self.blocked is not None and at >= self.blocked:
            return "card-blocked"
        if at < self.issued:
            return "card-unknown"
        since = self.issued + timedelta(hours=HOURS[self.kind])
        return "card-not-yet-active" if at < min(since, self.activated or since) else ""


@dataclass(frozen=True)
class No:
    """A refusal."""

    code: str


@dataclass(frozen=True)
class Again:
    """What was answered before."""

    key: str


@dataclass(frozen=True)
class Kept:
    """A document without an account."""

    nothing: str


@dataclass(frozen=True)
class Booked:
    """An event of an account; `in_order` if nothing that comes after it was there before."""

    account: int
    key: str
    in_order: bool


Outcome = No | Again | Kept | Booked


@dataclass
class Shop:
    """All that the programme knows. Each operation gives what Kantis must answer."""

    name: str
    suspended: frozenset[date] = frozenset()
    ticked: date = FIRST
    accounts: dict[int, list[AnyEvent]] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    documents: dict[str, Receipt | Return] = field(default_factory=dict)
    booked: dict[str, int] = field(default_factory=dict)
    strays: dict[str, str] = field(default_factory=dict)
    requests: dict[str, tuple[object, object]] = field(default_factory=dict)

    def standing(self, account: int, until: datetime | None = None, *, upto: str = "") -> Standing:
        """Live through an account's history, or `upto` an event, and on until a moment."""
        standing = Standing(self.suspended)
        for event in sorted(self.accounts[account], key=order):
            standing.live_until(event.at)
            standing.take(event)
            if event.key == upto:
                break
        if until is not None:
            standing.live_until(datetime.combine(self.ticked, time.min, ZONE))
            standing.live_until(until)
        return standing

    def stand(self, now: datetime) -> dict[int, Standing]:
        """Give where every account stands now."""
        return {account: self.standing(account, now) for account in self.accounts}

    def key(self, document: Receipt | Return) -> str:
        return "/".join(
            [
                self.name,
                document.store,
                document.till,
                str(document.business_day),
                document.number,
            ]
        )

    def last_at(self, account: int, at: datetime) -> datetime:
        return max([at, *(event.at for event in self.accounts[account])])

    def append(self, account: int, event: AnyEvent) -> Booked:
        before = self.accounts[account]
        in_order = all(order(one) < order(event) for one in before)
        before.append(event)
        return Booked(account, event.key, in_order and day_of(event.at) >= self.ticked)

    # --- sales and returns ---

    def record(self, receipts: Sequence[Receipt], now: datetime) -> list[Outcome]:
        new = [key for key in map(self.key, receipts) if key not in self.documents]
        outcomes = self._each(receipts, now)
        self._take_waiting(new)
        return outcomes

    def record_returns(self, returns: Sequence[Return], now: datetime) -> list[Outcome]:
        return self._each(returns, now)

    def _each(self, documents: Sequence[Receipt | Return], now: datetime) -> list[Outcome]:
        in_order = sorted(range(len(documents)), key=lambda index: documents[index].at)
        outcomes = {index: self._once(documents[index], now) for index in in_order}
        return [outcomes[index] for index in range(len(documents))]

    def _once(self, document: Receipt | Return, now: datetime) -> Outcome:
        key = self.key(document)
        if key in self.documents:
            return Again(key) if self.documents[key] == document else No("receipt-differs")
        if isinstance(document, Receipt):
            outcome = self._receipt(document, key, now)
        else:
            outcome = self._return(document, key, now)
        if isinstance(outcome, Kept):
            self.strays[key] = outcome.nothing
        if isinstance(outcome, Booked):
            self.booked[key] = outcome.account
        if not isinstance(outcome, No):
            self.documents[key] = document
        return outcome

    def _receipt(self, receipt: Receipt, key: str, now: datetime) -> Outcome:
        if wrong := _why_impossible(receipt, now):
            return No(wrong)
        card = self.cards.get(receipt.card)
        nothing = "no-card" if not receipt.card else "card-unknown" if card is None else ""
        account = None
        if card is not None:
            account = card.account(receipt.at)
            nothing = card.why_not(receipt.at) or ("" if account is not None else "card-unknown")
        if nothing or account is None:
            if any(tender.hold or tender.kind in {BONUS, STARS} for tender in receipt.tenders):
                return No("card-not-usable")
            return Kept(nothing)
        standing = self.standing(account, self.last_at(account, receipt.at))
        at = receipt.at
        for tender in receipt.tenders:
            for hold in standing.holds:
                if tender.hold == hold.name:
                    at = max(at, hold.held_at + INSTANT)
        for tender in receipt.tenders:
            if tender.hold and tender.kind == BONUS:
                wrong = _why_not_capture(standing, tender.hold, tender.amount_minor)
            elif tender.kind in {BONUS, STARS} or tender.hold:
                wrong = _why_not_spend(
                    standing, tender.kind, tender.amount_minor, receipt.proof, at
                )
            if wrong:
                return No(wrong)
        return self.append(account, Sale(at=at, key=key, receipt=receipt))

    def _return(self, document: Return, key: str, now: datetime) -> Outcome:
        if document.at > now + AHEAD or day_of(document.at) < FIRST:
            return No("time-impossible")
        if document.store not in STORES:
            return No("store-unknown")
        returned = Returned(at=document.at, key=key, document=document)
        sale = sale_key(document, returned)
        if sale not in self.booked:
            return Kept("sale-without-card" if sale in self.documents else "sale-awaited")
        if isinstance(self.documents[sale], Return):
            return No("sale-unknown")
        if wrong := self._why_not_back(returned, sale):
            return No(wrong)
        return self.append(self.booked[sale], returned)

    def _why_not_back(self, returned: Returned, sale: str) -> str:
        events = self.accounts[self.booked[sale]]
        (sold,) = [one for one in events if isinstance(one, Sale) and one.key == sale]
        if returned.at < sold.at:
            return "time-impossible"
        lines = sold.receipt.lines
        out = [line.amount_minor for line in lines]
        for one in events:
            if isinstance(one, Returned) and sale_key(one.document, one) == sale:
                for back in one.document.lines:
                    out[back.line - 1] -= back.amount_minor
        for back in returned.document.lines:
            if back.line > len(lines):
                return "returned-more-than-bought"
            alike = sum(
                amount
                for line, amount in zip(lines, out, strict=True)
                if _kind(line) == _kind(lines[back.line - 1])
            )
            if back.amount_minor > min(out[back.line - 1], alike):
                return "returned-more-than-bought"
            out[back.line - 1] -= back.amount_minor
        return ""

    def _take_waiting(self, sales: Iterable[str]) -> None:
        wanted = [sale for sale in sales if sale in self.booked]
        for key in sorted(self.strays):
            document = self.documents[key]
            if not isinstance(document, Return):
                continue
            returned = Returned(at=document.at, key=key, document=document)
            sale = sale_key(document, returned)
            if sale in wanted and not self._why_not_back(returned, sale):
                self._place(self.booked[sale], returned)

    def _place(self, account: int, event: AnyEvent) -> Booked:
        del self.strays[event.key]
        self.booked[event.key] = account
        return self.append(account, event)

    def _take_receipts_of(self, number: str, account: int) -> None:
        card = self.cards[number]
        taken = []
        for key in sorted(self.strays):
            receipt = self.documents[key]
            if (
                isinstance(receipt, Receipt)
                and receipt.card == number
                and not card.why_not(receipt.at)
                and card.account(receipt.at) == account
            ):
                self._place(account, Sale(at=receipt.at, key=key, receipt=receipt))
                taken.append(key)
        self._take_waiting(taken)

    def claim(self, account: int, receipt: Receipt) -> Outcome:
        if account not in self.accounts:
            return No("account-unknown")
        key = self.key(receipt)
        if self.strays.get(key) != "no-card":
            return No("sale-unknown")
        first = self.documents[key]
        assert isinstance(first, Receipt)
        booked = self._place(account, Sale(at=first.at, key=key, receipt=first))
        self._take_waiting([key])
        return booked

    # --- what a desk asks for ---

    def happen(
        self, account: int, asked: AnyEvent, warrant: Warrant, *, proof: str = ""
    ) -> Outcome:
        """Let a desk ask for something on an account."""
        if account not in self.accounts:
            return No("account-unknown")
        for before in self.accounts[account]:
            if before.key == asked.key:
                same = type(before) is type(asked) and without_times(before) == without_times(asked)
                return Again(asked.key) if same else No("idempotency-key-reused")
        last = [event.at + INSTANT for event in self.accounts[account]]
        at = max([asked.at, *last])
        standing = self.standing(account, at)
        event = msgspec.structs.replace(asked, at=at)
        if isinstance(event, Held):
            event = msgspec.structs.replace(event, until_at=at + HELD_FOR)
        wrong = self._why_not(standing, event, warrant, proof)
        if wrong or warrant.approved_by == warrant.actor:
            return No(wrong or "approval-missing")
        return self.append(account, event)

    def _why_not(self, standing: Standing, event: AnyEvent, warrant: Warrant, proof: str) -> str:
        wrong = ""
        match event:
            case Joined():
                wrong = "" if standing.left else "already-joined"
            case Opened():
                wrong = _why_not_open(standing, event, warrant)
            case StatusChanged(status=status):
                wrong = "" if status == "friend" else "status-unknown"
            case Left():
                wrong = _why_not_leave(standing, event, warrant)
            case Held():
                wrong = _why_not_spend(standing, event.unit, event.amount, proof, event.at)
            case Released(hold_id=name):
                wrong = "" if name in {hold.name for hold in standing.holds} else "hold-unknown"
            case RoleTaken() | Sale() | Returned():
                raise AssertionError(event)
        return wrong

    def asked_before(self, request_key: str, content: object) -> No | Again | None:
        if request_key not in self.requests:
            return None
        if self.requests[request_key][0] != content:
            return No("idempotency-key-reused")
        return Again(request_key)

    def why_not_enrol(self, applicant: Applicant, kind: str, number: str, at: datetime) -> str:
        born = applicant.born_on
        if born is None or born.year + 18 > day_of(at).year:
            return "may-not-join"
        if kind not in HOURS:
            return "card-kind-unknown"
        return "card-number-taken" if number in self.cards else ""

    def enrol(
        self, account: int, *, request_key: str, content: object, card: str, kind: str, at: datetime
    ) -> None:
        self.accounts[account] = [Joined(at=at, key=f"joined/{request_key}")]
        self.requests[request_key] = (content, (account, card))
        self.cards[card] = Card(kind, "main", at, links=[(at, account)])
        self._take_receipts_of(card, account)

    def why_not_issue(self, account: int, kind: str, role: str, number: str) -> str:
        if account not in self.accounts:
            return "account-unknown"
        if kind not in HOURS:
            return "card-kind-unknown"
        if role not in {"main", "family"}:
            return "role-unknown"
        return "card-number-taken" if number in self.cards else ""

    def issue(
        self,
        account: int,
        *,
        request_key: str,
        content: object,
        card: str,
        kind: str,
        role: str,
        at: datetime,
    ) -> None:
        self.append(account, RoleTaken(at=at, key=f"issued/{request_key}", role=role))
        self.requests[request_key] = (content, card)
        self.cards[card] = Card(kind, role, at, links=[(at, account)])
        self._take_receipts_of(card, account)

    def activate(self, number: str, at: datetime) -> No | None:
        card = self.cards.get(number)
        account = None if card is None else card.account(at)
        if card is None or account is None:
            return No("card-unknown")
        card.activated = card.activated or at
        self._take_receipts_of(number, account)
        return None

    def block(self, number: str, at: datetime) -> No | None:
        card = self.cards.get(number)
        if card is None:
            return No("card-unknown")
        card.blocked = card.blocked or at
        return None

    def replace(self, number: str, new: str, drawn: str, at: datetime) -> No | str:
        card = self.cards.get(number)
        if card is None:
            return No("card-unknown")
        if card.replaced_by:
            return No("card-not-usable") if new not in {"", card.replaced_by} else card.replaced_by
        account = card.account(at)
        assert account is not None
        if (new or drawn) in self.cards:
            return No("card-number-taken")
        card.blocked, card.replaced_by = card.blocked or at, new or drawn
        self.cards[new or drawn] = Card(card.kind, card.role, at, links=[(at, account)])
        return new or drawn

    def pool(self, number: str, onto: int, at: datetime) -> No | None:
        if number not in self.cards:
            return No("card-unknown")
        if onto not in self.accounts:
            return No("account-unknown")
        self.cards[number].links.append((at, onto))
        return None

    def suspend(self, start: date, end: date, warrant: Warrant, now: datetime) -> No | None:
        if not day_of(now) <= start < end:
            return No("suspension-not-allowed")
        if not warrant.reason:
            return No("reason-missing")
        if warrant.approved_by == warrant.actor:
            return No("approval-missing")
        days = {start + timedelta(days=n) for n in range((end - start).days)}
        self.suspended |= days
        return None


def without_times(event: AnyEvent) -> AnyEvent:
    """Give an event without its moments: asked for later, it is still the same."""
    event = msgspec.structs.replace(event, at=START_OF_TIME)
    if isinstance(event, Held):
        event = msgspec.structs.replace(event, until_at=START_OF_TIME)
    return event


def _why_not_leave(standing: Standing, event: Left, warrant: Warrant) -> str:
    if not standing.joined or standing.left:
        return "membership-ended"
    if event.cause not in {"member", "abuse"}:
        return "leaving-cause-unknown"
    return "reason-missing" if event.cause == "abuse" and not warrant.reason else ""


def _why_impossible(receipt: Receipt, now: datetime) -> str:
    total = receipt.total_minor
    paid = [one.amount_minor for one in receipt.tenders if one.kind in {BONUS, STARS}]
    if receipt.at > now + AHEAD or day_of(receipt.at) < FIRST:
        return "time-impossible"
    if total != sum(line.amount_minor for line in receipt.lines) or (
        receipt.tenders and total != sum(one.amount_minor for one in receipt.tenders)
    ):
        return "amounts-do-not-add-up"
    if min(paid, default=1) <= 0 or sum(paid) > max(total, 0):
        return "amounts-do-not-add-up"
    if receipt.currency != "EUR":
        return "currency-unknown"
    return "" if receipt.store in STORES else "store-unknown"


def _why_not_spend(standing: Standing, unit: str, amount: int, proof: str, at: datetime) -> str:
    if unit != BONUS:
        return "unit-not-spendable"
    if not standing.joined or standing.left:
        return "membership-ended"
    if day_of(at) in standing.suspended:
        return "redemption-suspended"
    if proof != "pin":
        return "proof-missing"
    if standing.debts[BONUS]:
        return "in-debt"
    return "not-enough" if amount > standing.spendable(day_of(at)) else ""


def _why_not_capture(standing: Standing, name: str, amount: int) -> str:
    hold = next((hold for hold in standing.holds if hold.name == name), None)
    if hold is None:
        return "hold-unknown"
    return "hold-too-small" if amount > hold.amount else ""


def _why_not_open(standing: Standing, event: Opened, warrant: Warrant) -> str:
    if not standing.joined or standing.left:
        return "membership-ended"
    if standing.opened or standing.sums or standing.lots or any(standing.debts.values()):
        return "already-opened"
    if any(lot.unit not in {BONUS, STARS} or lot.amount <= 0 for lot in event.lots):
        return "unit-unknown"
    if event.tier not in {"", "basic", "gold"}:
        return "unit-unknown"
    return "approval-missing" if warrant.approved_by in {"", warrant.actor} else ""


def _kind(line: Line) -> tuple[str, str]:
    return line.category, line.product
