"""Prepared data sets of synthetic sounds for training benchmarks, made without Ray.

Steps: synthesise audio files; build the shards of each data set in parallel processes, with the
functions that `prepare` calls. Out: in a local folder

    fbank/   10 s clips, stored as fbanks: a few files repeated under other ids
    audio/   the same clips, stored as 16-bit FLAC
    sounds/  5 s clips of ten classes, all different, stored as FLAC: something to learn

    python benchmarks/prepared_sets.py FOLDER
"""

import argparse
import multiprocessing
import multiprocessing.pool
import os
import time
from functools import partial
from pathlib import Path

from pipeline.dataset.assemble import assemble
from pipeline.manifest.layouts.csv_table import read
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.manifest.synthetic import SyntheticSettings, write_synthetic
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.plan import make_plan, write_plan
from pipeline.shards.settings import PrepareSettings, Store

STORES: tuple[Store, ...] = ("fbank", "audio")
NUM_FILES = 48
"""Audio files that the clips of `fbank` and `audio` repeat."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=4096, help="training clips of fbank and audio")
    parser.add_argument("--eval-clips", type=int, default=1024, help="their evaluation clips")
    parser.add_argument("--clip-s", type=float, default=10.0, help="seconds of each")
    parser.add_argument("--sounds", type=int, default=360, help="training clips of sounds")
    parser.add_argument("--sound-s", type=float, default=5.0, help="seconds of each")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    start_s = time.monotonic()
    files = synthetic(arguments.folder / "files", NUM_FILES, arguments.clip_s)
    repeated = repeat(files, {"train": arguments.clips, "eval": arguments.eval_clips})
    sounds = synthetic(arguments.folder / "sound-files", arguments.sounds, arguments.sound_s)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for store in STORES:
            prepare(repeated, arguments.folder / store, store, pool)
        prepare(sounds, arguments.folder / "sounds", "audio", pool)
    print(f"{arguments.folder}: prepared in {time.monotonic() - start_s:.1f} s", flush=True)


def synthetic(folder: Path, num_train: int, duration_s: float) -> Manifest:
    """Sounds of ten classes; the split `eval` gets a quarter as many, and at least ten."""
    settings = SyntheticSettings(
        num_train=num_train,
        num_eval=max(10, num_train // 4),
        num_broken=0,
        min_duration_s=duration_s,
        max_duration_s=duration_s,
    )
    write_synthetic(folder, settings)
    return read(str(folder / "clips.csv"), SourceOptions())


def repeat(manifest: Manifest, num_clips: dict[str, int]) -> Manifest:
    """`num_clips` clips of each split, which repeat the clips of the manifest."""
    rows = manifest.clips.to_pylist()
    clips = [
        Clip(
            id=f"{split}-{number:06d}",
            uri=rows[number % len(rows)]["uri"],
            labels=tuple(rows[number % len(rows)]["labels"]),
            split=split,
        )
        for split, count in num_clips.items()
        for number in range(count)
    ]
    return from_clips(clips, manifest.labels)


def prepare(
    manifest: Manifest, output: Path, store: Store, pool: multiprocessing.pool.Pool
) -> None:
    """Write a prepared data set, as the step `prepare` does."""
    start_s = time.monotonic()
    job = BuildJob(output=str(output), settings=PrepareSettings(store=store, clips_per_shard=256))
    plan = make_plan(manifest, job.settings)
    write_plan(plan, job.work, manifest)
    pool.map(partial(build_shard, job=job), plan.specs, chunksize=1)
    assemble(
        plan,
        manifest,
        job,
        built={spec.name for spec in plan.specs},
        max_reject_share=0.0,
        elapsed_s=lambda: time.monotonic() - start_s,
    )


if __name__ == "__main__":
    main()
