"""Backups against a real server: what is in them, what is refused, and nothing half-done."""

import hashlib
import json
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from kantis.db import backup
from kantis.db.backup import BackupRefused, Manifest
from kantis.db.cluster import APP, OWNER
from kantis.db.connect import connect

if TYPE_CHECKING:
    from tests.conftest import Server

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
FILES = ["SHA256SUMS", "books.dump", "manifest.json"]

Url = Callable[[str], str]


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    with pytest.raises(BackupRefused) as info:
        yield
    assert sentence in str(info.value)


@pytest.fixture(scope="module")
def shop(server: "Server", worker_id: str) -> Iterator[Url]:
    """Give a database with a programme and a store."""
    name = f"{worker_id}-backed-up"
    server.create(name, template=server.database("template"))
    with connect(server.url(OWNER, server.database(name))) as owner:
        owner.execute("INSERT INTO programme VALUES ('alltid')")
        owner.execute("INSERT INTO store VALUES ('alltid', 'north')")
    yield lambda role: server.url(role, server.database(name))
    server.drop(name)


@pytest.fixture(scope="module")
def taken(shop: Url, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a backup of the shop, not to be touched."""
    folder = tmp_path_factory.mktemp("taken") / "backup"
    backup.take(shop(OWNER), folder, at=NOW)
    return folder


@pytest.fixture
def copy(taken: Path, tmp_path: Path) -> Path:
    """Give a copy of the backup."""
    shutil.copytree(taken, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def empty_database(server: "Server", worker_id: str) -> Iterator[Url]:
    """Give a database with nothing in it."""
    name = f"{worker_id}-empty"
    server.create(name, template="template1")
    yield lambda role: server.url(role, server.database(name))
    server.drop(name)


def restore(folder: Path, url: str, *, has_app_role: bool = True) -> Manifest:
    manifest = backup.check(folder)
    backup.restore(folder, manifest, owner_url=url, has_app_role=has_app_role)
    return manifest


def seal(folder: Path) -> None:
    """Write the checksums anew, as a forger would."""
    sums = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("books.dump", "manifest.json")
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))


def things(url: Url) -> list[tuple[object, ...]]:
    with connect(url(OWNER)) as owner:
        return owner.execute(backup.THINGS).fetchall()


RIGHTS = """
SELECT relname, relkind::text, array(SELECT unnest(relacl)::text ORDER BY 1), relrowsecurity,
    relforcerowsecurity, pg_get_userbyid(relowner)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 't'
UNION ALL SELECT attrelid::regclass || '.' || attname, 'c', attacl::text[], null, null, null
FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid >= 16384
UNION ALL SELECT proname || oidvectortypes(proargtypes), 'f', proacl::text[], prosecdef, null,
    pg_get_userbyid(proowner)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT tgrelid::regclass || '.' || tgname, 'g', array[tgenabled::text], null, null, null
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT polrelid::regclass || '.' || polname, 'p', array[pg_get_expr(polqual, polrelid),
    pg_get_expr(polwithcheck, polrelid)], null, null, null
FROM pg_policy
UNION ALL SELECT 'public', 'n', array(SELECT unnest(nspacl)::text ORDER BY 1), null, null, null
FROM pg_namespace WHERE nspname = 'public'
ORDER BY 1, 2, 3
"""
"""Who may do what, and what watches over it."""


def rights(url: str) -> list[tuple[object, ...]]:
    with connect(url) as connection:
        return connection.execute(RIGHTS).fetchall()


# --- as it should be -----------------------------------------------------------------------


def test_a_backup_is_its_owners_alone_and_other_programs_can_check_it(taken: Path) -> None:
    assert sorted(file.name for file in taken.iterdir()) == FILES
    assert stat.S_IMODE(taken.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in taken.iterdir()} == {0o600}
    sums = ["/usr/bin/env", "sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(sums, cwd=taken, check=False).returncode == 0


def test_a_restored_database_holds_the_same_and_gives_everybody_the_same_rights(
    shop: Url, taken: Path, empty_database: Url
) -> None:
    manifest = restore(taken, empty_database(OWNER))
    backup.compare(empty_database(OWNER), manifest)
    assert manifest.held.rows["store"] == 1
    found = rights(empty_database(OWNER))
    assert found == rights(shop(OWNER))
    assert any(f"{APP}=" in str(row) for row in found)
    with connect(empty_database(APP)) as app:
        for forbidden in (b"CREATE TEMPORARY TABLE store ()", b"DELETE FROM store"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(forbidden)


def test_identities_go_on_after_a_restore(
    fresh_database: Url, empty_database: Url, tmp_path: Path
) -> None:
    insert = (
        "INSERT INTO account (programme, kind, standing, next_due_on)"
        " VALUES ('alltid', 'business', '{}', '2025-01-01') RETURNING account_id"
    )
    with connect(fresh_database(OWNER)) as owner:
        owner.execute("INSERT INTO programme VALUES ('alltid')")
        used = [owner.execute(insert).fetchall() for _ in range(3)]
        owner.execute("DELETE FROM account")
    backup.take(fresh_database(OWNER), tmp_path / "backup", at=NOW)
    restore(tmp_path / "backup", empty_database(OWNER))
    with connect(empty_database(APP)) as app:
        assert app.execute(insert).fetchall() not in used


def test_books_of_two_roles_can_be_restored_to_one_but_not_back(
    taken: Path, empty_database: Url, tmp_path: Path
) -> None:
    manifest = restore(taken, empty_database(OWNER), has_app_role=False)
    backup.compare(empty_database(OWNER), manifest)
    assert not any(f"{APP}=" in str(row) for row in rights(empty_database(OWNER)))
    backup.take(empty_database(OWNER), tmp_path / "one", at=NOW)
    with connect(empty_database(OWNER)) as owner:
        owner.execute("DROP OWNED BY CURRENT_USER")
    with refused("Restore it where that is so: let KANTIS_DATABASE_URL name the owner"):
        restore(tmp_path / "one", empty_database(OWNER))
    assert things(empty_database) == []


# --- backups refused -----------------------------------------------------------------------


def test_a_folder_that_is_there_is_never_written_to(shop: Url, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("precious", "link"):
        with refused(f"{name} is there already"):
            backup.take(shop(OWNER), tmp_path / name, at=NOW)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "precious"]


def test_a_place_that_cannot_be_written_to_is_named(shop: Url, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file/backup", "nowhere/backup"):
        with refused(f"The backup cannot be written to {tmp_path / place} ("):
            backup.take(shop(OWNER), tmp_path / place, at=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_behind(shop: Url, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with refused("on a disk with room"):
            backup.take(shop(OWNER), tmp_path / "backup", at=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_books_is_not_backed_up(empty_database: Url, tmp_path: Path) -> None:
    with refused("has no books to back up"):
        backup.take(empty_database(OWNER), tmp_path / "backup", at=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_role_that_may_not_read_everything_makes_no_backup(
    fresh_database: Url, tmp_path: Path
) -> None:
    with connect(fresh_database(OWNER)) as owner:
        owner.execute("CREATE TABLE secret (id bigint PRIMARY KEY)")
    with refused("let KANTIS_OWNER_URL name the role that owns the tables"):
        backup.take(fresh_database(APP), tmp_path / "backup", at=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_role_that_would_be_shown_a_part_of_the_rows_makes_no_backup(
    fresh_database: Url, tmp_path: Path
) -> None:
    with connect(fresh_database(OWNER)) as owner:
        owner.execute("CREATE POLICY partly ON programme USING (programme < 'b')")
        owner.execute("ALTER TABLE programme ENABLE ROW LEVEL SECURITY")
        owner.execute("ALTER TABLE programme FORCE ROW LEVEL SECURITY")
    with refused("Row-level security that is not of Kantis (partly on programme)"):
        backup.take(fresh_database(OWNER), tmp_path / "backup", at=NOW)
    assert list(tmp_path.iterdir()) == []


# --- restores refused ----------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut, "is not as it was written: its checksums differ"),
        (flip, "is not as it was written: its checksums differ"),
        (Path.unlink, "is no whole backup"),
    ],
)
def test_a_damaged_backup_is_refused(
    damage: Callable[[Path], None], sentence: str, name: str, copy: Path
) -> None:
    damage(copy / name)
    with refused(sentence):
        backup.check(copy)


def test_a_dump_that_ends_early_under_right_checksums_leaves_the_database_empty(
    taken: Path, copy: Path, empty_database: Url
) -> None:
    dump = (taken / "books.dump").read_bytes()
    for end in (10, len(dump) // 2, len(dump) - 100):
        (copy / "books.dump").write_bytes(dump[:end])
        seal(copy)
        with refused("The backup was not restored, and the database left empty"):
            restore(copy, empty_database(OWNER))
        assert things(empty_database) == []
    restore(taken, empty_database(OWNER))


def test_a_database_with_anything_in_it_is_left_alone(
    shop: Url, taken: Path, empty_database: Url
) -> None:
    with refused("Restore into an empty one: let KANTIS_DATA_DIR"):
        restore(taken, shop(OWNER))
    for kind, thing in (
        ("TYPE", "mine AS ENUM ('a')"),
        ("VIEW", "mine AS SELECT 1"),
        ("SEQUENCE", "mine"),
        ("FUNCTION", "mine() RETURNS int LANGUAGE sql RETURN 1"),
    ):
        with connect(empty_database(OWNER)) as owner:
            owner.execute(sql.SQL(f"CREATE {kind} {thing}"))
            with refused("is not empty: mine is in it"):
                restore(taken, empty_database(OWNER))
            owner.execute(sql.SQL(f"DROP {kind} mine"))


def test_a_role_that_may_make_no_tables_restores_nothing(taken: Path, empty_database: Url) -> None:
    with refused("let KANTIS_OWNER_URL name the role that owns the database"):
        restore(taken, empty_database(APP))
    assert things(empty_database) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"format": 2}, "was made by another version of Kantis: install that one"),
        ({"held": None}, "was made by another version of Kantis: install that one"),
        (
            {"kantis": "7.0", "migrations": ["ledger.0999_more"]},
            "was made by Kantis 7.0, whose schema is newer (ledger.0999_more)",
        ),
        ({"server_version": 99_00_01}, "older than the backup's 99.1"),
    ],
)
def test_a_backup_from_a_later_time_is_refused(
    fields: dict[str, object], sentence: str, copy: Path, empty_database: Url
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | fields))
    seal(copy)
    with refused(sentence):
        restore(copy, empty_database(OWNER))
    assert things(empty_database) == []


def test_a_restored_database_is_counted_against_the_manifest(
    shop: Url, taken: Path, copy: Path
) -> None:
    backup.compare(shop(OWNER), backup.check(taken))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["held"]["rows"]["store"] = 2
    (copy / "manifest.json").write_text(json.dumps(manifest))
    seal(copy)
    with refused("store: 1 instead of 2"):
        backup.compare(shop(OWNER), backup.check(copy))
