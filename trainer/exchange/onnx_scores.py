"""What quantisation costs: mAP of a model in ONNX and of its 8-bit copy, on the same clips."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data.augment import raw_log_mel
from trainer.data.clips import ClipSet
from trainer.data.loader import Loader
from trainer.exchange.onnx_graph import LOG_MEL
from trainer.exchange.trained_model import TrainedModel
from trainer.scores.metrics import evaluate_scores

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisationCost:
    """mAP of both models; None if no clip has a label."""

    clips_name: str
    num_clips: int
    float32: float | None
    int8: float | None


def quantisation_cost(
    trained: TrainedModel, float32: "ModelProto", int8: "ModelProto", clips: ClipSet
) -> QuantisationCost:
    """Score clips with both models, which take raw log-mels, on the CPU.

    Raises:
        UserError: a clip's shard is missing or damaged.
    """
    targets = clips.targets(np.arange(len(clips)))
    values = [
        evaluate_scores(targets, _scores(trained, model, clips), clips.labels).mAP
        for model in (float32, int8)
    ]
    return QuantisationCost(
        clips_name=clips.name, num_clips=len(clips), float32=values[0], int8=values[1]
    )


def _scores(trained: TrainedModel, model: "ModelProto", clips: ClipSet) -> NDArray[np.float32]:
    """`[N, C]` of the clips, padded as in evaluation."""
    from onnxruntime import InferenceSession

    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    recipe = trained.recipe
    loader = Loader(
        clips,
        recipe.loader,
        num_frames=recipe.model.num_frames,
        bucket_frames=recipe.sampler.bucket_frames,
    )
    scores = np.empty((len(clips), len(clips.labels)), dtype=np.float32)
    # One at a time: the scales of 8-bit inputs depend on all clips of a batch.
    for batch in loader.evaluation_batches(rank=0, world_size=1, batch_size=1):
        x = raw_log_mel(batch.x, batch.lengths, None, batch.audio_fbank).numpy()
        scores[batch.indices] = session.run(None, {LOG_MEL: x})[0]
    return scores
