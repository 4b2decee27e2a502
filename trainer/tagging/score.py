"""One part: its segments are scored and written, but those that are done already. Runs without Ray.

In: the recordings of a part, and a model. Out: two files a segment, see `part_files`. A killed
process loses the segment it was at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.audio.sandbox import DecoderProcess
from pipeline.manifest.manifest import Clip
from trainer.tagging.model import Outputs, Tagger
from trainer.tagging.part_files import OpenRecording, ScoredSegment, SegmentRecord, write_segment
from trainer.tagging.rows import Layout, recording_table, states_of, window_table
from trainer.tagging.segments import Cutting, Segment, cut_part
from trainer.tagging.windows import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class TagJob:
    """What all parts share."""

    output: str
    """Folder of the tags."""
    cutting: Cutting
    layout: Layout
    batch_size: int
    """Windows that the model gets at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """Progress of one segment."""

    num_windows: int
    num_ended: int
    """Recordings that end in it, broken ones too."""
    num_faults: int
    num_low_rate: int
    """Recordings that end in it, of a file with a lower sample rate than the fbank's."""


def tag_part(
    number: int,
    clips: Sequence[Clip],
    tagger: Tagger,
    job: TagJob,
    done: Mapping[int, bool],
    decoder: DecoderProcess,
) -> Iterator[Done]:
    """Score and write the segments of a part, in order.

    Args:
        number: of the part.
        clips: its recordings.
        tagger: the model.
        job: what all parts share.
        done: its segments that are done already.
        decoder: what decodes the recordings.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    for segment in cut_part(clips, job.cutting, decoder):
        if segment.number not in done:
            yield tag_segment(number, segment, clips, tagger, job)
        else:
            yield progress(segment, job)


def tag_segment(
    number: int, segment: Segment, clips: Sequence[Clip], tagger: Tagger, job: TagJob
) -> Done:
    """Score and write a segment of the part of this number."""
    scored = score_segment(segment, clips, tagger, job)
    write_segment(job.output, number, segment.number, scored)
    return progress(segment, job)


def score_segment(
    segment: Segment, clips: Sequence[Clip], tagger: Tagger, job: TagJob
) -> ScoredSegment:
    """The rows of a segment."""
    waveforms = [one for stretch in segment.stretches for one in stretch.waveforms]
    outputs = _score(waveforms, tagger, job)
    states = states_of(segment, outputs.scores)
    whole = [state for state in states if state.is_whole]
    record = SegmentRecord(
        is_last=segment.is_last,
        faults=[state.fault for state in whole if state.fault is not None],
        partial=[OpenRecording.of(state) for state in states if not state.is_whole],
    )
    return ScoredSegment(
        windows=window_table(segment, outputs, clips, job.layout),
        recordings=recording_table(whole, clips, job.layout),
        record=record,
    )


def _score(waveforms: Sequence[Samples], tagger: Tagger, job: TagJob) -> Outputs:
    with_embeddings = job.layout.keep.embeddings
    if not waveforms:
        nothing = np.empty((0, len(tagger.labels)), np.float32)
        return Outputs(scores=nothing, embeddings=None)
    batches = [
        tagger.score(waveforms[start : start + job.batch_size], with_embeddings=with_embeddings)
        for start in range(0, len(waveforms), job.batch_size)
    ]
    embeddings = [batch.embeddings for batch in batches if batch.embeddings is not None]
    return Outputs(
        scores=np.concatenate([batch.scores for batch in batches]),
        embeddings=np.concatenate(embeddings) if embeddings else None,
    )


def progress(segment: Segment, job: TagJob) -> Done:
    """What a segment adds to the progress."""
    ended = [stretch for stretch in segment.stretches if stretch.num_samples is not None]
    rate_hz = job.cutting.fbank.sample_rate_hz
    return Done(
        num_windows=sum(len(stretch.starts) for stretch in segment.stretches),
        num_ended=len(ended),
        num_faults=sum(stretch.fault is not None for stretch in ended),
        num_low_rate=sum((stretch.file_rate_hz or rate_hz) < rate_hz for stretch in ended),
    )
