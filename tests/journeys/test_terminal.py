"""The command line as its users run it: another process, a database of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from kantis.db.cluster import APP, OWNER, Cluster
from kantis.db.connect import connect

ROOT = Path(__file__).parents[2]
EVERY = "40"
"""Each 40th household: 62 of them, some 4,000 receipts."""

Kantis = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kantis", *arguments]


@pytest.fixture
def environment(fresh_database: Callable[[str], str], tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "KANTIS_DATABASE_URL": fresh_database(APP),
        "KANTIS_OWNER_URL": fresh_database(OWNER),
        "KANTIS_DATA_DIR": str(tmp_path),
        "COLUMNS": "100",
    }


@pytest.fixture
def kantis(environment: dict[str, str]) -> Kantis:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def figures(run: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert run.returncode == 0, run.stderr
    found: dict[str, object] = json.loads(run.stdout)
    return found


def test_the_demo_the_report_and_the_replay_agree_and_the_books_are_right(kantis: Kantis) -> None:
    demo = kantis("demo", "--every", EVERY, "--no-serve")
    assert demo.returncode == 0, demo.stderr
    assert "The busiest account is" in demo.stdout

    report = figures(kantis("report", "kplussa", "--json"))
    replayed = figures(kantis("replay", "kplussa", "--every", EVERY, "--json"))
    assert report == replayed
    assert report["accounts"] == 62

    audit = kantis("audit")
    assert audit.returncode == 0, audit.stdout
    assert "The books are right." in audit.stdout

    key = demo.stdout.split("explain ")[1].split()[0]
    explained = kantis("explain", key)
    assert "K-1.1" in explained.stdout


def test_a_demo_that_is_interrupted_goes_on_where_it_was(
    kantis: Kantis, environment: dict[str, str]
) -> None:
    loading = subprocess.Popen(
        command("demo", "--every", "10", "--no-serve"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C and so would all that they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with connect(environment["KANTIS_DATABASE_URL"]) as connection:
        while booked(connection) < 300:
            assert loading.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.02)
        loading.send_signal(signal.SIGINT)
        _, said = loading.communicate(timeout=30)
        assert loading.returncode == 130
        assert "What is booked is booked; run it again to go on." in said
        assert "Traceback" not in said
        before = booked(connection)
    assert before < 16_553

    again = kantis("demo", "--every", "10", "--no-serve")
    assert again.returncode == 0, again.stderr
    assert f"{16_553 - before:,} receipts booked, {before:,} were there before" in again.stdout
    report = figures(kantis("report", "kplussa", "--json"))
    assert report == figures(kantis("replay", "kplussa", "--every", "10", "--json"))


def booked(connection: psycopg.Connection) -> int:
    ((count,),) = connection.execute("SELECT count(*) FROM event WHERE kind = 'sale'").fetchall()
    return int(count)


def test_five_mistakes_in_a_terms_file_are_five_messages(kantis: Kantis, tmp_path: Path) -> None:
    text = (ROOT / "programmes/kplussa/2016-01-01.toml").read_text(encoding="utf-8")
    for right, wrong in (
        ("give = 1\n", "giv = 1\n"),
        ("each = 1000", "each = -3"),
        ('"Europe/Helsinki"', '"Europe/Helsinky"'),
        ('unit = "plussa-money"', 'unit = "plusa-money"'),
        ("months = 13", 'months = "soon"'),
    ):
        text = text.replace(right, wrong, 1)
    draft = tmp_path / "2016-01-01.toml"
    draft.write_text(text, encoding="utf-8")

    run = kantis("terms", "check", str(draft))

    assert run.returncode == 1
    for word in (
        "did you mean 'give'",
        "`each`",
        "Helsinki",
        "did you mean 'plussa-money'",
        "`months`",
    ):
        assert word in run.stdout
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["replay", "kplussa", "--receipts", "."], "There is no transactions.parquet in"),
        (["replay", "nowhere"], "There is no programme nowhere here"),
        (["explain", "0000"], "No sale with this key was booked"),
        (["till", "add", "nowhere", "--programme", "kplussa"], "No such store"),
    ],
)
def test_what_can_be_mended_is_said_in_a_sentence(
    kantis: Kantis, arguments: list[str], sentence: str
) -> None:
    run = kantis(*arguments)

    assert run.returncode == 1
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_terms_are_published_once_and_never_edited(kantis: Kantis, tmp_path: Path) -> None:
    assert "published" in kantis("terms", "publish", "programmes/coop").stdout
    assert "was published before" in kantis("terms", "publish", "programmes/coop").stdout
    edited = tmp_path / "2016-01-01.toml"
    shutil.copy(ROOT / "programmes/coop/2016-01-01.toml", edited)
    edited.write_text(edited.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")

    run = kantis("terms", "publish", str(edited))

    assert run.returncode == 1
    assert "already published with another content" in run.stderr


def test_a_token_is_printed_once_and_the_calendar_is_followed_on_demand(kantis: Kantis) -> None:
    kantis("terms", "publish", "programmes/alltid")
    kantis("store", "add", "store-1", "--chain", "food")
    assert len(kantis("till", "add", "store-1").stdout.strip()) == 43
    followed = kantis("tick", "--until", "2024-05-01")
    assert "0 accounts had something due" in followed.stdout
    assert followed.stderr == ""


def test_books_are_backed_up_and_move_to_the_embedded_server(
    kantis: Kantis, environment: dict[str, str], reachable_directory: Path, tmp_path: Path
) -> None:
    assert kantis("demo", "--every", "400", "--no-serve").returncode == 0
    folder, cluster = tmp_path / "backup", Cluster(reachable_directory / "data")
    taken = kantis("backup", str(folder))
    assert taken.returncode == 0, taken.stderr
    report = figures(kantis("report", "kplussa", "--json"))

    named = ("KANTIS_DATABASE_URL", "KANTIS_OWNER_URL")
    elsewhere = {name: value for name, value in environment.items() if name not in named}
    elsewhere["KANTIS_DATA_DIR"] = str(cluster.data_dir)
    run = partial(
        subprocess.run, cwd=ROOT, env=elsewhere, capture_output=True, text=True, check=False
    )
    try:
        refused = run(command("restore", str(tmp_path)))
        assert refused.returncode == 1
        assert "is no whole backup" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not cluster.home.exists(), "no server was started for it"

        restored = run(command("restore", str(folder)))
        assert restored.returncode == 0, restored.stderr
        assert f"{report['receipts']:,}" in restored.stdout
        assert "The books are right." in restored.stdout
        assert figures(run(command("report", "kplussa", "--json"))) == report
    finally:
        cluster.destroy()
