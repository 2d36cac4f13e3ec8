"""Tills that ask until they have an answer, what they remember, and what must be true of it.

Every intent and every answer is written down before and after. An answer is `ok`, `refused`
(definitive: nothing was booked) or not known (asked again); anything else fails the proof.
"""

import http.client
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from tests.proofs.shop import PROGRAMME, STORE, TOKEN, Shop, until

Json = dict[str, Any]

REFUSALS = {
    "amounts-do-not-add-up": 422,
    "hold-too-small": 409,
    "hold-unknown": 409,
    "in-debt": 409,
    "not-enough": 409,
    "proof-missing": 403,
    "returned-more-than-bought": 409,
}
"""What tills here can be refused for; another code is a fault."""

DOUBLED = 0.10
"""How many of the answered intents are sent again on purpose."""

PATIENCE_SECONDS = 180
"""How long a till asks for one answer before it says that it got none."""


class Intent(Struct, frozen=True):
    """What a till wants; `key` is that of the event in the books."""

    kind: Literal["receipt", "return", "hold", "release"]
    key: str
    path: str
    body: bytes
    idempotency_key: str = ""


class Answered(Struct, frozen=True):
    """A definitive answer."""

    outcome: Literal["ok", "refused"]
    body: bytes
    code: str
    replayed: bool


