"""Which files of a source are audio: by well-known suffixes, for other suffixes by some contents.

Reading the start of every file would take longer than all else where there are millions. So a few
files of each suffix that is not known are read, and decide for all of that suffix.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.containers import kind_of
from pipeline.audio.frames import without_id3
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES, CONTAINER_SUFFIXES

_SUFFIX = r"(?P<suffix>\.[A-Za-z0-9]{1,8})$"
_PARTIAL_SUFFIXES = (".part", ".ytdl", ".aria2", ".crdownload")
"""Of files that programs are still downloading, whatever is in them."""
_SAMPLE_SIZE = 32
_START_BYTES = 2**17
"""Enough to find frames of MP3 after other bytes."""


class AudioFiles:
    """Tells audio from other files; remembers the suffixes that it has judged."""

    def __init__(self) -> None:
        self._is_audio = {
            **dict.fromkeys(AUDIO_SUFFIXES, True),
            **dict.fromkeys((*CONTAINER_SUFFIXES, *_PARTIAL_SUFFIXES), False),
        }

    def mask(self, paths: pa.Array) -> pa.Array:
        """Which of these paths are audio: an array of booleans."""
        matches = pc.struct_field(pc.extract_regex(paths, _SUFFIX), "suffix")
        suffixes = pc.utf8_lower(pc.fill_null(matches, ""))
        for suffix in pc.unique(suffixes).to_pylist():
            if suffix not in self._is_audio:
                of_suffix = paths.filter(pc.equal(suffixes, suffix))
                self._is_audio[suffix] = _any_is_audio(of_suffix)
        audio = pa.array([suffix for suffix, is_audio in self._is_audio.items() if is_audio])
        return pc.is_in(suffixes, audio)


def _any_is_audio(paths: pa.Array) -> bool:
    step = max(1, len(paths) // _SAMPLE_SIZE)
    for path in paths[::step][:_SAMPLE_SIZE].to_pylist():
        try:
            with storage.open_binary(path) as file:
                start = file.read(_START_BYTES)
        except OSError:
            continue  # it does not decide; if others are audio, it is rejected later
        if kind_of(without_id3(start)) is not None:
            return True
    return False
