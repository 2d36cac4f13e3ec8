"""Tills book while a backup is taken; restored, it holds all that was acknowledged before.

Each drill has a real server that is backed up and another, fresh one that is restored to, by
the commands that people use.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest

from kantis.core.admission import Applicant, Warrant
from kantis.core.events import Held
from kantis.core.receipt import Line, Receipt, Return, ReturnLine, SaleKey, Tender
from kantis.core.refusals import NotEnough, Refusal
from kantis.core.replay import replay
from kantis.db import backup, past, programmes, reports
from kantis.db.cluster import OWNER, SUPERUSER, Cluster
from kantis.db.connect import connect
from kantis.db.programmes import Store
from kantis.db.schema import migrate
from kantis.folder import Folder
from kantis.operations import audit, members, publishing, sales, spending, upkeep

ROOT = Path(__file__).parents[2]
PROGRAMME = "alltid"
OPENS_AT = datetime(2024, 3, 5, 8, tzinfo=UTC)
UNTIL = date(2025, 4, 1)
NOW = datetime(2026, 1, 15, tzinfo=UTC)
DESK = Warrant("desk")
TILLS = 3
MEMBERS_OF_TILL = 3
PAUSE = 0.1
"""Seconds between two customers at most."""

Document = Receipt | Return | Held


class Acknowledged(msgspec.Struct, frozen=True):
    """What a till was told, and when it knew."""

    account_id: int
    document: Document
    answer: bytes
    at: float


def send(
    connection: psycopg.Connection, account_id: int, document: Document
) -> tuple[bytes, bool | None]:
    """Send what a till has; give the answer and whether it is an old one (holds do not say).

    :raises Refusal:
    """
    if isinstance(document, Held):
        answer = spending.hold(
            connection,
            programme=PROGRAMME,
            account_id=account_id,
            held=document,
            proof="staff",
            warrant=DESK,
        )
        return msgspec.json.encode(answer), None
    if isinstance(document, Receipt):
        (result,) = sales.record_receipts(
            connection, programme=PROGRAMME, receipts=[document], now=NOW, warrant=DESK
        )
    else:
        (result,) = sales.record_returns(
            connection, programme=PROGRAMME, returns=[document], now=NOW, warrant=DESK
        )
    if isinstance(result, Refusal):
        raise result
    return bytes(result.answer), result.replayed


class Till(threading.Thread):
    """One till with members of its own: it sells, takes back, sets bonus aside and captures it."""

    def __init__(self, url: str, name: str, chance: random.Random) -> None:
        super().__init__(name=name, daemon=True)
        self.url, self.chance = url, chance
        self.acknowledged: list[Acknowledged] = []
        self.opened, self.closed = threading.Event(), threading.Event()
        self.broken: BaseException | None = None
        self.seconds = itertools.count()

    def run(self) -> None:
        try:
            with connect(self.url) as connection:
                own = [join(connection, f"{self.name}-{one}") for one in range(MEMBERS_OF_TILL)]
                self.opened.set()
                while not self.closed.is_set():
                    self.serve(connection, *self.chance.choice(own))
                    self.closed.wait(self.chance.uniform(0, PAUSE))
        except BaseException as error:
            self.broken = error
            raise

    def serve(self, connection: psycopg.Connection, account_id: int, card: str) -> None:
        """Let one customer through."""
        draw = self.chance.random()
        if draw < 0.7:
            paid = self.chance.choice([0, 0, 0, 100])
            self.tell(connection, account_id, self.receipt(card, paid=paid))
        elif draw < 0.85:
            if sale := self.a_sale_of(account_id):
                self.tell(connection, account_id, self.return_of(sale))
        else:
            hold = self.hold()
            if self.tell(connection, account_id, hold) and self.chance.random() < 0.5:
                captured = self.receipt(card, paid=hold.amount, hold=hold.hold_id)
                self.tell(connection, account_id, captured)

    def tell(self, connection: psycopg.Connection, account_id: int, document: Document) -> bool:
        try:
            answer, _ = send(connection, account_id, document)
        except NotEnough:  # the member has less bonus than was asked for
            return False
        known_at = time.monotonic()
        self.acknowledged.append(Acknowledged(account_id, document, answer, known_at))
        return True

    def a_sale_of(self, account_id: int) -> Receipt | None:
        """Find one that nothing was brought back of."""
        back = {
            one.document.sale.number
            for one in self.acknowledged
            if isinstance(one.document, Return)
        }
        some = [
            one.document
            for one in self.acknowledged[-50:]
            if one.account_id == account_id
            and isinstance(one.document, Receipt)
            and one.document.number not in back
        ]
        return self.chance.choice(some) if some else None

    def next_at(self) -> datetime:
        return OPENS_AT + timedelta(seconds=next(self.seconds))

    def receipt(self, card: str, *, paid: int, hold: str = "") -> Receipt:
        at = self.next_at()
        amounts = [self.chance.randint(1_000, 90_000) for _ in range(self.chance.randint(1, 4))]
        return Receipt(
            store="north",
            till=self.name,
            business_day=at.date(),
            number=f"{at:%H%M%S}",
            at=at,
            currency="NOK",
            total_minor=sum(amounts),
            lines=tuple(map(Line, amounts)),
            tenders=(Tender("cash", sum(amounts) - paid), Tender("bonus", paid, hold))[
                : 1 + (paid > 0)
            ],
            card=card,
            proof="staff",
        )

    def return_of(self, sale: Receipt) -> Return:
        at = self.next_at()
        return Return(
            store="north",
            till=self.name,
            business_day=at.date(),
            number=f"{at:%H%M%S}",
            at=at,
            sale=SaleKey(sale.store, sale.till, sale.business_day, sale.number),
            lines=(ReturnLine(1, self.chance.randint(1, sale.lines[0].amount_minor)),),
        )

    def hold(self) -> Held:
        at = self.next_at()
        key = f"hold-{self.name}-{at:%H%M%S}"
        until_at = at + timedelta(minutes=15)
        return Held(at=at, key=key, hold_id=key, unit="bonus", amount=200, until_at=until_at)


def join(connection: psycopg.Connection, name: str) -> tuple[int, str]:
    """Enrol a member; give the account and its card."""
    enrolled = members.enrol(
        connection,
        programme=PROGRAMME,
        application=members.Application(
            applicant=Applicant(born_on=date(1980, 5, 1), organization_number="930258008"),
            card_kind="customer-card",
            card_number=str(10**12 + int.from_bytes(name.encode()) % 10**12),
        ),
        request_key=name,
        at=datetime(2024, 3, 1, 10, tzinfo=UTC),
        warrant=DESK,
    )
    return enrolled.account_id, enrolled.card_number


@contextmanager
def traffic(url: str, chance: random.Random) -> Iterator[list[Till]]:
    """Let tills book until the block ends."""
    run = f"{chance.randrange(2**32):08x}"
    tills = [
        Till(url, f"{run}{number}", random.Random(f"{run}/{number}")) for number in range(TILLS)
    ]
    for till in tills:
        till.start()
    try:
        for till in tills:
            assert till.opened.wait(timeout=60)
        yield tills
    finally:
        for till in tills:
            till.closed.set()
        for till in tills:
            till.join(timeout=60)
    assert [till.broken for till in tills] == [None] * TILLS


def await_receipts(tills: list[Till], count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(len(till.acknowledged) for till in tills) < count:
        assert [till.broken for till in tills] == [None] * TILLS
        assert time.monotonic() < deadline, "the tills are too slow"
        time.sleep(0.005)


def environment(data_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("KANTIS_")}
    return own | {"KANTIS_DATA_DIR": str(data_dir), "COLUMNS": "200"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kantis", *map(str, arguments)]


def kantis(data_dir: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(data_dir),
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def a_server(place: Path, name: str) -> Iterator[Cluster]:
    cluster = Cluster(place / name)
    try:
        yield cluster
    finally:
        if cluster.home.exists():
            cluster.destroy()
        shutil.rmtree(place / name, ignore_errors=True)


def open_shop(cluster: Cluster) -> None:
    cluster.start()
    migrate(cluster.url(OWNER))
    with connect(cluster.url()) as connection:
        for path in Folder(ROOT / "programmes" / PROGRAMME).terms_files:
            publishing.publish_terms(
                connection, source=path.read_text("utf-8"), at=NOW, by="publisher"
            )
        publishing.add_store(connection, programme=PROGRAMME, store=Store("north"))


def standings(connection: psycopg.Connection) -> dict[int, object]:
    return dict(connection.execute("SELECT account_id, standing FROM account").fetchall())


def wrong(connection: psycopg.Connection) -> list[str]:
    found = [row for finding in audit.audit_books(connection) for row in finding.wrong]
    for account_id in audit.accounts_of(connection, programme=PROGRAMME):
        found += audit.audit_account(connection, programme=PROGRAMME, account_id=account_id)
    return found


def check_totals(connection: psycopg.Connection) -> None:
    """See that the report of the books is the fold of the histories, calendar and all."""
    while upkeep.tick(connection, programme=PROGRAMME, through=UNTIL, now=NOW):
        pass
    programme = programmes.load(connection, PROGRAMME)
    histories = [
        [event for _, event, _ in past.history(connection, account_id)]
        for account_id in audit.accounts_of(connection, programme=PROGRAMME)
    ]
    folded = replay(programme, histories, until=UNTIL)
    assert folded.receipts > 0
    assert reports.totals(connection, PROGRAMME, on=UNTIL) == folded


def drill(place: Path, chance: random.Random) -> dict[str, int]:
    """Back up amid traffic, restore elsewhere, compare, go on; give what was counted."""
    folder = place / "backup"
    with a_server(place, "source") as source, a_server(place, "target") as target:
        open_shop(source)
        with traffic(source.url(), chance) as tills:
            await_receipts(tills, chance.randint(50, 200))
            begun = time.monotonic()
            taken = kantis(source.data_dir, "backup", folder)
            ended = time.monotonic()
            assert taken.returncode == 0, taken.stderr
            await_receipts(tills, sum(len(till.acknowledged) for till in tills) + 20)
        everything = [one for till in tills for one in till.acknowledged]
        before = [one for one in everything if one.at < begun]
        meanwhile = [one for one in everything if begun <= one.at < ended]
        assert meanwhile, "tills went on booking while the backup was taken"

        restoring = time.monotonic()
        restored = kantis(target.data_dir, "restore", folder)
        restored_in = time.monotonic() - restoring
        assert restored.returncode == 0, restored.stdout + restored.stderr
        assert "The books are right." in restored.stdout
        with connect(source.url()) as old, connect(target.url()) as new:
            held = compare(old, new, before, everything)
    size = sum(file.stat().st_size for file in folder.iterdir())
    shutil.rmtree(folder)
    return {
        "acknowledged_before": len(before),
        "acknowledged_meanwhile": len(meanwhile),
        "events_restored": held,
        "resent_afterwards": len(everything) - len(before),
        "bytes": size,
        "backup_ms": int((ended - begun) * 1000),
        "restore_ms": int(restored_in * 1000),
    }


def compare(
    old: psycopg.Connection,
    new: psycopg.Connection,
    before: list[Acknowledged],
    everything: list[Acknowledged],
) -> int:
    """Compare restored books with the old; let the tills send all again; give what was there."""
    events = "SELECT count(*) FROM event"
    ((held,),) = new.execute(events).fetchall()
    for one in before:
        answer, replayed = send(new, one.account_id, one.document)
        assert (answer, replayed is not False) == (one.answer, True), one.document
    assert new.execute(events).fetchall() == [(held,)], "what was there was booked again"

    # The tills send what came after the backup again, and nothing tells the books apart.
    for one in everything:
        answer, _ = send(new, one.account_id, one.document)
        assert answer == one.answer, one.document
    assert new.execute(events).fetchall() == old.execute(events).fetchall()
    assert standings(new) == standings(old)

    account_id, card = join(new, "newcomer")
    assert account_id > max(standings(old))
    till = Till("", "later", random.Random(1))
    assert till.tell(new, account_id, till.receipt(card, paid=0))
    assert wrong(new) == []
    check_totals(new)
    return int(held)


def test_a_backup_amid_traffic_holds_all_that_was_acknowledged_before(
    reachable_directory: Path,
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
) -> None:
    drills = [drill(reachable_directory, chance) for _ in range(long_or_short(50, 1))]
    evidence(
        drills=len(drills),
        lost=0,
        **{name: sum(one[name] for one in drills) for name in drills[0]},
    )


# --- cut off -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Iterator[Cluster]:
    """Give a server with books in it, and some weight."""
    place = Path(tempfile.mkdtemp(prefix="kantis-test-"))
    place.chmod(0o755)
    with a_server(place, "source") as cluster:
        open_shop(cluster)
        with traffic(cluster.url(), random.Random(7)) as tills:
            await_receipts(tills, 100)
        # Enough that a command can be cut off in the midst of it.
        with connect(cluster.url(OWNER)) as owner:
            owner.execute(
                "CREATE TABLE ballast AS SELECT n, repeat(md5(n::text), 10) AS text"
                " FROM generate_series(1, 50000) n"
            )
        yield cluster
    shutil.rmtree(place)


def cut_off(
    data_dir: Path,
    *arguments: object,
    begun: Callable[[], bool],
    after: float,
    by: signal.Signals,
) -> int:
    """Run a command and end it some seconds after it has begun its work; give its exit code."""
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(data_dir),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        while not begun() and running.poll() is None:
            time.sleep(0.002)
        time.sleep(after)
        running.send_signal(by)
        return running.wait(timeout=60)


def test_a_backup_that_is_cut_off_is_whole_or_not_there(
    source: Cluster,
    reachable_directory: Path,
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
) -> None:
    whole = 0
    count = long_or_short(200, 4)
    for number in range(count):
        folder = reachable_directory / "backup"
        by = [signal.SIGKILL, signal.SIGTERM][number % 2]
        code = cut_off(
            source.data_dir,
            "backup",
            folder,
            begun=lambda: any(reachable_directory.iterdir()),
            after=chance.uniform(0, 1.5),
            by=by,
        )
        if folder.exists():
            backup.compare(source.url(SUPERUSER), backup.check(folder))
            shutil.rmtree(folder)
            whole += 1
        else:
            assert code != 0
        left = list(reachable_directory.iterdir())
        if by == signal.SIGKILL:
            assert all(one.name.startswith(".backup-unfinished-") for one in left)
            for one in left:
                shutil.rmtree(one)
        else:
            assert left == []
    evidence(cut_off=count, whole=whole, absent=count - whole, partial=0)


def test_a_restore_that_is_cut_off_is_whole_or_can_be_done_again(
    source: Cluster,
    reachable_directory: Path,
    chance: random.Random,
    long_or_short: Callable[[int, int], int],
    evidence: Callable[..., None],
) -> None:
    folder = reachable_directory / "backup"
    manifest = backup.take(source.url(SUPERUSER), folder, at=NOW)
    whole = 0
    count = long_or_short(200, 2)
    with a_server(reachable_directory, "target") as target:
        target.start()
        for _ in range(count):
            cut_off(
                target.data_dir,
                "restore",
                folder,
                begun=lambda: sessions(target, "psql") > 0,
                after=chance.uniform(0, 0.5),
                by=signal.SIGKILL,
            )
            # What it had begun is committed or undone.
            while sessions(target):
                time.sleep(0.02)
            if is_empty(target):
                continue
            whole += 1
            backup.compare(target.url(SUPERUSER), manifest)
            drop_books(target)
        again = kantis(target.data_dir, "restore", folder)
        assert again.returncode == 0, again.stderr
        with connect(target.url()) as connection:
            assert wrong(connection) == []
    evidence(cut_off=count, whole=whole, empty=count - whole, partial=0)


def sessions(cluster: Cluster, name: str = "") -> int:
    """Count who is at work in the database, under a program's name or any."""
    with connect(cluster.url(SUPERUSER, "postgres")) as connection:
        ((count,),) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = 'kantis' AND application_name LIKE %s",
            [name or "%"],
        ).fetchall()
    return int(count)


