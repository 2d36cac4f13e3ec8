"""What the terminal prints: figures in a form that people read."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kantis.core.receipt import Line, Receipt
from kantis.core.terms import Terms
from kantis.core.totals import Totals
from kantis.db.backup import Manifest
from kantis.db.programmes import KnownToken
from kantis.operations.explaining import Explanation

MINOR = 100
"""Minor units in a major one."""

NOTHING = {
    "nothing-earns": "no clause gives anything for these lines, or less than one whole unit",
    "no-clause-applies": "no clause holds for this member, store and day",
    "training": "the till was in training mode",
    "not-a-member": "nobody had joined yet",
    "membership-ended": "the membership had ended",
    "earning-not-begun": "earning begins on the day after joining",
}
"""Reason codes in words."""


def money(minor: int, currency: str) -> str:
    """Give money with its decimals and currency."""
    sign, minor = ("-" if minor < 0 else ""), abs(minor)
    return f"{sign}{minor // MINOR:,}.{minor % MINOR:02d} {currency}"


def amount_of(terms: Terms, unit: str) -> Callable[[int], str]:
    """Give how to write amounts of a unit."""
    is_money = any(u.name == unit and u.kind == "money" for u in terms.unit)
    return lambda amount: money(amount, terms.currency) if is_money else f"{amount:,}"


def text_of(terms: Terms, clause: str, language: str) -> str:
    """Give a clause's text, in another language if it lacks this one."""
    for blocks in (terms.earn, terms.exclusion, terms.conversion, terms.expiry):
        for block in blocks:
            if block.clause == clause:
                return block.text.get(language) or next(iter(block.text.values()), "")
    return ""


def summary(totals: Totals, terms: Terms, *, title: str) -> Table:
    """Give a programme's totals as a table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in _figures(totals, terms):
        table.add_row(name, value)
    return table


def _figures(totals: Totals, terms: Terms) -> Iterable[tuple[str, str]]:
    yield "Accounts", f"{totals.accounts:,}"
    yield "Receipts", f"{totals.receipts:,}"
    yield "  with their lines", f"{totals.lines:,}"
    yield "  that earned something", f"{totals.receipts_earning:,}"
    for unit, by_clause in sorted(totals.earned.items()):
        write = amount_of(terms, unit)
        yield f"{_label(terms, unit)} earned", write(sum(by_clause.values()))
        for clause, amount in sorted(by_clause.items()):
            yield f"  by clause {clause}", write(amount)
    for kind in sorted(set(totals.moved) - {"earned"}):
        for unit, amount in sorted(totals.moved[kind].items()):
            yield f"{_label(terms, unit)} {kind}", amount_of(terms, unit)(amount)
    if totals.fees_minor:
        yield "Fees charged", money(totals.fees_minor, terms.currency)
    if totals.cards_ordered:
        yield "Cards ordered", f"{totals.cards_ordered:,}"
    for name, owed in (("owed", totals.outstanding), ("owed, usable later", totals.pending)):
        for unit, amount in sorted(owed.items()):
            yield f"{_label(terms, unit)} {name}", amount_of(terms, unit)(amount)
    for unit, debt in sorted(totals.debts.items()):
        yield f"{_label(terms, unit)} owed by members", amount_of(terms, unit)(debt)


def _label(terms: Terms, unit: str) -> str:
    labels = (u.label for u in terms.unit if u.name == unit)
    label = next(labels, {}).get("en", unit)
    return label[:1].upper() + label[1:]


def months(totals: Totals, terms: Terms) -> Table | None:
    """Give what each month brought, if the programme has tiers or converts."""
    tiers = totals.tiers
    if not tiers and not totals.converted:
        return None
    table = Table(box=box.SIMPLE_HEAD, title="Month by month", title_justify="left")
    table.add_column("month")
    for tier in terms.tier:
        table.add_column(tier.label.get("en", tier.name), justify="right")
    units = sorted({unit for moved in totals.converted.values() for unit in moved})
    for unit in units:
        table.add_column(f"{_label(terms, unit)} converted", justify="right")
    have: dict[str, int] = {}
    for month in sorted({*tiers, *totals.converted}):
        have = tiers.get(month, have)
        moved = totals.converted.get(month, {})
        table.add_row(
            month,
            *(f"{have.get(tier.name, 0):,}" for tier in terms.tier),
            *(amount_of(terms, unit)(moved.get(unit, 0)) for unit in units),
        )
    return table


def tills(known: Iterable[KnownToken]) -> Table:
    """Give who was let in, and who is no more: one line a token."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("store", "label", "kind", "since", "revoked"):
        table.add_column(heading, no_wrap=True)
    for one in known:
        revoked = "" if one.revoked_at is None else f"{one.revoked_at:%Y-%m-%d %H:%M}"
        label = Text(one.label)
        table.add_row(one.store, label, one.kind, f"{one.created_at:%Y-%m-%d %H:%M}", revoked)
    return table


