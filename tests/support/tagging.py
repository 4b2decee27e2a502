"""A small model that was trained on real audio files, to tag others with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.manifest.manifest import Clip
from pipeline.shards.settings import PrepareSettings, Store
from tests.support.audio import Samples, encode, noise, tone
from tests.support.preparation import preparation
from tests.support.prepared import tiny_recipe
from trainer.training.loop import train
from trainer.training.world import World

RATE_HZ = 16_000
PITCHES_HZ = {"rain": 300.0, "dog": 1_200.0, "never": 4_000.0}
"""The sound of each class."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run, its data set, and the audio files of its clips."""

    run: str
    dataset: PreparedDataset
    clips: list[Clip]


def sound(label: str, duration_s: float, *, seed: int = 0, rate_hz: int = RATE_HZ) -> Samples:
    """A tone of a class in noise."""
    hz = PITCHES_HZ[label] * (1 + 0.02 * (seed % 5))
    return noise(duration_s, rate_hz, seed=seed, level=0.01) + tone(duration_s, rate_hz, hz=hz)


def train_on_audio(
    folder: Path, *, store: Store = "fbank", seed: int = 0, **changes: dict[str, Any]
) -> Trained:
    """Write clips of 0.3 to 0.64 s, prepare them and train on them, without Ray."""
    clips = write_sounds(folder / "audio", 36)
    prepared = preparation(
        folder / "dataset", clips, PrepareSettings(clips_per_shard=12, store=store)
    )
    prepared.build()
    prepared.finish()
    dataset = open_dataset(str(folder / "dataset"))
    recipe = tiny_recipe(**{"train": {"epochs": 3, "seed": seed}, **changes})
    run = str(folder / f"run-{seed}")
    train(recipe, dataset, run, world=World())
    return Trained(run=run, dataset=dataset, clips=clips)


def write_sounds(folder: Path, num_clips: int) -> list[Clip]:
    """Files of the classes in turn, the last third of them in the split `eval`."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(num_clips):
        label = list(PITCHES_HZ)[number % len(PITCHES_HZ)]
        split = "train" if number < 2 * num_clips // 3 else "eval"
        path = folder / f"{split}-{number:03d}.wav"
        duration_s = 0.3 + 0.34 * (number % 7) / 6
        path.write_bytes(encode(sound(label, duration_s, seed=number)))
        clips.append(
            Clip(
                id=path.name,
                uri=str(path),
                labels=(label,),
                split=split,
                fold=number % 2 + 1 if split == "train" else 0,
            )
        )
    return clips


def write_recording(path: Path, events: Sequence[tuple[str, float]], **encoding: Any) -> None:
    """Sounds one after the other, each of a class and a length in seconds; `-` is near silence."""
    parts = [
        noise(duration_s, RATE_HZ, seed=number, level=1e-4)
        if label == "-"
        else sound(label, duration_s, seed=number)
        for number, (label, duration_s) in enumerate(events)
    ]
    path.write_bytes(encode(np.concatenate(parts), **encoding))
