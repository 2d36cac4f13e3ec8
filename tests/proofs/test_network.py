"""Connections that are cut between commit and answer, at the till's end and at the database's."""

import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.proofs.shop import shop, until
from tests.proofs.tills import Till, counted, judge, traffic

from kantis.db.cluster import APP, DATABASE, Cluster

LIMIT = 0 if os.environ.get("KANTIS_SOAK", "") not in {"", "0"} else 300
"""Seconds; none in the long run."""

TILLS = 8
CUT = 0.30
BROKEN_REQUEST = 0.05


class Proxy:
    """Somebody between two who talk, who cuts some of their connections and counts why."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.lock = threading.Lock()
        self.cuts: Counter[str] = Counter()
        self.calm = False
        """Whether nothing is cut any more."""

    def serve(self, listening: socket.socket, talk: Callable[[socket.socket], None]) -> None:
        """Let `talk` have each connection, in a thread of its own, until nobody listens."""

        def talk_and_close(near: socket.socket) -> None:
            with near, suppress(OSError):
                talk(near)

        with suppress(OSError):
            while True:
                near, _ = listening.accept()
                threading.Thread(target=talk_and_close, args=[near], daemon=True).start()

    @contextmanager
    def listening(
        self, where: socket.socket, talk: Callable[[socket.socket], None]
    ) -> Iterator[None]:
        """Serve as long as the block lasts."""
        thread = threading.Thread(target=self.serve, args=[where, talk])
        thread.start()
        try:
            yield
        finally:
            where.shutdown(socket.SHUT_RDWR)
            where.close()
            thread.join()

    def draw(self) -> float:
        """Draw a number for one decision; nothing is cut by 1."""
        with self.lock:
            return 1.0 if self.calm else self.chance.random()

    def count(self, what: str) -> None:
        """Count a cut."""
        with self.lock:
            self.cuts[what] += 1


def read_message(stream: socket.socket) -> bytes:
    """Read one HTTP message with its body; what there is of it, if it ends before."""
    found = b""
    while b"\r\n\r\n" not in found:
        if not (more := stream.recv(65536)):
            return found
        found += more
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length and (more := stream.recv(65536)):
        found, body = found + more, body + more
    return found


class TillsProxy(Proxy):
    """Between tills and server: cuts answers anywhere before their end, and some requests."""

    def __init__(self, chance: random.Random, port: int) -> None:
        super().__init__(chance)
        self.port = port
        self.answered: dict[int, bool] = {}
        """By a till's port: whether a yes was cut on its way there."""

    def talk(self, near: socket.socket) -> None:
        """Carry one request and its answer, or not all of it."""
        till_port = near.getpeername()[1]
        request = read_message(near)
        draw = self.draw()
        with socket.create_connection(("127.0.0.1", self.port)) as far:
            if draw < BROKEN_REQUEST:
                far.sendall(request[: int(len(request) * self.draw())])
                self.count("request")
                return
            far.sendall(request)
            answer = read_message(far)
        if draw < BROKEN_REQUEST + CUT:
            # The first byte, the last one and any between; not a byte in a third of the cases.
            sent = max(0, int(len(answer) * (self.draw() * 1.5 - 0.5)))
            near.sendall(answer[: min(sent, len(answer) - 1)])
            is_yes = answer.startswith(b"HTTP/1.1 200")
            self.answered[till_port] = is_yes
            self.count("yes" if is_yes else "no")
            if self.draw() < 0.5:  # as if the other end had lost its memory of it
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        near.sendall(answer)

    def was_answered(self, till_port: int) -> bool:
        """Tell whether a yes to this connection was cut."""
        return self.answered.pop(till_port, False)