def comparison(now: Totals, then: Totals, terms: Terms) -> Table:
    """Give what other terms would change, figure by figure."""
    table = Table(title="What would change", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "as it is", "under the other terms", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for unit in sorted({*now.earned, *then.earned}):
        write = amount_of(terms, unit)
        _compare(
            table,
            f"{_label(terms, unit)} earned",
            sum(now.earned.get(unit, {}).values()),
            sum(then.earned.get(unit, {}).values()),
            write,
        )
    for unit in sorted({*now.outstanding, *then.outstanding, *now.pending, *then.pending}):
        before = now.outstanding.get(unit, 0) + now.pending.get(unit, 0)
        after = then.outstanding.get(unit, 0) + then.pending.get(unit, 0)
        _compare(table, f"{_label(terms, unit)} owed", before, after, amount_of(terms, unit))
    last = max({*now.tiers, *then.tiers}, default="")
    for tier in terms.tier:
        _compare(
            table,
            f"{tier.label.get('en', tier.name)}, accounts at the end",
            now.tiers.get(last, {}).get(tier.name, 0),
            then.tiers.get(last, {}).get(tier.name, 0),
            lambda count: f"{count:,}",
        )
    return table


def _compare(table: Table, name: str, before: int, after: int, write: Callable[[int], str]) -> None:
    sign = "+" if after > before else ""
    table.add_row(name, write(before), write(after), sign + write(after - before))


def explanation(found: Explanation, *, language: str) -> Iterable[Table | Text]:
    """Give a receipt's explanation: its lines, then the clauses in words."""
    sale, terms = found.sale, found.terms
    receipt = sale.receipt
    yield Text(
        f"Receipt {sale.key}\n{receipt.at.isoformat()} · account {found.account_id} ·"
        f" terms of {found.decision.terms} · {len(receipt.lines)} lines,"
        f" {money(receipt.total_minor, receipt.currency)}"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("line", "category", "product", "paid", "earned", "clause"):
        table.add_column(name, justify="right" if name in {"line", "paid", "earned"} else "left")
    for line, reason in zip(receipt.lines, found.lines, strict=True):
        earned = ", ".join(
            f"{amount_of(terms, share.unit)(share.amount)} {share.unit}" for share in reason.earned
        )
        clauses = ", ".join(share.clause for share in reason.earned)
        if reason.excluded_by:
            clauses = f"nothing: {reason.excluded_by}"
        paid = money(line.amount_minor, receipt.currency)
        table.add_row(str(reason.line), line.category, line.product, paid, earned, clauses)
    yield table
    for one in found.decision.earned:
        amount = amount_of(terms, one.unit)(one.amount)
        base = money(one.base, receipt.currency)
        text = text_of(terms, one.clause, language)
        yield Text(f"{amount} {one.unit} by {one.clause} on {base}: {text}")
    for why in found.decision.reasons:
        said = NOTHING.get(why.code, why.code)
        yield Text(f"Nothing earned: {said}{f' ({why.clause})' if why.clause else ''}.")
    for clause in sorted({reason.excluded_by for reason in found.lines} - {""}):
        yield Text(f"Nothing by {clause}: {text_of(terms, clause, language)}")


def curl_lines(address: str, token: str, like: Receipt, *, now: datetime) -> list[str]:
    """Give three calls that work: a card, a quote, and a receipt like one of the year's."""
    head = f"-H 'Authorization: Bearer {token}'"
    receipt = msgspec.structs.replace(
        like,
        at=now.replace(microsecond=0),
        business_day=now.date(),
        number=f"try-{now:%H%M%S}",
        lines=(Line(1999, "grocery"), Line(500, "alcohol")),
        total_minor=2499,
    )
    body = msgspec.json.encode(receipt).decode()
    post = f"curl -s {head} -H 'Content-Type: application/json' -d '{body}'"
    return [
        f"  curl -s {head} {address}/v1/cards/{like.card}\n",
        f"  {post} {address}/v1/quotes\n",
        f"  {post} {address}/v1/receipts",
    ]


def backup(manifest: Manifest, *, title: str) -> Table:
    """Give what a backup holds as a table."""
    held, version = manifest.held, manifest.server_version
    table = Table(title=title, box=box.SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Taken at", _instant(manifest.taken_at))
    table.add_row("Receipts and returns", f"{held.receipts:,}")
    table.add_row("Events", f"{held.rows['event']:,}")
    table.add_row("Transfers", f"{held.rows['transfer']:,}")
    table.add_row("Latest receipt", held.latest_receipt or "none")
    if held.latest_recorded_at:
        table.add_row("  recorded at", _instant(held.latest_recorded_at))
    table.add_row("Size of the dump", f"{manifest.dump_bytes:,} bytes")
    table.add_row("From", f"Kantis {manifest.kantis}, PostgreSQL {version // 10_000}")
    return table


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(sep=" ", timespec="seconds")


def show(console: Console, *things: Table | Text | None) -> None:
    """Print what there is."""
    for thing in things:
        if thing is not None:
            console.print(thing)
