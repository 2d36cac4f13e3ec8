"""The load's own process: keep-alive connections, requests made ready, little done with answers.

`python -m bench.load` reads a `Load` as JSON from its input and prints what came of it. It shares
the machine with the server it measures, so it imports the standard library alone and costs some
twenty microseconds a request, which it counts and says.
"""

import gc
import json
import math
import select
import selectors
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from random import Random

from bench import shop

ANSWER_SECONDS = 60
"""A server that answers nothing at all for so long is given up."""

SILENT = f"the server has answered nothing for {ANSWER_SECONDS} s"

BODY_CHARACTERS = 300
"""So much of the first answer that was no acknowledgment is kept."""

NANOSECONDS = 10**9
"""In a second."""


@dataclass(frozen=True)
class Load:
    """What to send to a port of this machine.

    `seconds` are measured, after `warm_seconds` that are not. `rate` is the requests a second
    that arrive by chance (exponential pauses), whether answers come or not; with 0 each
    connection sends its next request when it is answered. Receipts are numbered from
    `first_number` and are of the first `households`, in turns.
    """

    port: int
    path: str
    tokens: list[str]
    till: str
    business_day: str
    first_number: int
    households: int
    connections: int
    warm_seconds: float
    seconds: float
    rate: float


@dataclass(frozen=True)
class Loaded:
    """What came of it. All counts include the warm-up, `measured` and the times do not.

    Latencies are milliseconds: from sending, or from when a request was to arrive. `earned`
    counts answers that say so, `others` answers by their status that are not 200;
    `unacknowledged` has the numbers of those. `own_us` is this process's time a request.
    """

    sent: int
    acknowledged: int
    earned: int
    measured: int
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    others: dict[str, int]
    first_other: str
    unacknowledged: list[int]
    own_us: float


