"""The job of `tag`: what is to be done, what an earlier call left, and the loop over its parts.

In: a model, a source and settings. Steps: list the recordings; compare with the plan that is there;
tag the parts, in this process or by `trainer.on_ray.tag`; assemble. Out: see `assemble`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import xxhash

from pipeline import storage
from pipeline.audio.rejects import Reject
from pipeline.audio.sandbox import DecoderProcess
from pipeline.errors import UserError
from pipeline.manifest.manifest import Clip
from pipeline.terminal.progress import ProgressBar
from trainer.tagging.assemble import (
    TagCard,
    TagPlan,
    assemble,
    finished_recordings,
    is_done,
    read_card,
)
from trainer.tagging.model import Tagger
from trainer.tagging.part_files import ScoredSegment, done_segments
from trainer.tagging.rows import Layout
from trainer.tagging.score import Done, TagJob, score_segment, tag_part
from trainer.tagging.segments import Cutting, cut_part
from trainer.tagging.settings import TagSettings
from trainer.tagging.source import Part, Recordings, deal_parts
from trainer.tagging.windows import WindowPlan

TagParts = Callable[["Work"], Iterator[Done]]
"""Tags the parts of some work, in whatever processes, and yields the progress."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """The parts that are still to be tagged."""

    parts: list[Part]
    done: dict[int, dict[int, bool]]
    """Segments of them that are done, see `done_segments`."""
    recordings: Recordings
    job: TagJob


def tag_recordings(
    tagger: Tagger,
    recordings: Recordings,
    source: str,
    output: str,
    settings: TagSettings,
    *,
    batch_size: int,
    tag_parts: TagParts,
) -> TagCard:
    """Tag all recordings of a source; go on where an earlier call ended.

    Raises:
        UserError: the folder holds something else or other tags; or the storage as a whole refuses.
    """
    plan = make_plan(tagger, recordings, source, settings)
    card = check_output(output, plan)
    if card is not None:
        return card
    job = make_job(tagger, output, settings, batch_size=batch_size)
    storage.write_json(_plan_path(output), asdict(plan))
    done = done_segments(output)
    parts = [p for p in deal_parts(recordings) if not is_done(done.get(p.number, {}))]
    work = Work(parts=parts, done=done, recordings=recordings, job=job)
    num_before = len(recordings) - sum(part.num for part in parts)
    with ProgressBar("recordings", len(recordings)) as bar:
        num_ended, num_windows, num_faults = num_before, 0, 0
        for progress in tag_parts(work):
            num_ended += progress.num_ended
            num_windows += progress.num_windows
            num_faults += progress.num_faults
            bar.update(num_ended, figures={"windows": num_windows, "broken": num_faults})
        bar.update(len(recordings))
    return assemble(output, recordings, plan, job.layout)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tags:
    """What is written of some recordings."""

    windows: pa.Table
    recordings: pa.Table
    rejects: list[Reject]


def tag_in_memory(
    tagger: Tagger,
    clips: Sequence[Clip],
    settings: TagSettings,
    decoder: DecoderProcess | None = None,
    *,
    batch_size: int,
) -> Tags:
    """The tags of a few recordings, without files.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    job = make_job(tagger, "", settings, batch_size=batch_size)
    with decoder or DecoderProcess() as decoder, ProgressBar("windows", 0) as bar:
        segments: list[ScoredSegment] = []
        num_windows = 0
        for segment in cut_part(clips, job.cutting, decoder):
            segments.append(score_segment(segment, clips, tagger, job))
            num_windows += segments[-1].windows.num_rows
            bar.set_total(num_windows)
            bar.update(num_windows)
    finished = list(finished_recordings(segments, clips, job.layout))
    return Tags(
        windows=pa.concat_tables([segment.windows for segment in segments]),
        recordings=pa.concat_tables([table for table, _ in finished]),
        rejects=[fault for _, faults in finished for fault in faults],
    )


