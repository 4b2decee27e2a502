"""Whether the files of a manifest exist and are audio, judged by their first bytes.

In: a manifest. Steps: choose a sample, the same in every run, or all; read the start of each file,
and tell its kind. Nothing is decoded, and no file is read whole. Rows of Parquet files and HDF5
packs are not looked at: reading one costs its row group, and listing them has found them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.containers import kind_of
from pipeline.audio.frames import without_id3
from pipeline.errors import UserError, one_line
from pipeline.manifest.manifest import Manifest
from pipeline.storage.stored_table import batches
from pipeline.storage.table_hashes import row_hashes
from pipeline.terminal.progress import ProgressBar
from pipeline.terminal.units import counted

SAMPLE_SIZE = 20
SHOWN = 5
"""Faults that have a line of their own; the rest is counted."""

_SEED = 0
_PLACE = ["uri", "offset_bytes", "size_bytes"]
_START_BYTES = (1 << 12, 1 << 17, 1 << 23)
"""Read one after the other until the kind is known: most files need the first, MP3 files with other
bytes in front the second, those with pictures the third."""
_READS_AT_ONCE = 32
_FILES_PER_STEP = 1_000
_GIT_LFS = b"version https://git-lfs.github.com/"
_POINTER = "a pointer of Git LFS"
_NOT_FOUND = "not found"
_REMEDIES = {
    _NOT_FOUND: "paths in a table are relative to it; make others with a pattern, such as "
    "--column path=../audio/{path}.wav, or skip this check with --no-check",
    "access refused": "allow reading them, or skip this check with --no-check",
    _POINTER: "fetch the files with `git lfs pull`",
}
_OTHER_REMEDY = "name files of audio, or skip this check with --no-check"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFault:
    """A file that cannot be used."""

    uri: str
    reason: str

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """Files that were looked at, and what was wrong with some."""

    num_files: int
    faults: tuple[FileFault, ...]
    is_sample: bool

    def reasons(self) -> str:
        """How many faults of each kind there are, the most frequent first."""
        counts = Counter(fault.reason for fault in self.faults)
        return ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common())


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    offset_bytes: int | None
    size_bytes: int | None


def check_files(manifest: Manifest, *, every_file: bool) -> FileCheck:
    """Look at the files of a sample of the clips, or at every file.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    num_places = sum(batch.num_rows for batch in _places(manifest))
    is_sample = not every_file and num_places > SAMPLE_SIZE
    chosen = np.arange(num_places)
    if is_sample:
        chosen = np.random.default_rng(_SEED).choice(num_places, SAMPLE_SIZE, replace=False)
        chosen.sort()
    # By hashes, as there may be millions; some clips are of the same file.
    hashes = np.concatenate([np.empty(0, np.uint64), *map(row_hashes, _places(manifest))])
    _, first = np.unique(hashes[chosen], return_index=True)
    rows = chosen[np.sort(first)]
    with ThreadPoolExecutor(max_workers=_READS_AT_ONCE) as pool:
        faults = list(_all_faults(_files(manifest, rows), len(rows), pool, show=every_file))
    return FileCheck(num_files=len(rows), faults=tuple(faults), is_sample=is_sample)


def _places(manifest: Manifest) -> Iterator[pa.Table]:
    """Where the audio of clips is that are not rows of a container, in batches."""
    for batch in batches(manifest.clips, [*_PLACE, "row_group"]):
        yield batch.filter(pc.is_null(batch["row_group"])).select(_PLACE)


def _files(manifest: Manifest, rows: npt.NDArray[np.int64]) -> Iterator[list[_File]]:
    """The files of some places, in steps."""
    start = 0
    for batch in _places(manifest):
        end = start + batch.num_rows
        first, last = np.searchsorted(rows, [start, end])
        files = batch.take(pa.array(rows[first:last] - start))
        for number in range(0, files.num_rows, _FILES_PER_STEP):
            step = files.slice(number, _FILES_PER_STEP)
            yield list(map(_File, *step.to_pydict().values()))
        start = end


def refuse_if_all_fail(check: FileCheck, source: str) -> None:
    """Refuse a source of which no file can be used.

    Raises:
        UserError: every file that was looked at has a fault.
    """
    if check.faults and len(check.faults) == check.num_files:
        main = Counter(fault.reason for fault in check.faults).most_common(1)[0][0]
        example = next(fault.uri for fault in check.faults if fault.reason == main)
        raise UserError(
            source,
            f"none of the {counted(check.num_files, 'file')} looked at can be used: "
            f"{check.reasons()}, such as {example}",
            _REMEDIES.get(main, _OTHER_REMEDY),
        )


def file_warnings(check: FileCheck) -> list[str]:
    """A line for each of the first faults, and one that counts all of them."""
    if not check.faults:
        return []
    more = "; --verbose names all" if len(check.faults) > SHOWN else ""
    if check.is_sample:
        more = "; --check looks at every file"
    return [
        *map(str, check.faults[:SHOWN]),
        f"{len(check.faults):,} of {counted(check.num_files, 'file')} looked at cannot be used: "
        f"{check.reasons()}; `prepare` rejects such files, and fails if they exceed "
        f"--max-reject-share{more}",
    ]


def _all_faults(
    steps: Iterable[list[_File]], num_files: int, pool: ThreadPoolExecutor, *, show: bool
) -> Iterator[FileFault]:
    """The faults of the files of all steps, with progress if that is to be shown."""
    with ProgressBar("check files", num_files) if show else nullcontext() as bar:
        num_done = 0
        for files in steps:
            yield from _faults(files, pool)
            num_done += len(files)
            if bar:
                bar.update(num_done)


def _faults(files: Sequence[_File], pool: ThreadPoolExecutor) -> list[FileFault]:
    reasons = zip(files, pool.map(_reason, files), strict=True)
    return [FileFault(uri=file.uri, reason=reason) for file, reason in reasons if reason]


def _reason(file: _File) -> str | None:
    """Why a file cannot be used; None if it can."""
    try:
        return _reason_by_content(file)
    except Exception as error:
        fault = storage.one_file_fault(error)
        if fault is not None:
            return fault
        what, remedy = storage.explain(error) or (one_line(error), "")
        raise UserError(file.uri, f"cannot be read: {what}", remedy) from error


def _reason_by_content(file: _File) -> str | None:
    data = b""
    for size_bytes in _START_BYTES:
        data = _start(file, size_bytes)
        if kind_of(without_id3(data)) is not None:
            return None
        if len(data) < size_bytes:
            break
    if data.startswith(_GIT_LFS):
        return _POINTER
    return "no known kind of audio" if data else "empty"


def _start(file: _File, size_bytes: int) -> bytes:
    if file.size_bytes is not None:
        size_bytes = min(size_bytes, file.size_bytes)
    offset_bytes = file.offset_bytes or 0
    return bytes(storage.with_retries(storage.read_file, file.uri, offset_bytes, size_bytes))
