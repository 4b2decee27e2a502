"""The audio in HDF5 packs: which dataset it is, and some rows of it as files of audio.

PANNs packs samples: `waveform` (int16 `[clips, samples]`), at the rate in the attribute
`sample_rate`. PaSST packs MP3 files: `mp3` (bytes of any length). Both name the clips in
`audio_name`.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import soundfile

from pipeline.errors import UserError

ROWS_PER_GROUP = 64
"""Neighbours that are read at once, as a row group of Parquet is."""
_BUFFER_BYTES = 1 << 16
_FILES = ("mp3", "flac", "audio")
_SAMPLES = "waveform"
_RATE = "sample_rate"


class DamagedPackError(Exception):
    """An HDF5 file cannot be read, or has no such row."""


@contextmanager
def open_pack(file: Any) -> Iterator[Any]:
    """A pack, open to read.

    Args:
        file: a seekable binary file.

    Raises:
        DamagedPackError: it is damaged, or lacks what is read within the block.
    """
    # HDF5 reads its own tables in many small parts, each of them a request to a bucket.
    buffered = io.BufferedReader(file, _BUFFER_BYTES)
    try:
        with h5py.File(buffered, "r") as pack:
            yield pack
    except (KeyError, ValueError, TypeError, RuntimeError, UserError) as error:
        raise DamagedPackError(str(error)) from error
    except OSError as error:
        if type(error) is not OSError or error.errno:
            raise  # of the storage
        raise DamagedPackError(str(error)) from error
    finally:
        buffered.detach()  # the caller closes the file


def audio_dataset(pack: Any) -> h5py.Dataset:
    """The dataset that holds the audio.

    Raises:
        UserError: there is none or several, or it holds samples without their rate.
    """
    names = [name for name in (*_FILES, _SAMPLES) if name in pack]
    if len(names) > 1:
        raise UserError("", f"several datasets could be the audio: {', '.join(names)}")
    name = names[0] if names else None
    if name is None or not isinstance(pack[name], h5py.Dataset):
        raise UserError(
            "",
            f"no audio in it: it has {', '.join(pack) or 'nothing'}",
            f"call it {', '.join(_FILES)} (files) or {_SAMPLES} (samples)",
        )
    if name == _SAMPLES and _RATE not in pack.attrs:
        raise UserError(
            "", f"{_SAMPLES} without the attribute {_RATE!r} of the file", "add it, in Hz"
        )
    return pack[name]


def read_audio(file: Any, rows: Sequence[int]) -> list[bytes]:
    """The audio in rows of a pack, each as a file of audio.

    Args:
        file: a seekable binary file.
        rows: their indices.

    Raises:
        DamagedPackError: the file is damaged, or has no such row.
    """
    with open_pack(file) as pack:
        audio = audio_dataset(pack)
        if max(rows, default=-1) >= len(audio):
            raise DamagedPackError(f"it has {len(audio)} rows, not row {max(rows)}")
        contents = [audio[row] for row in rows]
        if audio.name == f"/{_SAMPLES}":
            rate_hz = int(pack.attrs[_RATE])
            return [_as_wav(np.asarray(samples), rate_hz) for samples in contents]
        return [_as_bytes(content) for content in contents]


def _as_bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else np.asarray(content, np.uint8).tobytes()


def _as_wav(samples: np.ndarray[Any, Any], rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype=subtype)
    return buffer.getvalue()