def is_empty(cluster: Cluster) -> bool:
    with connect(cluster.url(SUPERUSER)) as connection:
        return connection.execute(backup.THINGS).fetchall() == []


def drop_books(cluster: Cluster) -> None:
    with connect(cluster.url(SUPERUSER, "postgres")) as connection:
        connection.execute("DROP DATABASE kantis")
    cluster.start()


def test_migrations_and_backups_let_each_other_through(
    source: Cluster, reachable_directory: Path, long_or_short: Callable[[int, int], int]
) -> None:
    ended = threading.Event()

    def change_the_schema() -> int:
        changes = 0
        with connect(source.url(OWNER)) as connection:
            while not ended.is_set():
                connection.execute("SELECT pg_advisory_lock(hashtext('kantis-migrate'))")
                with connection.transaction():
                    connection.execute("ALTER TABLE suspension ADD COLUMN more text")
                    connection.execute("ALTER TABLE suspension DROP COLUMN more")
                connection.execute("SELECT pg_advisory_unlock(hashtext('kantis-migrate'))")
                changes += 1
        return changes

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change_the_schema)
        try:
            for number in range(long_or_short(100, 5)):
                folder = reachable_directory / f"backup-{number}"
                manifest = backup.take(source.url(SUPERUSER), folder, at=NOW)
                assert backup.check(folder) == manifest
                shutil.rmtree(folder)
        finally:
            ended.set()
        assert changing.result(timeout=60) > 0
