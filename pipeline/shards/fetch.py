"""Audio of clips, read ahead of the computation: from files, byte ranges, or rows of containers.

In: clips of the manifest. Up to `num_ahead` reads are in flight while the caller computes;
consecutive clips in one Parquet row group are one read. Out: the bytes or the error of each clip,
in the same order.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.audio.rejects import TOO_LARGE, RejectError
from pipeline.errors import UserError
from pipeline.manifest.layouts.listing import HDF5_SUFFIXES
from pipeline.manifest.layouts.parquet_audio import NoAudioColumnError, read_audio
from pipeline.manifest.manifest import Clip

_LOOK_AGAIN_AFTER_S = 0.5
_ROW_GROUPS_AHEAD = 1
"""Row groups hold hundreds of clips: reading more ahead would only fill the memory."""


class DamagedContainerError(Exception):
    """A file that holds the audio of several clips is damaged."""


def fetch_ahead(
    clips: list[Clip], num_ahead: int, max_bytes: int | None = None
) -> Generator[bytes | Exception, None, None]:
    """Contents in the given order; none larger than `max_bytes`.

    An error is yielded in place of the content; `fetch_reject` tells a clip's fault from one of the
    storage. The caller must close the generator (`contextlib.closing`): the garbage collector may
    close it during the start of a thread, and then waiting for the threads to end deadlocks.
    """
    ahead = num_ahead if all(clip.row_group is None for clip in clips) else _ROW_GROUPS_AHEAD
    pool = ThreadPoolExecutor(max_workers=num_ahead)
    try:
        waiting: list[Future[list[bytes | Exception]]] = []
        for read in _reads(clips, max_bytes):
            waiting.append(pool.submit(read))
            if len(waiting) > ahead:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def fetch_reject(error: Exception, uri: str) -> RejectError:
    """The rejection of a clip that could not be read.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    if isinstance(error, NoAudioColumnError):
        return RejectError("fetch", "its Parquet file has no audio column")
    if isinstance(error, UserError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = storage.one_file_fault(error)
    if reason is None and isinstance(error, pa.ArrowException):
        reason = "its Parquet file is damaged"
    if isinstance(error, DamagedContainerError):
        reason = "its HDF5 file is damaged"
    if reason is None and isinstance(error, EOFError):
        reason = "its container ends before the clip"
    if isinstance(error, storage.TooLargeError):
        reason = f"{TOO_LARGE}; --max-file-mb raises it"
    if reason is not None:
        return RejectError("fetch", reason)
    what, remedy = storage.explain(error) or (f"{type(error).__name__}: {error}", "")
    again = "run the same command again to resume"
    raise UserError(uri, f"cannot be read: {what}", f"{remedy}; {again}" if remedy else again)


def _reads(
    clips: list[Clip], max_bytes: int | None
) -> Iterator[Callable[[], list[bytes | Exception]]]:
    """A read for each file or range, or for neighbours in a row group."""

    def source(clip: Clip) -> object:
        return clip.id if clip.row_group is None else (clip.uri, clip.row_group)

    for _, group in groupby(clips, key=source):
        yield partial(_read_or_errors, list(group), max_bytes)


def _read_or_errors(clips: list[Clip], max_bytes: int | None) -> list[bytes | Exception]:
    try:
        try:
            return list(storage.with_retries(_read, clips, max_bytes))
        except FileNotFoundError:
            # Just after a write, or now and then, a bucket says so of an object that is there.
            time.sleep(_LOOK_AGAIN_AFTER_S)
            return list(storage.with_retries(_read, clips, max_bytes))
    except Exception as error:
        return [error] * len(clips)


def _read(clips: list[Clip], max_bytes: int | None) -> list[bytes | Exception]:
    first = clips[0]
    too_large = storage.TooLargeError(f"{first.uri}: audio of more than {max_bytes} bytes")
    if first.row_group is not None:
        with storage.open_binary(first.uri) as file:
            rows = [_row_index(clip) for clip in clips]
            audio = _read_rows(file, first.uri, first.row_group, rows)
        return [
            content if len(content) <= (max_bytes or len(content)) else too_large
            for content in (cell or b"" for cell in audio)
        ]
    if first.offset_bytes is not None:
        assert first.size_bytes is not None  # the manifest has both or neither
        if first.size_bytes > (max_bytes or first.size_bytes):
            return [too_large]
        return [storage.read_range(first.uri, first.offset_bytes, first.size_bytes)]
    return [storage.read_file(first.uri, max_bytes=max_bytes)]


def _read_rows(file: Any, uri: str, row_group: int, rows: list[int]) -> Sequence[bytes | None]:
    if not uri.lower().endswith(HDF5_SUFFIXES):
        return read_audio(file, row_group, rows)
    from pipeline.manifest.layouts import hdf5_audio  # h5py only where there are such files

    try:
        first = row_group * hdf5_audio.ROWS_PER_GROUP
        return hdf5_audio.read_audio(file, [first + row for row in rows])
    except hdf5_audio.DamagedPackError as error:
        raise DamagedContainerError(str(error)) from error


def _row_index(clip: Clip) -> int:
    assert clip.row is not None  # the manifest has it wherever it has a row group
    return clip.row
