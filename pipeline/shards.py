"""WebDataset tars: plain, deterministic, and with the place of every fbank known.

A clip is two members, `KEY.json` (id, labels, split, fold, duration) and `KEY.npy` (float16
`[T, F]`, raw log-mel, unpadded), which stock `webdataset` and Ray Data read without this package.
The place of the fbank's numbers, past the tar and NPY headers, goes into the index, so that any
clip is one positioned read.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

Fbank = npt.NDArray[np.float16]

_MODE = 0o644


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where a fbank's numbers lie in its tar."""

    offset_bytes: int
    size_bytes: int


class ShardWriter:
    """Builds one tar in memory: the same clips in the same order give the same bytes.

    In memory, because a shard must appear under its name whole or not at all, on S3 too, where
    that takes one put.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self.num_clips = 0

    def add(self, clip_id: str, facts: dict[str, object], fbank: Fbank) -> Placed:
        """Append a clip. `facts` become the JSON member, beside the id."""
        key = shard_key(clip_id)
        document = json.dumps({"id": clip_id, **facts}, ensure_ascii=False)
        self._add_member(f"{key}.json", document.encode())
        header = _npy_header(fbank)
        start = self._add_member(f"{key}.npy", header, np.ascontiguousarray(fbank).data.cast("B"))
        self.num_clips += 1
        return Placed(offset_bytes=start + len(header), size_bytes=fbank.nbytes)

    def finish(self) -> bytes:
        """The tar's bytes, ended as tar demands; the writer is done after that."""
        end = self._buffer.tell() + 2 * tarfile.BLOCKSIZE
        self._buffer.write(bytes(end + -end % tarfile.RECORDSIZE - self._buffer.tell()))
        return self._buffer.getvalue()

    def _add_member(self, name: str, *content: bytes | memoryview) -> int:
        """Append a file, all that could vary fixed; returns where its content starts."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = sum(map(len, content)), 0, _MODE
        self._buffer.write(info.tobuf(tarfile.PAX_FORMAT))
        start = self._buffer.tell()
        for part in content:
            self._buffer.write(part)
        self._buffer.write(bytes(-info.size % tarfile.BLOCKSIZE))
        return start


def shard_key(clip_id: str) -> str:
    """The member name of a clip: its id, with what would end a WebDataset key percent-encoded."""
    return quote(clip_id, safe="").replace(".", "%2E")


def fbank_from_bytes(data: bytes, num_mels: int) -> Fbank:
    """`[T, F]` from the numbers that a positioned read returned."""
    return np.frombuffer(data, dtype="<f2").reshape(-1, num_mels)


def _npy_header(array: Fbank) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()
