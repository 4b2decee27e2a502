"""Which files of a user's folder a job gets beside the program.

In: a folder and patterns of what to leave out. Out: the files, or an error if they are too large to
send with every job.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError

MAX_UPLOAD_BYTES = 100_000_000
"""Most that is sent with a job; data belongs into a bucket or on a shared disk."""
ALWAYS_LEFT_OUT = (
    ".*", "__pycache__", "*.pyc", "*.egg-info", "venv", "build", "dist", "node_modules",
    "data", "runs", "*.tar", "*.tar.gz", "*.tgz", "*.zip", "*.ckpt", "*.pt", "*.pth",
    "*.safetensors",
)  # fmt: skip
"""Patterns as `--working-dir-exclude` takes them: hidden files, which may hold secrets, what
programs create, data sets, runs, archives and weights."""
_NUM_NAMED = 5
"""Of the largest files, and of those left out: as many are named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFiles:
    """Files that a job gets in its working folder."""

    folder: Path
    paths: tuple[Path, ...]
    """Relative to `folder`, sorted."""
    num_bytes: int
    left_out: tuple[Path, ...]
    """Files and folders that a pattern leaves out, or that are neither; relative, sorted."""

    def note(self) -> str:
        """How much is uploaded and what is left out, in one line."""
        plural = "" if len(self.paths) == 1 else "s"
        text = f"{self.folder}: {len(self.paths)} file{plural} uploaded, {_size(self.num_bytes)}"
        if self.left_out:
            names = [str(path) for path in self.left_out[:_NUM_NAMED]]
            more = ", ..." if len(self.left_out) > _NUM_NAMED else ""
            text += f"; left out: {', '.join(names)}{more}"
        return text


def find_own_files(folder: Path, exclude: Sequence[str] = ()) -> OwnFiles:
    """The files below a folder that no pattern leaves out.

    Args:
        folder: A local folder.
        exclude: Patterns besides `ALWAYS_LEFT_OUT`. One without a slash is compared with every
            name, one with a slash with the end of a path, or with all of it if it starts with one.

    Raises:
        UserError: it is no folder, cannot be read, or its files are too large.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "not a folder", "give --working-dir a folder on this machine")
    for pattern in exclude:
        if not pattern.strip("/"):
            raise UserError(
                "--working-dir-exclude", f"leaves out everything or nothing: {pattern!r}"
            )
    patterns = [*ALWAYS_LEFT_OUT, *exclude]
    sizes: dict[Path, int] = {}
    left_out: list[Path] = []
    for name, folders, files in os.walk(folder, onerror=_refuse):
        place = Path(name).relative_to(folder)
        kept = []
        for child in sorted(folders):
            is_left_out = (Path(name) / child).is_symlink() or _matches(place / child, patterns)
            (left_out.append(place / child) if is_left_out else kept.append(child))
        folders[:] = kept
        for child in files:
            if (Path(name) / child).is_file() and not _matches(place / child, patterns):
                sizes[place / child] = (Path(name) / child).stat().st_size
            else:
                left_out.append(place / child)
    found = OwnFiles(
        folder=folder,
        paths=tuple(sorted(sizes)),
        num_bytes=sum(sizes.values()),
        left_out=tuple(sorted(left_out)),
    )
    check_size(f"{folder}", sizes)
    return found


def check_size(where: str, sizes: dict[Path, int]) -> None:
    """Refuse files that are too large together, and name the largest.

    Raises:
        UserError: they have more than `MAX_UPLOAD_BYTES`.
    """
    total = sum(sizes.values())
    if total > MAX_UPLOAD_BYTES:
        largest = sorted(sizes, key=lambda path: (-sizes[path], path))[:_NUM_NAMED]
        names = ", ".join(f"{path} ({_size(sizes[path])})" for path in largest)
        raise UserError(
            where,
            f"{_size(total)} to upload, more than {_size(MAX_UPLOAD_BYTES)}; the largest: {names}",
            "leave files out with --working-dir-exclude, and put data into a bucket",
        )


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    rooted = PurePosixPath("/", path.as_posix())
    return any(rooted.match(pattern) for pattern in patterns)


def _refuse(error: OSError) -> None:
    raise UserError(str(error.filename), f"cannot be read ({error.strerror})") from error


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"
