"""What processes use, as Linux tells it; elsewhere these figures are left out."""

import os
from pathlib import Path

import psycopg

from bench.place import Database

_PROC = Path("/proc")

_TICKS = os.sysconf("SC_CLK_TCK")
"""In a second."""

_PARENT = 1
_USED, _USED_BY_CHILDREN = slice(11, 13), slice(13, 15)
"""Fields of `/proc/PID/stat` after the name."""


def can_be_watched() -> bool:
    """Tell whether this system says what a process uses."""
    return (_PROC / "self" / "stat").exists()


def rss_bytes(pid: int) -> int:
    """Give the memory of a process and its children, shared pages counted in each."""
    return sum(map(_rss_bytes, _family(pid)))


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process and its children have used, the ended ones too."""
    ticks = 0
    for member in _family(pid):
        if fields := _fields(member):
            ticks += sum(map(int, fields[_USED] + fields[_USED_BY_CHILDREN]))
    return ticks / _TICKS


def postgres_pid(database: Database) -> int:
    """Give the first process of the server that keeps a database; 0 if that cannot be told."""
    with psycopg.connect(database.url) as connection:
        fields = _fields(connection.info.backend_pid)
    return int(fields[_PARENT]) if fields else 0


def _family(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if fields := _fields(int(entry.name)):
            parents.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    family = [pid]
    for member in family:
        family += parents.get(member, [])
    return family


def _fields(pid: int) -> list[str]:
    """Give what stands after the name in `/proc/PID/stat`; nothing if there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _rss_bytes(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "statm").read_text()
    except OSError:
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
