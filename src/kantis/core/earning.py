"""What a receipt earns, by which clause, and how that falls on its lines."""

from collections.abc import Callable, Sequence
from datetime import date
from functools import lru_cache
from itertools import chain as chained

from kantis.core.numbers import ONE, Ratio, Rounding, scale, split
from kantis.core.receipt import Line, Receipt
from kantis.core.standing import Earned, Reason, Standing
from kantis.core.terms import Earn, EarnRule, Lines, PerAmount, Percent, PerPiece, Stores, Terms

NOTHING = Ratio(0, 1)


class Earner:
    """A version's earning blocks, made ready: one pass over the lines, whatever the clauses."""

    def __init__(self, terms: Terms) -> None:
        """Prepare the blocks of `terms`."""
        self.rules: tuple[EarnRule, ...] = terms.earn
        self.fees = frozenset(fee.name for fee in terms.fee)
        self._exclusions = terms.exclusion
        self._spendable = {
            redemption.unit: redemption.paid_part_counts_for for redemption in terms.redemption
        }
        self._by_product = any(
            lines.product
            for lines in (*(e.lines for e in terms.exclusion), *(r.lines for r in terms.earn))
        )
        self._per_piece = {i for i, r in enumerate(terms.earn) if isinstance(r, PerPiece)}
        self._give: tuple[Callable[[int, Ratio], int], ...] = tuple(map(_giver, terms.earn))
        self._rules_for = lru_cache(maxsize=100_000)(self._match)
        self._in_force = lru_cache(maxsize=10_000)(self._find_in_force)

    def earn(
        self, receipt: Receipt, *, standing: Standing, chain: str, on: date
    ) -> tuple[list[Earned], list[Reason]]:
        """Give what the receipt earns on local day `on`, and why if nothing."""
        in_force = self._in_force(standing.tier, standing.statuses, chain, on)
        if not in_force:
            return [], [Reason("no-clause-applies")]
        bases = self._bases(receipt.lines, self.earning_amounts(receipt))
        earned = []
        for index in in_force:
            rule = self.rules[index]
            share = self._share(receipt, rule.paid_with) if rule.paid_with else ONE
            if (base := bases[index]) > 0 and share.num > 0:
                amount = self._give[index](base, share)
                if amount:
                    earned.append(Earned(rule.clause, rule.unit, amount, base, index))
        return earned, ([] if earned else [Reason("nothing-earns")])

    def by_line(self, receipt: Receipt, earned: Earned) -> list[int]:
        """Share out what a clause gave over the receipt's lines; the parts add up to it."""
        amounts = self.earning_amounts(receipt)
        rule = self.rules[earned.rule]
        weights = [
            (line.quantity_milli if isinstance(rule, PerPiece) else amount)
            if earned.rule in self.rules_for(line)
            else 0
            for line, amount in zip(receipt.lines, amounts, strict=True)
        ]
        return split(earned.amount, weights)

    def exclusion_of(self, line: Line) -> str:
        """Name the clause because of which a line earns nothing; empty if none does."""
        return next((e.clause for e in self._exclusions if selects(e.lines, line)), "")

    def rules_for(self, line: Line) -> tuple[int, ...]:
        """Give the places of the blocks under which a line may earn."""
        return self._rules_for(
            line.category,
            line.own_brand,
            line.reduced,
            line.fee,
            line.product if self._by_product else "",
        )

    def earning_amounts(self, receipt: Receipt) -> Sequence[int]:
        """Give each line's amount less its share of what was paid with points or bonus.

        Where the terms let the paid part count for the tier only (K-1.7, S-9), it is
        taken off all lines in proportion.
        """
        paid = self._paid_in_units(receipt) if receipt.tenders else 0
        amounts = [line.amount_minor for line in receipt.lines]
        if not paid or sum(amounts) <= 0:
            return amounts
        shares = split(min(paid, sum(amounts)), amounts)
        return [amount - share for amount, share in zip(amounts, shares, strict=True)]

    def _paid_in_units(self, receipt: Receipt) -> int:
        return sum(
            tender.amount_minor
            for tender in receipt.tenders
            if self._spendable.get(tender.kind) == "tier"
        )

    def _share(self, receipt: Receipt, kind: str) -> Ratio:
        """Give the share of a tender, 1 at most, in what was paid otherwise than with bonus."""
        if not receipt.tenders:
            return NOTHING
        others = sum(t.amount_minor for t in receipt.tenders) - self._paid_in_units(receipt)
        paid = sum(t.amount_minor for t in receipt.tenders if t.kind == kind)
        # Cash given back can make one tender exceed the whole.
        return Ratio(min(paid, others), others) if others > 0 else NOTHING

    def _bases(self, lines: Sequence[Line], amounts: Sequence[int]) -> list[int]:
        """Add up, for each block, the lines that may earn under it.

        One dictionary entry per set of blocks, not one addition per line and block: most
        receipts have two or three such sets, whatever the number of lines.
        """
        rules_for, by_product = self._rules_for, self._by_product
        sums: dict[tuple[int, ...], int] = {}
        for line, amount in zip(lines, amounts, strict=True):
            matched = rules_for(
                line.category,
                line.own_brand,
                line.reduced,
                line.fee,
                line.product if by_product else "",
            )
            sums[matched] = sums.get(matched, 0) + amount
        bases = [0] * len(self.rules)
        for matched, amount in sums.items():
            for index in matched:
                bases[index] += amount
        for index in self._per_piece.intersection(chained.from_iterable(sums)):
            thousandths = (line.quantity_milli for line in lines if index in self.rules_for(line))
            bases[index] = sum(thousandths) // 1000
        return bases

    def _find_in_force(
        self, tier: str, statuses: tuple[str, ...], chain: str, on: date
    ) -> tuple[int, ...]:
        return tuple(
            index
            for index, rule in enumerate(self.rules)
            if _applies(rule, tier=tier, statuses=statuses, chain=chain, on=on)
        )

    def _match(
        self, category: str, own_brand: bool, reduced: bool, fee: str, product: str
    ) -> tuple[int, ...]:
        line = Line(0, category, product, own_brand=own_brand, reduced=reduced)
        if fee in self.fees or any(
            selects(exclusion.lines, line) for exclusion in self._exclusions
        ):
            return ()
        return tuple(i for i, rule in enumerate(self.rules) if selects(rule.lines, line))


