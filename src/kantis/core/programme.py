"""A programme in force: its dated versions, ready to run, and its suspensions."""

from bisect import bisect_right
from collections.abc import Iterable
from datetime import date, datetime
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from kantis.core.earning import Earner
from kantis.core.periods import NEVER, Period, local_day
from kantis.core.refusals import TermsNotInForce
from kantis.core.standing import LotKey
from kantis.core.terms import Terms
from kantis.core.terms_text import TermsFaulty, check_succession

DAYS_KEPT = 4096
"""Instants whose local day is remembered: those of the receipts under way, and more."""


class Version:
    """One version of the terms with what is prepared from it."""

    def __init__(self, terms: Terms) -> None:
        """Prepare `terms`."""
        self.terms = terms
        self.earner = Earner(terms)
        self.units = frozenset(unit.name for unit in terms.unit)


class Programme:
    """All versions of a programme's terms in order, and the periods without redemption."""

    def __init__(self, versions: Iterable[Terms], suspensions: Iterable[Period] = ()) -> None:
        """Put the versions in order.

        :raises TermsFaulty: when a version drops what an earlier one had and does not say so
        """
        in_order = sorted(versions, key=lambda terms: terms.valid_from)
        faults = [f for one, next_ in pairwise(in_order) for f in check_succession(one, next_)]
        if faults:
            raise TermsFaulty(faults)
        self.versions = tuple(map(Version, in_order))
        self.suspensions = tuple(_joined(suspensions))
        self.name = in_order[0].programme
        self.zone = ZoneInfo(in_order[0].zone)
        self.units = frozenset[str]().union(*(version.units for version in self.versions))
        self._starts = [terms.valid_from for terms in in_order]
        self._day = lru_cache(maxsize=DAYS_KEPT)(self._reckon_day)

    def day(self, at: datetime) -> date:
        """Give the programme's local day at an instant."""
        return self._day(at, at.fold)

    def _reckon_day(self, at: datetime, fold: int) -> date:
        """Reckon a day that `day` remembers: a dozen rules ask for that of one receipt.

        `fold` tells apart what Python calls equal, the hours that a clock shows twice.
        """
        del fold
        return local_day(at, self.zone)

    def is_before(self, at: datetime) -> bool:
        """Tell whether an instant lies before the first version."""
        return self.day(at) < self._starts[0]

    def on(self, day: date) -> Version:
        """Give the version in force on a day.

        :raises TermsNotInForce: before the first version
        """
        index = bisect_right(self._starts, day)
        if not index:
            raise TermsNotInForce(programme=self.name, day=day)
        return self.versions[index - 1]

    def terms_at(self, at: datetime) -> Terms:
        """Give the terms in force at an instant.

        :raises TermsNotInForce:
        """
        return self.on(self.day(at)).terms

    def version(self, valid_from: date) -> Version:
        """Give the version that began on exactly this day."""
        return self.versions[self._starts.index(valid_from)]

    def next_start(self, after: date) -> date:
        """Give the day on which the next version after `after` begins, `NEVER` if none."""
        index = bisect_right(self._starts, after)
        return self._starts[index] if index < len(self._starts) else NEVER

    def is_suspended(self, unit: str, day: date) -> bool:
        """Tell whether redemption of a unit is suspended on a day."""
        return any(
            start <= day < end and self._extends(unit, start) for start, end in self.suspensions
        )

    def expires_on(self, unit: str, key: LotKey) -> date:
        """Give the day on which a lot expires, put off by the suspensions it lived through."""
        until = key.valid_until
        for start, end in self.suspensions:
            if until == NEVER or not self._extends(unit, start):
                continue
            if start < until and end > key.valid_from:
                longer = end - max(start, key.valid_from)
                until = until + longer if longer < NEVER - until else NEVER
        return until

    def _extends(self, unit: str, start: date) -> bool:
        suspension = self.on(max(start, self._starts[0])).terms.suspension
        return suspension is not None and suspension.unit == unit


def _joined(periods: Iterable[Period]) -> list[Period]:
    """Join the periods that meet or overlap, so that no day of them counts twice."""
    joined: list[Period] = []
    for start, end in sorted(periods):
        if joined and start <= joined[-1].end:
            joined[-1] = Period(joined[-1].start, max(end, joined[-1].end))
        else:
            joined.append(Period(start, end))
    return joined