def tag_here(tagger: Tagger, decoder: DecoderProcess) -> TagParts:
    """Scores parts in this process."""

    def tag(work: Work) -> Iterator[Done]:
        for part in work.parts:
            clips = work.recordings.clips_of(part)
            done = work.done.get(part.number, {})
            yield from tag_part(part.number, clips, tagger, work.job, done, decoder)

    return tag


def make_job(tagger: Tagger, output: str, settings: TagSettings, *, batch_size: int) -> TagJob:
    """What all parts share."""
    return TagJob(
        output=output,
        cutting=Cutting(
            plan=window_plan(tagger, settings), fbank=tagger.fbank, channel=settings.channel
        ),
        layout=Layout(
            labels=tuple(tagger.labels),
            sample_rate_hz=tagger.fbank.sample_rate_hz,
            keep=settings.keep,
        ),
        batch_size=batch_size,
    )


def window_plan(tagger: Tagger, settings: TagSettings) -> WindowPlan:
    """Lengths in samples.

    Raises:
        UserError: the window is shorter than a patch of the model.
    """
    fbank, windows = tagger.fbank, settings.windows
    input_s = tagger.num_frames * fbank.frame_shift_ms / 1000
    length_s = windows.length_s or input_s
    length = fbank.samples_in(length_s)
    hop = fbank.samples_in(windows.hop_s or length_s / 2)
    longest = length
    if windows.length_s is None:
        # As long as it gives no more frames than the model takes, none is cut off.
        longest = fbank.samples_for(tagger.num_frames + 1) - 1
    return WindowPlan(length=length, hop=hop, longest_single=longest)


def make_plan(
    tagger: Tagger, recordings: Recordings, source: str, settings: TagSettings
) -> TagPlan:
    """What decides the tags."""
    plan, keep = window_plan(tagger, settings), settings.keep
    rate_hz = tagger.fbank.sample_rate_hz
    return TagPlan(
        source=source,
        source_fingerprint=recordings.fingerprint,
        model=tagger.source,
        model_fingerprint=fingerprint(tagger),
        num_classes=len(tagger.labels),
        sample_rate_hz=rate_hz,
        window_s=plan.length / rate_hz,
        hop_s=plan.hop / rate_hz,
        channel=settings.channel,
        top=keep.most,
        threshold=keep.threshold,
        all_scores=keep.all_scores,
        embeddings=keep.embeddings,
    )


def fingerprint(tagger: Tagger) -> str:
    """A hash of the weights of all members, and of all that decides their scores."""
    digest = xxhash.xxh3_128()
    for member in tagger.members:
        for name, value in sorted(member.ast.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        facts = (member.mean, member.std, member.share, member.function, member.precision)
        digest.update(repr((*facts, member.store, member.bucket_frames)).encode())
    text = repr((digest.hexdigest(), tagger.labels, tagger.averages_logits))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_output(output: str, plan: TagPlan) -> TagCard | None:
    """The card, if the tags are complete; None if they are to be made, or gone on with.

    Raises:
        UserError: the folder holds something else, or other tags.
    """
    if (card := read_card(output)) is not None:
        _check_same(output, card.plan, plan)
        return card
    try:
        before = storage.read_document(_plan_path(output), TagPlan, "remove the folder")
    except FileNotFoundError:
        if storage.exists(output) or storage.holds_files(output):
            raise UserError(
                output, "is not empty and holds no tags", "give another --out"
            ) from None
        return None
    _check_same(output, before, plan)
    return None


def _check_same(output: str, before: TagPlan, now: TagPlan) -> None:
    names = {
        "source_fingerprint": "recordings in the source",
        "model_fingerprint": "weights of the model",
        "top": "--top",
        "threshold": "--threshold",
        "window_s": "--window",
        "hop_s": "--hop",
        "channel": "--channel",
        "all_scores": "--scores",
        "embeddings": "--embeddings",
    }
    for name, what in names.items():
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            values = "" if name.endswith("fingerprint") else f": {old}, not {new}"
            raise UserError(
                output, f"holds tags that were made with other {what}{values}", "give another --out"
            )


def _plan_path(output: str) -> str:
    return storage.join(output, "_work", "plan.json")
