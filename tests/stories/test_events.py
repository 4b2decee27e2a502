"""Clips of ESC-10 joined at known times: `tag` finds from when to when each sounds."""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.layouts.read import read_source
from pipeline.shards.settings import PrepareSettings
from ray_job import main
from tests.support.audio import Samples, noise
from tests.support.steps import PROJECT
from tests.support.without_ray import prepare
from trainer.recipe.parse import load_recipe
from trainer.scores.predictions import read_metrics
from trainer.tagging.assemble import WINDOWS, read_card
from trainer.tagging.events import Event, events_of
from trainer.training.loop import train
from trainer.training.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

RATE_HZ, CLIP_S = 44_100, 5.0
HELD_OUT = 1
PAUSE = "pause"
"""The class of what lies between the clips, without which a window there would get another."""
NUM_PAUSES = 40
NUM_STRETCHES = 4
"""The clips of 5 s are cut into so many, to train a model of short windows."""
SETTINGS = (
    "model.num_frames=128",
    "augment.frequency_mask=24",
    "augment.time_mask=24",
    "train.epochs=14",
    "schedule.decay_after_epochs=[10, 12]",
)
WELL_KNOWN_AP = 0.98
CLIPS_PER_RECORDING = 4
PAUSE_S = (6.0, 9.0)
"""More than a window, so that each clip is an event."""
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A clip, or a part of a recording."""

    label: str
    start_s: float
    end_s: float


def write_data(esc10: Path, folder: Path) -> dict[str, list[Path]]:
    """A table of ESC-10 and pauses; returns the held-out clips of each class."""
    with (esc10 / "meta" / "esc50.csv").open(encoding="utf-8") as file:
        rows = [
            (row["filename"], row["category"], int(row["fold"])) for row in csv.DictReader(file)
        ]
    # ESC-10 is listed by its WAV names, and stored as OGG.
    paths = {path.stem: path for path in (esc10 / "audio").iterdir()}
    clips = [(paths[Path(name).stem], label, fold) for name, label, fold in rows]
    held_out: dict[str, list[Path]] = {}
    for path, label, fold in clips:
        if fold == HELD_OUT:
            held_out.setdefault(label, []).append(path)
    for number in range(NUM_PAUSES):
        path = folder / f"pause-{number}.wav"
        soundfile.write(path, pause(CLIP_S, number), RATE_HZ)
        clips.append((path, PAUSE, number % 5 + 1))
    length_s = CLIP_S / NUM_STRETCHES
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "path", "labels", "fold", "start_s", "end_s"))
        for clip in clips:
            for number in range(NUM_STRETCHES):
                start_s = number * length_s
                writer.writerow((f"{clip[0].stem}-{number}", *clip, start_s, start_s + length_s))
    return held_out


def pause(duration_s: float, seed: int) -> Samples:
    return noise(duration_s, RATE_HZ, seed=seed, level=10 ** -(3 + seed % 3 / 2))


def write_recordings(folder: Path, clips: dict[str, list[Path]]) -> dict[str, list[Sound]]:
    """Recordings of the clips of some classes, in random order; returns what is in each."""
    rng = random.Random(0)
    order = [(path, label) for label, paths in clips.items() for path in paths]
    rng.shuffle(order)
    truth = {}
    for first in range(0, len(order), CLIPS_PER_RECORDING):
        seed = first + 1000
        parts, sounds = [pause(rng.uniform(*PAUSE_S), seed)], []
        for path, label in order[first : first + CLIPS_PER_RECORDING]:
            samples, rate_hz = soundfile.read(path, dtype="float32")
            assert rate_hz == RATE_HZ
            start_s = sum(map(len, parts)) / RATE_HZ
            end_s = start_s + len(samples) / RATE_HZ
            sounds.append(Sound(label=label, start_s=start_s, end_s=end_s))
            parts += [samples, pause(rng.uniform(*PAUSE_S), seed)]
        name = f"{first // CLIPS_PER_RECORDING:03d}.flac"
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / name, np.concatenate(parts), RATE_HZ)
        truth[name] = sounds
    return truth


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found of some classes."""

    num_sounds: int
    num_events: int
    num_agreeing: int
    """Sounds with an event that starts and ends when they do."""

    @property
    def recall(self) -> float:
        return self.num_agreeing / self.num_sounds

    @property
    def precision(self) -> float:
        return self.num_agreeing / max(1, self.num_events)


def compare(
    events: dict[str, list[Event]],
    truth: dict[str, list[Sound]],
    labels: set[str],
    within_s: float,
) -> Found:
    """Events of some classes beside the sounds of the same."""

    def agrees(event: Event, sound: Sound) -> bool:
        times = (event.start_s - sound.start_s, event.end_s - sound.end_s)
        return event.label == sound.label and max(map(abs, times)) <= within_s

    sounds = [(name, one) for name, some in truth.items() for one in some if one.label in labels]
    return Found(
        num_sounds=len(sounds),
        num_events=sum(event.label in labels for some in events.values() for event in some),
        num_agreeing=sum(any(agrees(event, one) for event in events[name]) for name, one in sounds),
    )


def test_events_start_and_end_within_a_hop(esc10: Path, tmp_path: Path) -> None:
    held_out = write_data(esc10, tmp_path)
    prepare(read_source(f"{tmp_path}/clips.csv"), tmp_path / "data", PrepareSettings())
    run = f"{tmp_path}/run"
    recipe = load_recipe(str(PROJECT / "recipes" / "esc10-scratch.toml"), SETTINGS)
    train(recipe, open_dataset(f"{tmp_path}/data"), run, world=World())
    truth = write_recordings(tmp_path / "recordings", held_out)

    options = ["--top", "1", "--threshold", str(THRESHOLD)]
    command = ["tag", run, f"{tmp_path}/recordings", "--out", f"{tmp_path}/tags", *options]
    assert main(command) == 0
    card = read_card(f"{tmp_path}/tags")
    assert card is not None
    windows = pq.ParquetFile(tmp_path / "tags" / WINDOWS)
    events = dict(events_of(windows.iter_batches()))

    metrics = read_metrics(run, f"train-fold{HELD_OUT}").metrics
    print(f"accuracy {metrics.accuracy:.4f}, mAP {metrics.mAP:.4f}, hop {card.plan.hop_s} s")
    well_known = set()
    for one in sorted(metrics.per_class, key=lambda one: -(one.AP or 0)):
        if one.label != PAUSE:
            print(
                f"{one.label} AP {one.AP:.3f}", compare(events, truth, {one.label}, card.plan.hop_s)
            )
            if (one.AP or 0) >= WELL_KNOWN_AP:
                well_known.add(one.label)
    found = compare(events, truth, well_known, card.plan.hop_s)
    print(f"{sorted(well_known)}: precision {found.precision:.3f}, recall {found.recall:.3f}")
    assert well_known
    assert found.recall >= 0.75
    assert found.precision >= 0.75