class _Wire:
    """One keep-alive connection and the request under way on it."""

    __slots__ = ("number", "received", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = 0
        self.sent_at = 0
        self.received = b""

    def answer(self) -> bytes:
        """Take what has come; give the whole answer, empty while some of it is missing.

        :raises ConnectionError: the server closed the connection
        """
        came = self.socket.recv(65_536)
        if not came:
            raise ConnectionError("the server closed a connection that was to be kept alive")
        whole = self.received + came if self.received else came
        head_end = whole.find(b"\r\n\r\n")
        if head_end >= 0 and len(whole) - head_end - 4 >= _body_length(whole, head_end):
            self.received = b""
            return whole
        self.received = whole
        return b""


def _body_length(answer: bytes, head_end: int) -> int:
    head = answer[:head_end].lower()
    at = head.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    end = head.find(b"\r", at)
    return int(head[at:] if end < 0 else head[at:end])


class _Sending:
    """The requests in their order, and what came of them."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.requests = shop.requests(
            path=load.path, tokens=load.tokens, till=load.till, business_day=load.business_day
        )
        self.next_number = load.first_number
        self.at = b""
        self.latencies: list[int] = []
        self.acknowledged = 0
        self.earned = 0
        self.others: Counter[str] = Counter()
        self.first_other = ""
        self.unacknowledged: list[int] = []

    def tell_time(self) -> None:
        """Take the clock's time for the receipts sent from now on."""
        self.at = datetime.now(UTC).isoformat(timespec="microseconds").encode()

    def send(self, wire: _Wire, sent_at: int) -> None:
        """Send the next receipt."""
        number = self.next_number
        self.next_number = number + 1
        wire.number = number
        wire.sent_at = sent_at
        household = shop.household_of(number, self.load.households)
        request = self.requests[shop.template_of(number)]
        wire.socket.sendall(shop.filled(request, number, self.at, household))

    def note(self, wire: _Wire, answer: bytes) -> None:
        """Count an answer."""
        if answer[9:12] == b"200":
            self.acknowledged += 1
            self.earned += b'"earned"' in answer
            return
        if not self.first_other:
            self.first_other = answer[-BODY_CHARACTERS:].decode(errors="replace")
        self.others[answer[9:12].decode(errors="replace")] += 1
        self.unacknowledged.append(wire.number)

    def closed(self, wires: list[_Wire], *, warm_until: int, until: int) -> None:
        """Send on each connection as soon as it is answered; wait for the last answers."""
        with selectors.DefaultSelector() as selector:
            self.tell_time()
            for first in wires:
                selector.register(first.socket, selectors.EVENT_READ, first)
                self.send(first, time.perf_counter_ns())
            under_way = len(wires)
            while under_way:
                ready = selector.select(ANSWER_SECONDS)
                if not ready:
                    raise TimeoutError(SILENT)
                self.tell_time()
                for key, _ in ready:
                    wire: _Wire = key.data
                    if not (answer := wire.answer()):
                        continue
                    now = time.perf_counter_ns()
                    self.note(wire, answer)
                    if warm_until <= now < until:
                        self.latencies.append(now - wire.sent_at)
                    if now < until:
                        self.send(wire, now)
                    else:
                        under_way -= 1

    def open(self, wires: list[_Wire], *, warm_until: int, until: int) -> None:
        """Send whenever a request is to arrive; if no connection is free, it waits for one."""
        chance = Random(self.load.first_number)
        free, busy = deque(wires), dict[int, _Wire]()
        due = now = time.perf_counter_ns()
        while due < until or busy:
            self.tell_time()
            while free and due <= now and due < until:
                wire = free.popleft()
                self.send(wire, due)
                busy[wire.socket.fileno()] = wire
                due += round(chance.expovariate(self.load.rate) * NANOSECONDS)
            is_next_due = bool(free) and due < until
            pause = max(0, due - time.perf_counter_ns()) / NANOSECONDS
            # Not a selector: those for many connections wait for whole milliseconds.
            ready, _, _ = select.select(
                list(busy), [], [], pause if is_next_due else ANSWER_SECONDS
            )
            if not ready and not is_next_due:
                raise TimeoutError(SILENT)
            for descriptor in ready:
                wire = busy[descriptor]
                if not (answer := wire.answer()):
                    continue
                now = time.perf_counter_ns()
                self.note(wire, answer)
                if wire.sent_at >= warm_until:
                    self.latencies.append(now - wire.sent_at)
                free.append(busy.pop(descriptor))
            now = time.perf_counter_ns()


def run(load: Load) -> Loaded:
    """Send a load and wait for every answer."""
    sending = _Sending(load)
    wires = [_Wire(load.port) for _ in range(load.connections)]
    gc.freeze()
    gc.disable()  # nothing here is in a cycle
    started, used = time.perf_counter_ns(), time.process_time()
    times = {
        "warm_until": started + round(load.warm_seconds * NANOSECONDS),
        "until": started + round((load.warm_seconds + load.seconds) * NANOSECONDS),
    }
    if load.rate:
        sending.open(wires, **times)
    else:
        sending.closed(wires, **times)
    used = time.process_time() - used
    for wire in wires:
        wire.socket.close()
    sent = sending.next_number - load.first_number
    taken = sorted(sending.latencies)
    return Loaded(
        sent=sent,
        acknowledged=sending.acknowledged,
        earned=sending.earned,
        measured=len(taken),
        per_second=len(taken) / load.seconds,
        p50_ms=_quantile_ms(taken, 0.5),
        p99_ms=_quantile_ms(taken, 0.99),
        p999_ms=_quantile_ms(taken, 0.999),
        max_ms=_quantile_ms(taken, 1),
        others=dict(sending.others),
        first_other=sending.first_other,
        unacknowledged=sending.unacknowledged,
        own_us=used / sent * 10**6,
    )


def _quantile_ms(taken: list[int], share: float) -> float:
    """Give the smallest latency that this share of all does not exceed."""
    if not taken:
        return 0
    return taken[max(0, math.ceil(share * len(taken)) - 1)] / 10**6


if __name__ == "__main__":
    json.dump(asdict(run(Load(**json.load(sys.stdin)))), sys.stdout)
