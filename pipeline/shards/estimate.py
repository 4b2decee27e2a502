"""Estimate of what preparing a manifest costs, measured on a random sample of its files.

In: a plan and settings. Steps: fetch, decode and compute fbanks of the sample in
one thread of this process. Out: clips, shards, bytes and core-hours. Nothing is written.
"""

import io
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.audio.decode import decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.errors import UserError
from pipeline.fbank import fbank
from pipeline.manifest.manifest import to_clips
from pipeline.shards.build import Stages, build_clip
from pipeline.shards.fetch import fetch_ahead, fetch_reject
from pipeline.shards.parts import STAGES
from pipeline.shards.plan import Plan
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.tar import ShardWriter


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Totals for the whole manifest, scaled up from a sample."""

    num_clips: int
    num_shards: int
    num_sampled: int
    audio_h: float
    read_bytes: int
    written_bytes: int
    core_h: float
    """Hours of computing on one core like this machine's, without waiting for the storage."""
    wait_h: float
    """Hours of waiting if files are read one after another; reading ahead hides them."""
    sampled_rejects: dict[str, int]
    """Number of sampled clips that cannot be used, by reason."""


def estimate(plan: Plan, settings: PrepareSettings, num_sampled: int) -> Estimate:
    """Measure `num_sampled` random clips of a plan, of which no shard is built yet, and scale up.

    Raises:
        UserError: the storage does not answer, or no clip of the sample can be used.
    """
    torch.set_num_threads(1)
    num_clips = plan.clips.num_rows
    num_sampled = min(num_sampled, num_clips)
    row_indices = np.random.default_rng(0).choice(num_clips, num_sampled, replace=False)
    clips = to_clips(plan.clips.take(np.sort(row_indices)))
    clock = Stages(dict.fromkeys(STAGES, 0.0))
    writer = ShardWriter(io.BytesIO())
    audio_s, read_bytes = 0.0, 0
    rejects: Counter[str] = Counter()
    # The first call makes the constants.
    fbank(torch.zeros(settings.fbank.sample_rate_hz), settings.fbank)
    with closing(fetch_ahead(clips, 1, settings.decode.max_file_bytes)) as contents:
        for clip in clips:
            with clock.stage("fetch"):
                content = next(contents)
            try:
                if isinstance(content, Exception):
                    raise fetch_reject(content, clip.uri) from content
                read_bytes += len(content)
                row = build_clip(clip, content, decode_audio, writer, settings, clock)
                audio_s += row["duration_s"]
            except RejectError as error:
                rejects[f"{error.stage}: {error.reason}"] += 1
    if writer.num_clips == 0:
        raise UserError(
            "",
            f"none of {num_sampled} random clips can be used",
            "most frequent: "
            f"{'; '.join((f'{reason} ({count})' for reason, count in rejects.most_common(3)))}",
        )
    writer.finish()
    scale = num_clips / num_sampled
    wait_s = clock.seconds.pop("fetch")
    return Estimate(
        num_clips=num_clips,
        num_shards=len(plan.specs),
        num_sampled=num_sampled,
        audio_h=scale * audio_s / 3600,
        read_bytes=round(scale * read_bytes),
        written_bytes=round(scale * writer.size_bytes),
        core_h=scale * sum(clock.seconds.values()) / 3600,
        wait_h=scale * wait_s / 3600,
        sampled_rejects=dict(rejects.most_common()),
    )
