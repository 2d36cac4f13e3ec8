"""What proofs share: a fresh printed seed, how long to go on, and the evidence they leave.

`make prove` runs each proof short, `make soak` long (`KANTIS_SOAK=1`). Each adds what it counted
to `evidence/NAME.jsonl`, with its seed, so that a failure can be repeated with `KANTIS_SEED`.
"""

import json
import os
import platform
import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IS_SOAK = os.environ.get("KANTIS_SOAK", "") not in {"", "0"}


@pytest.fixture(scope="session")
def seed() -> int:
    """Draw a seed, never the same twice; it is printed whenever a proof fails."""
    return int(os.environ.get("KANTIS_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture
def chance(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Give a proof its own repeatable chance."""
    print(f"KANTIS_SEED={seed}")  # noqa: T201 - whoever repeats a failure needs it
    return random.Random(f"{seed}/{request.node.nodeid}")


@pytest.fixture(scope="session")
def long_or_short() -> Callable[[int, int], int]:
    """Choose between how much is done in a long run and in a short one."""
    return lambda long, short: long if IS_SOAK else short


@pytest.fixture
def evidence(seed: int, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep what a proof counted: call it once, with figures."""

    def keep(**figures: object) -> None:
        name = Path(str(request.node.path)).stem.removeprefix("test_")
        line = {
            "proof": request.node.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "soak": IS_SOAK,
            "seed": seed,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **figures,
        }
        folder = ROOT / "evidence"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return keep


def _commit() -> str:
    """Name the commit that is proved; evidence of other proofs is no change to it."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", ".", ":!evidence")
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    git = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip()
