"""Python packages that a job gets on top of those of the nodes.

In: requirements as on pip's command line, files of them, wheels on this machine. Out: lines for
the runtime environment's `pip`, and the wheels to upload.

Ray makes a virtual environment for them on each node. It takes one of `pip`, `uv` and `conda`, and
none of them together with an image. A package must not change the version of Ray.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from pipeline.errors import UserError

WHEEL_FOLDER = "wheels"
"""Folder, in a job, of the wheels that were uploaded."""
_WORKING_FOLDER = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""The job's working folder, for pip: Ray sets the variable while it installs."""
_NAMES_A_FILE = ("-r", "-c", "-e", "--requirement", "--constraint", "--editable")


@dataclass(frozen=True, kw_only=True, slots=True)
class Packages:
    """Packages to install for a job."""

    lines: tuple[str, ...] = ()
    """As in a file of requirements for pip."""
    wheels: dict[Path, Path] = field(default_factory=dict)
    """Where each uploaded wheel stands in the job's working folder, and its file here."""

    def runtime_env(self) -> dict[str, list[str]]:
        """The part of a job's runtime environment that installs them."""
        return {"pip": list(self.lines)} if self.lines else {}


NO_PACKAGES = Packages()


def parse_packages(items: Sequence[str]) -> Packages:
    """What `--pip` names.

    Args:
        items: Each a requirement (`librosa==0.11.0`), a local wheel (`.whl`), or a local file of
            requirements (`.txt`).

    Raises:
        UserError: an item is none of them, or a file cannot be read or names files of its own.
    """
    lines: dict[str, None] = {}
    wheels: dict[Path, Path] = {}
    for item in items:
        if item.endswith(".txt"):
            for line in _read_requirements(Path(item)):
                _add(line, Path(item).parent, lines, wheels, is_checked=False)
        else:
            _add(item, Path(), lines, wheels, is_checked=True)
    return Packages(lines=tuple(lines), wheels=wheels)


def _add(
    item: str, folder: Path, lines: dict[str, None], wheels: dict[Path, Path], *, is_checked: bool
) -> None:
    if item.endswith(".whl") and "://" not in item:
        path = folder / item
        # Ray keeps an environment for the same lines: another wheel of that name must differ.
        target = Path(WHEEL_FOLDER) / _digest(path) / path.name
        wheels[target] = path
        item = f"{_WORKING_FOLDER}/{target.as_posix()}"
    elif is_checked:
        try:
            Requirement(item)
        except InvalidRequirement as error:
            remedy = "give NAME==VERSION, a wheel (.whl) or a file of requirements (.txt)"
            raise UserError("--pip", f"not a requirement: {item!r}", remedy) from error
    lines[item] = None


def _read_requirements(path: Path) -> list[str]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(str(path), f"cannot be read ({reason})") from error
    lines = [line.strip() for line in texts]
    for number, line in enumerate(lines, start=1):
        if line.startswith(_NAMES_A_FILE):
            raise UserError(
                f"{path}, line {number}",
                f"names a file that the nodes do not have: {line}",
                "write its lines into this file",
            )
    return [line for line in lines if line and not line.startswith("#")]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})") from error