class NoAnswer(Exception):
    """Nobody answered, or not definitively; `port` is the till's own end of the connection."""

    def __init__(self, why: str, port: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.port = port


class Unclassified(Exception):
    """An answer that tills cannot make sense of."""


class Till:
    """One till with its journal. Faults are kept: a run with any has failed."""

    def __init__(
        self,
        number: int,
        shop: Shop,
        chance: random.Random,
        journal: Path,
        *,
        pause: float = 0.005,
        timeout: float = 10,
        ports: Sequence[int] = (),
        was_answered: Callable[[int], bool] | None = None,
    ) -> None:
        """`was_answered` tells of a till's port whether an answer was cut on its way there."""
        self.name = f"{number}"
        self.shop = shop
        self.chance = chance
        self.pause = pause
        self.timeout = timeout
        self.ports = ports or shop.ports
        self.was_answered = was_answered
        self.journal = journal.open("a", encoding="utf-8")
        self.line: http.client.HTTPConnection | None = None
        self.asked = 0
        self.acknowledged: dict[str, tuple[Intent, Answered]] = {}
        self.refused: dict[str, tuple[Intent, Answered]] = {}
        self.sales: deque[Json] = deque(maxlen=40)
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        """The longest that one request took, answered or not."""
        self.silences: list[tuple[float, float]] = []
        """When an intent that was not answered at once was first sent, and when answered."""

    # --- what a till does ------------------------------------------------------------------

    def work(self, stop: threading.Event) -> None:
        """Serve customers until asked to stop; what is under way gets its answer."""
        try:
            while not stop.is_set():
                self._serve()
                time.sleep(self.chance.uniform(0, 2 * self.pause))
        except Exception as error:  # noqa: BLE001 - a till that breaks off is a fault of the run
            self.faults.append(f"till {self.name} broke off: {error!r}")
        finally:
            self._hang_up()
            self.journal.close()

    def _serve(self) -> None:
        draw = self.chance.random()
        if draw < 0.55:
            self._sell()
        elif draw < 0.58:
            self._sell_twice_at_once()
        elif draw < 0.70:
            self._sell_for_bonus()
        elif draw < 0.85:
            self._hold_and_capture()
        elif draw < 0.97:
            self._take_back()
        else:
            sale = self._sale(self._amounts())
            self.settle(self._receipt(sale | {"total_minor": 1}))

    def _sell(self) -> None:
        sale = self._sale(self._amounts())
        if self.chance.random() < 0.03:  # it was offline
            at = datetime.now(UTC) - timedelta(seconds=self.chance.randint(60, 170_000))
            sale |= {"at": at.isoformat(), "business_day": at.date().isoformat()}
        if self.settle(self._receipt(sale)):
            self.sales.append(sale)

    def _sell_for_bonus(self) -> None:
        amounts = self._amounts()
        total = sum(amounts)
        bonus = min(total, self.chance.randint(1, 1_500))
        sale = self._sale(amounts) | {
            "tenders": [
                {"kind": "bonus", "amount_minor": bonus},
                {"kind": "cash", "amount_minor": total - bonus},
            ],
            "proof": "" if self.chance.random() < 0.05 else "staff",
        }
        if self.settle(self._receipt(sale)):
            self.sales.append(sale)

    def _hold_and_capture(self) -> None:
        sale = self._sale(self._amounts())
        bonus = min(sale["total_minor"], self.chance.randint(1, 1_500))
        key = f"{self.name}-{self._count()}"
        asked = {"card": sale["card"], "unit": "bonus", "amount": bonus, "proof": "staff"}
        body = json.dumps(asked).encode()
        held = self.settle(Intent("hold", f"held/{STORE}/{key}", "/v1/holds", body, key))
        if held is None:
            return
        hold_id = json.loads(held.body)["hold_id"]
        draw = self.chance.random()
        if draw < 0.15:
            body = json.dumps({"card": sale["card"]}).encode()
            path = f"/v1/holds/{hold_id}/release"
            self.settle(Intent("release", f"released/{hold_id}", path, body))
            return
        named = f"{self.chance.getrandbits(128):032x}" if draw < 0.20 else hold_id
        paid = {"kind": "bonus", "amount_minor": bonus + (draw > 0.95), "hold": named}
        rest = {"kind": "cash", "amount_minor": sale["total_minor"] - paid["amount_minor"]}
        sale |= {"tenders": [paid, rest]}
        if self.settle(self._receipt(sale, path=f"/v1/holds/{named}/capture")):
            self.sales.append(sale)

    def _take_back(self) -> None:
        if not self.sales:
            return
        sale = self.chance.choice(self.sales)
        number = self.chance.randrange(len(sale["lines"]))
        bought = sale["lines"][number]["amount_minor"]
        amount = self.chance.choice([bought, max(1, bought // 3)])
        now = datetime.now(UTC)
        document = {
            "store": STORE,
            "till": self.name,
            "business_day": now.date().isoformat(),
            "number": f"R{self._count()}",
            "at": now.isoformat(),
            "sale": {name: sale[name] for name in ("store", "till", "business_day", "number")},
            "lines": [{"line": number + 1, "amount_minor": amount}],
        }
        key = _key(document)
        body = json.dumps(document).encode()
        self.settle(Intent("return", key, "/v1/returns", body))

    def _amounts(self) -> list[int]:
        return [self.chance.randint(100, 20_000) for _ in range(self.chance.randint(1, 4))]

    def _sale(self, amounts: Sequence[int]) -> Json:
        now = datetime.now(UTC)
        return {
            "store": STORE,
            "till": self.name,
            "business_day": now.date().isoformat(),
            "number": f"{self._count()}",
            "at": now.isoformat(),
            "currency": "NOK",
            "total_minor": sum(amounts),
            "lines": [{"amount_minor": amount} for amount in amounts],
            "card": self.chance.choice(self.shop.cards),
        }

    @staticmethod
    def _receipt(sale: Json, *, path: str = "/v1/receipts") -> Intent:
        return Intent("receipt", _key(sale), path, json.dumps(sale).encode())

    def _count(self) -> int:
        self.asked += 1
        return self.asked

    # --- how it asks -----------------------------------------------------------------------

    def settle(self, intent: Intent) -> Answered | None:
        """Ask until there is an answer, remember it, perhaps ask again; give it if it was ok."""
        answered = self._ask(intent)
        if answered is None:
            return None
        kept = self.acknowledged if answered.outcome == "ok" else self.refused
        kept[intent.key] = (intent, answered)
        if answered.outcome == "ok" and self.chance.random() < DOUBLED:
            self.counts["duplicates"] += 1
            if (again := self._ask(intent, is_repeated=True)) is not None:
                self._compare(intent, answered, again)
        return answered if answered.outcome == "ok" else None

    def _ask(self, intent: Intent, *, is_repeated: bool = False) -> Answered | None:
        """Ask until there is an answer; none if it took too long or made no sense."""
        began = time.monotonic()
        surely_booked, tries = False, 0
        answered: Answered | None = None
        while answered is None:
            tries += 1
            try:
                answered = self._try(intent)
            except NoAnswer as none:
                if self.was_answered is not None and self.was_answered(none.port):
                    surely_booked = True
            except Unclassified as error:
                self.faults.append(f"{intent.key}: unclassified {error}")
                return None
            if answered is None and time.monotonic() - began > PATIENCE_SECONDS:
                self.faults.append(f"{intent.key}: no answer in {PATIENCE_SECONDS} s")
                return None
            if answered is None:
                time.sleep(self.chance.uniform(0.01, 0.2))
        self.counts[answered.outcome] += not is_repeated
        self.counts[answered.code or "booked"] += 1
        self.counts["replayed"] += answered.replayed
        if tries > 1:
            self.silences.append((began, time.monotonic()))
            self.counts["found booked after no answer"] += answered.replayed and not is_repeated
        has_flag = intent.kind in {"receipt", "return"}
        if answered.replayed and not is_repeated and tries == 1:
            self.faults.append(f"{intent.key}: replayed, and it was asked only once")
        if surely_booked and has_flag and answered.outcome == "ok" and not answered.replayed:
            self.faults.append(f"{intent.key}: not replayed, and an answer had been cut")
        return answered

    def _try(self, intent: Intent) -> Answered:
        """Ask once, and write down what came of it."""
        self._note("asks", intent, body=intent.body.decode())
        try:
            answered = self._send(intent)
        except NoAnswer as none:
            self.counts[f"unknown: {none.why}"] += 1
            self._note("knows nothing", intent, why=none.why)
            raise
        self._note(answered.outcome, intent, body=answered.body.decode())
        return answered

    def _sell_twice_at_once(self) -> None:
        """Send one new receipt over two connections before either has answered."""
        sale = self._sale(self._amounts())
        intent = self._receipt(sale)
        lines = [self._line(port) for port in [*self.ports, *self.ports][:2]]
        answers: list[Answered] = []
        self._note("asks twice", intent, body=intent.body.decode())
        try:
            for line in lines:
                put(line, intent)
            answers += [answer_on(line) for line in lines]
        except NoAnswer as none:
            self.counts[f"unknown: {none.why}"] += 1
        except Unclassified as error:
            self.faults.append(f"{intent.key}: unclassified {error}")
        finally:
            for line in lines:
                line.close()
        if len(answers) == 2:
            self.counts["at once"] += 1
            one, other = answers
            if one.body != other.body or one.replayed == other.replayed:
                self.faults.append(f"{intent.key}: asked twice at once, answered {answers}")
        answered = self._ask(intent, is_repeated=True)
        if answered is not None:
            self.counts["ok"] += 1
            self.acknowledged[intent.key] = (intent, answered)
            self.sales.append(sale)
            for first in answers:
                self._compare(intent, first, answered)

    def _compare(self, intent: Intent, first: Answered, again: Answered) -> None:
        has_flag = intent.kind in {"receipt", "return"}
        if again.body != first.body or (has_flag and not again.replayed):
            self.faults.append(f"{intent.key}: changed from {first} to {again}")

    def _send(self, intent: Intent) -> Answered:
        if self.line is None:
            self.line = self._line(self.chance.choice(self.ports))
        began = time.monotonic()
        try:
            put(self.line, intent)
            return answer_on(self.line)
        except NoAnswer:
            self._hang_up()
            raise
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
            if self.was_answered is not None:
                self._hang_up()

    def _line(self, port: int) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=self.timeout)

    def _hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None

    def _note(self, what: str, intent: Intent, **more: str) -> None:
        line = {"at": time.time(), "what": what, "key": intent.key, "path": intent.path, **more}
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()


def put(line: http.client.HTTPConnection, intent: Intent) -> None:
    """Send what a till wants.

    :raises NoAnswer: the connection broke
    """
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    if intent.idempotency_key:
        headers["Idempotency-Key"] = intent.idempotency_key
    try:
        line.request("POST", intent.path, intent.body, headers)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(type(error).__name__, _own_port(line)) from error


def answer_on(line: http.client.HTTPConnection) -> Answered:
    """Read the answer to what was sent, and classify it.

    :raises NoAnswer: there was none, or the server says that it cannot tell
    :raises Unclassified:
    """
    port = _own_port(line)
    try:
        response = line.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(type(error).__name__, port) from error
    if response.length is None:  # cut in the middle of the headers, which http.client overlooks
        raise NoAnswer("headers cut", port)
    if response.status == 200:
        replayed = response.headers.get("Idempotency-Replayed") == "true"
        return Answered("ok", body, "", replayed)
    is_problem = response.headers.get_content_type() == "application/problem+json"
    code = json.loads(body)["code"] if is_problem else ""
    if (response.status, code) == (503, "unavailable"):
        raise NoAnswer("503", port)
    if REFUSALS.get(code) == response.status:
        return Answered("refused", body, code, replayed=False)
    raise Unclassified(f"{response.status} {body.decode(errors='replace')}")


def _own_port(line: http.client.HTTPConnection) -> int:
    try:
        return int(line.sock.getsockname()[1]) if line.sock is not None else 0
    except OSError:
        return 0


def _key(document: Json) -> str:
    names = ("store", "till", "business_day", "number")
    return "/".join([PROGRAMME, *(document[name] for name in names)])


@contextmanager
def traffic(tills: Sequence[Till]) -> Iterator[None]:
    """Let tills work; at the end each still gets the answer that it waits for."""
    stop = threading.Event()
    threads = [threading.Thread(target=till.work, args=[stop]) for till in tills]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def counted(tills: Sequence[Till]) -> Counter[str]:
    """Give what all tills have counted so far."""
    total: Counter[str] = Counter()
    for till in tills:
        total.update(dict(till.counts))
    return total


def until_booked(tills: Sequence[Till], count: int, seconds: float = 60) -> None:
    """Wait until tills have got so many more answers."""
    before = counted(tills)["ok"]
    until(lambda: counted(tills)["ok"] >= before + count, seconds)


# --- what must be true ---------------------------------------------------------------------


class Verdict(Struct):
    """What tills know against what the books hold: event keys, none of which may be there."""

    lost: list[str]
    doubled: list[str]
    refused_and_booked: list[str]
    booked_and_not_acknowledged: list[str]
    changed: list[str]
    faults: list[str]

    def figures(self) -> dict[str, int]:
        """Count each kind."""
        return {name: len(getattr(self, name)) for name in self.__struct_fields__}


def judge(shop: Shop, tills: Sequence[Till]) -> Verdict:
    """Look into the books first, then ask everything again; nothing may be booked by that."""
    acknowledged = {key: kept for till in tills for key, kept in till.acknowledged.items()}
    refused = {key: kept for till in tills for key, kept in till.refused.items()}
    booked = _booked(shop)
    remembered = {row[0] for row in shop.ask("SELECT encode(key_hash, 'hex') FROM receipt_key")}
    lost = [
        key
        for key, (intent, _) in acknowledged.items()
        if key not in booked
        or (
            intent.kind in {"receipt", "return"}
            and sha256(key.encode()).hexdigest() not in remembered
        )
    ]
    ours = (f"{PROGRAMME}/", "held/", "released/")
    verdict = Verdict(
        lost=lost,
        doubled=[key for key, count in booked.items() if count > 1],
        refused_and_booked=sorted(refused.keys() & booked.keys()),
        booked_and_not_acknowledged=[
            key for key in booked if key.startswith(ours) and key not in acknowledged
        ],
        changed=[],
        faults=[*shop.faults, *(fault for till in tills for fault in till.faults)],
    )
    verdict.changed += _changed(shop, list(acknowledged.values()), list(refused.values()))
    if not lost and _booked(shop) != booked:
        verdict.changed.append("asking again has booked something")
    return verdict


def _booked(shop: Shop) -> Counter[str]:
    rows = shop.ask("SELECT key, count(*) FROM event GROUP BY key")
    return Counter({str(key): int(str(count)) for key, count in rows})


def _changed(
    shop: Shop,
    acknowledged: Sequence[tuple[Intent, Answered]],
    refused: Sequence[tuple[Intent, Answered]],
) -> list[str]:
    """Ask everything again: receipts by hundreds, a hundred of them and all the rest singly."""
    receipts = [kept for kept in acknowledged if kept[0].kind == "receipt"]
    singly = [kept for kept in acknowledged if kept[0].kind != "receipt"] + receipts[-100:]
    singly += refused
    line = http.client.HTTPConnection("127.0.0.1", shop.ports[0], timeout=60)
    changed = []
    for start in range(0, len(receipts), 500):
        some = receipts[start : start + 500]
        # A document that was cut into lines would be several.
        body = b"\n".join(intent.body for intent, _ in some)
        line.request("POST", "/v1/receipts/batch", body, {"Authorization": f"Bearer {TOKEN}"})
        answers = line.getresponse().read().splitlines()
        changed += [
            f"{intent.key}: from {first.body!r} to {again!r}"
            for (intent, first), again in zip(some, answers, strict=True)
            if again != first.body
        ]
    for intent, first in singly:
        put(line, intent)
        again = answer_on(line)
        is_flagged = first.outcome == "ok" and intent.kind in {"receipt", "return"}
        if (again.code, again.body, again.replayed) != (first.code, first.body, is_flagged):
            changed.append(f"{intent.key}: from {first} to {again}")
    line.close()
    return changed
