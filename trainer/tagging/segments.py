"""Recordings as segments: groups of windows that are scored at once and written as one file.

In: a part of the source, which is some recordings, or one long one. Steps: read the audio ahead;
decode it as a stream, in a process of its own; cut windows; group them. Out: segments, each of a
few windows that fit into memory. They depend on the part alone: a killed job goes on with the next,
and gives the same bytes.

A recording that is broken is scored up to the fault, which is noted.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from pipeline import storage
from pipeline.audio.recording import WHOLE_BYTES
from pipeline.audio.rejects import Reject, RejectError
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import Channel, DecodeSettings
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip
from pipeline.shards.fetch import fetch_ahead, fetch_reject
from trainer.tagging.windows import Samples, WindowPlan, cut_windows

SEGMENT_WINDOWS = 128
_SEGMENT_SAMPLES = 2**23
"""Most windows of a segment, and most samples of all of them, if it has several: 32 MB."""

_READS_AHEAD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutting:
    """How recordings are decoded and cut."""

    plan: WindowPlan
    fbank: FbankSettings
    channel: Channel = "mean"

    @property
    def segment_windows(self) -> int:
        """Most windows of a segment."""
        return max(1, min(SEGMENT_WINDOWS, _SEGMENT_SAMPLES // self.plan.length))


@dataclass(kw_only=True, slots=True, eq=False)
class Stretch:
    """The windows of one recording that are in a segment."""

    number: int
    """Of the recording in its part, from 0."""
    starts: list[int] = field(default_factory=list)
    """In samples at the rate of the fbank."""
    waveforms: list[Samples] = field(default_factory=list)
    file_rate_hz: int | None = None
    """Sample rate of the file; None: nothing could be decoded."""
    num_samples: int | None = None
    """Of the whole recording, if it ends here."""
    fault: Reject | None = None
    """Why it could not be read to its end, if it ends here."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """Windows that are scored at once."""

    number: int
    """In its part, from 0."""
    stretches: list[Stretch]
    is_last: bool
    """Whether the part ends with it."""


def cut_part(clips: Sequence[Clip], cutting: Cutting, decoder: DecoderProcess) -> Iterator[Segment]:
    """The segments of a part, in order; at least one.

    Args:
        clips: the recordings, or stretches of them.
        cutting: how to cut them.
        decoder: what decodes them.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    stretches: list[Stretch] = []
    number = num_windows = 0
    for stretch in _stretches(clips, cutting, decoder):
        # Looks one ahead, to know the last.
        if num_windows + len(stretch.starts) > cutting.segment_windows:
            yield Segment(number=number, stretches=stretches, is_last=False)
            stretches, num_windows, number = [], 0, number + 1
        stretches.append(stretch)
        num_windows += len(stretch.starts)
    yield Segment(number=number, stretches=stretches, is_last=True)


def _stretches(
    clips: Sequence[Clip], cutting: Cutting, decoder: DecoderProcess
) -> Iterator[Stretch]:
    """The windows of each recording, at most as many at once as a segment has."""
    with closing(fetch_ahead(list(clips), _READS_AHEAD, WHOLE_BYTES)) as contents:
        for number, (clip, content) in enumerate(zip(clips, contents, strict=True)):
            sound = _Sound(clip, content, cutting, decoder)
            yield from _of_recording(number, sound, cutting)


def _of_recording(number: int, sound: "_Sound", cutting: Cutting) -> Iterator[Stretch]:
    stretch = Stretch(number=number)
    for window in cut_windows(sound.blocks(), cutting.plan):
        if cutting.fbank.num_frames(len(window.samples)) < 1:
            sound.fault = RejectError(
                "fbank", f"shorter than one {cutting.fbank.frame_length_ms} ms frame"
            )
            break
        if len(stretch.starts) == cutting.segment_windows:
            yield stretch
            stretch = Stretch(number=number, file_rate_hz=sound.file_rate_hz)
        stretch.starts.append(window.start)
        # A view would keep all that was decoded with it.
        stretch.waveforms.append(window.samples.copy())
    stretch.file_rate_hz, stretch.num_samples = sound.file_rate_hz, sound.num_samples
    if (fault := sound.fault) is not None:
        clip = sound.clip
        stretch.fault = Reject(id=clip.id, uri=clip.uri, stage=fault.stage, reason=fault.reason)
    yield stretch


class _Sound:
    """A recording as a stream, up to its end or its first fault."""

    def __init__(
        self,
        clip: Clip,
        content: bytes | Exception,
        cutting: Cutting,
        decoder: DecoderProcess,
    ) -> None:
        self.clip = clip
        self.file_rate_hz: int | None = None
        self.num_samples = 0
        self.fault: RejectError | None = None
        self._content, self._cutting, self._decoder = content, cutting, decoder

    def blocks(self) -> Iterator[Samples]:
        try:
            with (
                open_audio(self.clip, self._content) as source,
                closing(
                    self._decoder.decode_stream(
                        source,
                        DecodeSettings(channel=self._cutting.channel),
                        sample_rate_hz=self._cutting.fbank.sample_rate_hz,
                        start_s=self.clip.start_s,
                        end_s=self.clip.end_s,
                    )
                ) as blocks,
            ):
                for block in blocks:
                    self.file_rate_hz = block.file_rate_hz
                    self.num_samples += len(block.samples)
                    yield block.samples
        except RejectError as error:
            self.fault = error


@contextmanager
def open_audio(clip: Clip, content: bytes | Exception) -> Iterator[bytes | BinaryIO]:
    """What decoders take of a recording, as `fetch_ahead` has it; opens what is not read whole.

    Raises:
        RejectError: it could not be read.
        UserError: the storage as a whole refuses or does not answer.
    """
    if isinstance(content, storage.TooLargeError):
        if clip.offset_bytes is not None or clip.row_group is not None:
            limit = f"larger than {WHOLE_BYTES // 10**6} MB inside another file"
            raise RejectError("fetch", limit) from content
        with storage.open_binary(clip.uri) as file:
            yield cast(BinaryIO, file)
        return
    if isinstance(content, Exception):
        raise fetch_reject(content, clip.uri) from content
    yield content