def selects(lines: Lines, line: Line) -> bool:
    """Tell whether a selector takes in a line."""
    return (
        (not lines.category or _within(line.category, lines.category))
        and not _within(line.category, lines.not_category)
        and (not lines.product or line.product in lines.product)
        and lines.own_brand in (None, line.own_brand)
        and lines.reduced in (None, line.reduced)
    )


def selects_store(stores: Stores, chain: str) -> bool:
    """Tell whether a selector takes in a store of `chain`."""
    return (not stores.chain or chain in stores.chain) and chain not in stores.not_chain


def _within(category: str, wanted: tuple[str, ...]) -> bool:
    """Tell whether a category path is one of those wanted, or lies below one."""
    return any(category == one or category.startswith(f"{one}/") for one in wanted)


def _applies(rule: Earn, *, tier: str, statuses: tuple[str, ...], chain: str, on: date) -> bool:
    """Tell whether a block holds for this member, store and day."""
    return (
        rule.first_on <= on <= rule.last_on
        and (not rule.tier or tier in rule.tier)
        and (not rule.status or any(s in rule.status for s in statuses))
        and not (rule.not_status and any(s in rule.not_status for s in statuses))
        and selects_store(rule.stores, chain)
    )


def _giver(rule: EarnRule) -> Callable[[int, Ratio], int]:
    """Compile a block to what it gives for a base amount, of which it counts a share."""
    match rule:
        case PerAmount():
            each = Ratio.of(rule.per_minor.den, rule.per_minor.num)
            return lambda base, share: rule.give * scale(base, each.times(share))
        case Percent():
            rate = Ratio.of(rule.percent.num, rule.percent.den * 100)
            rounding: Rounding = rule.rounding
            return lambda base, share: scale(base, rate.times(share), rounding)
        case PerPiece():
            return lambda base, share: scale(base * rule.give, share)
