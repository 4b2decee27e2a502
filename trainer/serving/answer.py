"""A request to its answer, beside the model.

In: the bytes of an audio file. Steps: decode; cut windows; score each, in batches with those of
other requests; maximum and mean over the windows. Out: JSON with the columns of `tag`.

N samples, C classes.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.audio.decode import Decoded
from pipeline.audio.rejects import TOO_LONG, RejectError
from pipeline.fbank import fbank
from pipeline.pages.spectrogram import spectrogram_png
from trainer.serving.decoders import Decoders
from trainer.serving.refusal import RefusedError
from trainer.serving.reply import Reply, error_json, to_json
from trainer.serving.request import TagRequest
from trainer.tagging.job import window_plan
from trainer.tagging.model import Tagger
from trainer.tagging.rows import top_tags
from trainer.tagging.settings import KeepSettings
from trainer.tagging.windows import Samples, Window, WindowPlan, cut_windows

Scores = NDArray[np.float32]
ScoreWindow = Callable[[Samples], Awaitable[Scores]]
"""The scores `[C]` of one window `[N]`."""

_DRAWN_FRAMES = 4_096
"""Frames of a picture that are computed at once, which take tens of MB."""


class Answers:
    """Answers requests one by one or several at a time.

    Args:
        tagger: the model.
        decoders: make waveforms.
        score: scores a window; calls that wait at the same time may share a batch.
        max_windows: most windows of a request.
        in_turn: windows of one request that are handed to `score` at once, so that a long
            recording leaves room for others.
    """

    def __init__(
        self,
        tagger: Tagger,
        decoders: Decoders,
        score: ScoreWindow,
        *,
        max_windows: int,
        in_turn: int,
    ) -> None:
        self._tagger, self._decoders, self._score = tagger, decoders, score
        self._max_windows, self._in_turn = max_windows, in_turn

    async def answer(self, request: TagRequest) -> Reply:
        """The tags, or why there are none."""
        try:
            return Reply(status=200, body=to_json(await self._answer(request)))
        except RefusedError as refusal:
            return Reply(status=refusal.status, body=error_json(refusal.reason))
        except RejectError as reject:
            is_long = reject.reason.startswith(TOO_LONG)
            return Reply(status=413 if is_long else 422, body=error_json(reject.reason))

    async def _answer(self, request: TagRequest) -> dict[str, Any]:
        settings = request.settings
        plan = window_plan(self._tagger, settings)
        decoded = await self._decoders.decode(request.audio, settings.channel)
        windows = self._cut(decoded, plan)
        scores = await self._score_all([window.samples for window in windows])
        answer = self._tags(windows, scores, decoded, settings.keep)
        if request.spectrogram:
            picture = await asyncio.to_thread(self._draw, decoded.samples)
            answer["spectrogram"] = "data:image/png;base64," + base64.b64encode(picture).decode()
        return answer

    def _cut(self, decoded: Decoded, plan: WindowPlan) -> list[Window]:
        settings = self._tagger.fbank
        if settings.num_frames(len(decoded.samples)) < 1:
            raise RejectError("fbank", f"shorter than one {settings.frame_length_ms} ms frame")
        num = len(plan.starts(len(decoded.samples)))
        if num > self._max_windows:
            raise RefusedError(
                413, f"{num:,} windows, at most {self._max_windows:,}; ask for a longer hop"
            )
        return list(cut_windows([decoded.samples], plan))

    async def _score_all(self, waveforms: Sequence[Samples]) -> Scores:
        """`[B, C]`."""
        rows: list[Scores] = []
        for start in range(0, len(waveforms), self._in_turn):
            batch = waveforms[start : start + self._in_turn]
            rows += await asyncio.gather(*map(self._score, batch))
        return np.stack(rows)

    def _tags(
        self, windows: Sequence[Window], scores: Scores, decoded: Decoded, keep: KeepSettings
    ) -> dict[str, Any]:
        labels, rate_hz = self._tagger.labels, self._tagger.fbank.sample_rate_hz
        mean = (scores.sum(axis=0, dtype=np.float64) / len(scores)).astype(np.float32)
        of_recording = {
            f"{name}_{key}": value
            for name, values in (("max", scores.max(axis=0)), ("mean", mean))
            for key, value in top_tags(values, labels, keep).items()
        }
        return {
            "duration_s": len(decoded.samples) / rate_hz,
            "file_rate_hz": decoded.file_rate_hz,
            "num_windows": len(windows),
            # A recording with a fault is refused. The key is there as in `tag`.
            "fault": None,
            **of_recording,
            "windows": [
                {
                    "start_s": window.start / rate_hz,
                    "end_s": window.end / rate_hz,
                    **top_tags(row, labels, keep),
                }
                for window, row in zip(windows, scores, strict=True)
            ],
        }

    def _draw(self, samples: Samples) -> bytes:
        """A PNG of the whole recording, on the scale of the model's data set."""
        settings = self._tagger.fbank
        num_frames = int(settings.num_frames(len(samples)))
        parts = []
        for first in range(0, num_frames, _DRAWN_FRAMES):
            num = min(_DRAWN_FRAMES, num_frames - first)
            part = samples[first * settings.frame_shift :][: settings.samples_for(num)]
            parts.append(fbank(torch.from_numpy(part), settings).numpy())
        member = self._tagger.members[0]
        low, high = member.mean - 2 * member.std, member.mean + 2.5 * member.std
        return spectrogram_png(np.concatenate(parts), low=low, high=high)