@pytest.mark.timeout(LIMIT)
def test_an_answer_that_is_cut_is_given_again_and_marked_as_replayed(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    tmp_path: Path,
) -> None:
    wanted = long_or_short(20_000, 400)
    with shop(members=120) as opened:
        proxy = TillsProxy(random.Random(chance.random()), opened.ports[0])
        where = socket.create_server(("127.0.0.1", 0))
        tills = [
            Till(
                number,
                opened,
                random.Random(chance.random()),
                tmp_path / f"till-{number}.jsonl",
                ports=[where.getsockname()[1]],
                was_answered=proxy.was_answered,
            )
            for number in range(1, TILLS + 1)
        ]
        with proxy.listening(where, proxy.talk), traffic(tills):
            until(lambda: proxy.cuts["yes"] >= wanted, LIMIT or 10**9)
        verdict = judge(opened, tills)
        audit = opened.audit()
        seen = counted(tills)
        evidence(
            cuts=dict(proxy.cuts),
            acknowledged=sum(len(till.acknowledged) for till in tills),
            seen=seen,
            **verdict.figures(),
            audit=audit,
        )
    assert not any(verdict.figures().values()), verdict
    assert audit == ""
    assert seen["found booked after no answer"] >= wanted // 4
    assert min(proxy.cuts["yes"], proxy.cuts["no"], proxy.cuts["request"]) >= 1


class DatabaseProxy(Proxy):
    """Between server and database: cuts at COMMIT, before it is sent on or after, heard or not."""

    def __init__(self, chance: random.Random, place: Path) -> None:
        super().__init__(chance)
        self.place = place
        self.far = ""

    @property
    def path(self) -> str:
        """The socket that the server takes for the database's."""
        return str(self.place / ".s.PGSQL.5432")

    def url(self, cluster: Cluster) -> str:
        """Stand between; give where the server finds the database then."""
        self.far = str(cluster.socket_dir / ".s.PGSQL.5432")
        return f"postgresql://{APP}@/{DATABASE}?host={quote(str(self.place), safe='')}&port=5432"

    def talk(self, near: socket.socket) -> None:
        """Carry one session, perhaps to a COMMIT and no further."""
        with socket.socket(socket.AF_UNIX) as far:
            far.connect(self.far)
            is_cut = threading.Event()
            back = threading.Thread(target=self._carry_back, args=[far, near, is_cut])
            back.start()
            try:
                while said := near.recv(65536):
                    if b"COMMIT\0" in said and (way := self._way()):
                        is_cut.set()
                        self.count(way)
                        if way != "before":
                            far.sendall(said)
                        if way == "after":
                            back.join()  # until the database has answered
                        break
                    far.sendall(said)
            finally:
                is_cut.set()
                for end in (near, far):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

    def _way(self) -> str:
        draw = self.draw() * 3
        return ("before", "at once", "after")[int(draw / CUT)] if draw < 3 * CUT else ""

    @staticmethod
    def _carry_back(far: socket.socket, near: socket.socket, is_cut: threading.Event) -> None:
        with suppress(OSError):
            while said := far.recv(65536):
                if is_cut.is_set():
                    return
                near.sendall(said)
            near.shutdown(socket.SHUT_RDWR)


@pytest.mark.timeout(LIMIT)
def test_a_commit_whose_outcome_the_server_does_not_hear_is_found_out_by_asking_again(
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
    reachable_directory: Path,
    tmp_path: Path,
) -> None:
    wanted = long_or_short(20_000, 300)
    proxy = DatabaseProxy(random.Random(chance.random()), reachable_directory)
    with socket.socket(socket.AF_UNIX) as where:
        where.bind(proxy.path)
        where.listen(100)
        proxy.calm = True
        with (
            proxy.listening(where, proxy.talk),
            shop(members=120, through=proxy.url) as opened,
        ):
            tills = [
                Till(
                    number,
                    opened,
                    random.Random(chance.random()),
                    tmp_path / f"till-{number}.jsonl",
                )
                for number in range(1, TILLS + 1)
            ]
            with traffic(tills):
                proxy.calm = False
                until(lambda: proxy.cuts.total() >= wanted, LIMIT or 10**9)
                proxy.calm = True
            verdict = judge(opened, tills)
            audit = opened.audit()
            seen = counted(tills)
            evidence(
                cuts=dict(proxy.cuts),
                acknowledged=sum(len(till.acknowledged) for till in tills),
                seen=seen,
                **verdict.figures(),
                audit=audit,
            )
    assert not any(verdict.figures().values()), verdict
    assert audit == ""
    assert set(proxy.cuts) == {"before", "at once", "after"}
    assert seen["found booked after no answer"] >= proxy.cuts["after"] // 3
    assert {what for what in seen if what.startswith("unknown")} == {"unknown: 503"}
