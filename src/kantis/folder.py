"""What a retailer writes: `programmes/NAME` with dated terms and cases beside them."""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from kantis.core.cases import Case, read_case
from kantis.core.programme import Programme
from kantis.core.terms import Terms
from kantis.core.terms_text import read_terms
from kantis.core.toml_text import Fault, TextFaulty

PROGRAMMES = Path("programmes")


class FolderMissing(Exception):
    """There is no programme where one was looked for."""


class FolderFaulty(Exception):
    """Files of a programme have faults; `faults` has each with its file."""

    def __init__(self, faults: dict[Path, tuple[Fault, ...]]) -> None:
        """Keep the faults by file."""
        self.faults = faults
        super().__init__(
            "\n".join(f"{path}: {fault}" for path, some in faults.items() for fault in some)
        )


class Folder(Struct, frozen=True):
    """A programme's folder."""

    path: Path

    @property
    def name(self) -> str:
        """Give the programme's name."""
        return self.path.name

    @property
    def terms_files(self) -> list[Path]:
        """Give the versions' files, oldest first."""
        return sorted(self.path.glob("[0-9]*.toml"))

    @property
    def sources(self) -> list[str]:
        """Give the versions' texts, oldest first."""
        return [path.read_text(encoding="utf-8") for path in self.terms_files]

    @property
    def case_files(self) -> list[Path]:
        """Give the cases' files."""
        return sorted(self.path.glob("cases/*.toml"))

    def programme(self) -> Programme:
        """Read all versions of the terms.

        :raises FolderFaulty: with every fault of every file
        """
        return Programme(read_versions(self.terms_files))

    def cases(self) -> Iterator[tuple[Path, Case]]:
        """Read the cases.

        :raises FolderFaulty: for the first faulty file
        """
        for path in self.case_files:
            try:
                yield path, read_case(path.read_text(encoding="utf-8"))
            except TextFaulty as faulty:
                raise FolderFaulty({path: faulty.faults}) from None


def find_folder(name: str | Path) -> Folder:
    """Find a programme by its folder, or by its name under `programmes/`.

    :raises FolderMissing:
    """
    for path in (Path(name), PROGRAMMES / name):
        if next(path.glob("[0-9]*.toml"), None) is not None:
            return Folder(path)
    there = sorted(p.name for p in PROGRAMMES.glob("*") if p.is_dir())
    msg = f"There is no programme {name} here; {PROGRAMMES}/ has {', '.join(there) or 'nothing'}."
    raise FolderMissing(msg)


def read_versions(paths: list[Path]) -> list[Terms]:
    """Read terms files, and check each version against the one before.

    :raises FolderFaulty: with every fault of every file
    """
    faults: dict[Path, tuple[Fault, ...]] = {}
    versions = []
    for path in paths:
        try:
            versions.append(read_terms(path.read_text(encoding="utf-8")))
        except TextFaulty as faulty:
            faults[path] = faulty.faults
    if not faults:
        try:
            Programme(versions)
        except TextFaulty as faulty:
            faults[paths[-1]] = faulty.faults
    if faults:
        raise FolderFaulty(faults)
    return versions
