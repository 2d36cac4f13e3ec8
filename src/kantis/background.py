"""The server that `kantis demo` leaves running: started for itself, found again, stopped."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from kantis.settings import Settings

START_SECONDS = 60
"""A busy machine takes its time to import the web frameworks."""


class ServerDown(Exception):
    """The server did not come up; the message says where its log is."""


def start(settings: Settings) -> None:
    """Start `kantis serve` for itself, unless it runs, and wait until it answers.

    :raises ServerDown:
    """
    if answers(settings):
        if _is_running(settings):
            return
        msg = (
            f"Another server answers at {settings.host}:{settings.port}."
            " Stop it, or set KANTIS_PORT to a free port."
        )
        raise ServerDown(msg)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log_file = settings.data_dir / "serve.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            # Without the worker: the calendar would run on to today, and all would expire.
            [sys.executable, "-m", "kantis", "serve", "--only", "api", "--only", "site"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _pid_file(settings).write_text(str(process.pid), encoding="ascii")
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        if answers(settings):
            return
        time.sleep(0.1)
    msg = f"The server did not start; see {log_file}."
    raise ServerDown(msg)


def answers(settings: Settings) -> bool:
    """Tell whether a server of ours answers at the address in the settings."""
    try:
        with urlopen(f"http://{settings.host}:{settings.port}/health", timeout=1) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (URLError, OSError):
        return False


def stop(settings: Settings) -> None:
    """Stop the server that was started here, if it still runs."""
    pid_file = _pid_file(settings)
    if pid_file.exists():
        with suppress(ProcessLookupError):
            os.kill(int(pid_file.read_text(encoding="ascii")), signal.SIGTERM)
        pid_file.unlink()


def _is_running(settings: Settings) -> bool:
    """Tell whether the process that was started here still lives."""
    try:
        os.kill(int(_pid_file(settings).read_text(encoding="ascii")), 0)
    except (OSError, ValueError):
        return False
    return True


def _pid_file(settings: Settings) -> Path:
    return settings.data_dir / "serve.pid"
