"""Seconds and memory of `prepare` and `train` apart from shards and steps, for any number of clips.

In: a number of clips, and AudioSet's real segment CSVs, whose labels the clips repeat. Steps: make
a manifest and its plan; for every shard, write the part file that a task would leave, and an empty
tar of the right size; then, each in a process of its own:

1. assemble index, ledger and card from them; call `prepare` again, which finds everything complete;
2. open the data set as a rank of a training does, select its clips, make their loader, compute
   the weights of class-balanced sampling, and plan an epoch;
3. draw the balanced order of an epoch alone, with weights from memory.

Out: a table. "Added" is the memory beside that of the imported modules.

    .venv/bin/python benchmarks/assemble_at_scale.py data/audioset/*_segments.csv \
        --class-labels data/audioset/class_labels_indices.csv --clips 20000000
"""

import argparse
import csv
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa

from pipeline.audio.rejects import Reject
from pipeline.dataset.assemble import assemble
from pipeline.dataset.prepare import prepare
from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import SCHEMA, Manifest, from_columns
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import INDEX_SCHEMA, STAGES, Part, TarEntry, part_path, write_part
from pipeline.shards.plan import Plan, make_plan, read_plan, write_plan
from pipeline.shards.settings import PrepareSettings
from pipeline.storage.stored_table import BATCH_ROWS, StoredTable
from trainer.data.clips import select_training_data
from trainer.data.epoch_plan import plan_epoch
from trainer.data.loader import Loader
from trainer.data.sampler import class_balanced_weights, epoch_order
from trainer.data.settings import DataSettings, LoaderSettings

NUM_AUDIOSET = 2_084_320
EVAL_SHARE = 100
"""One clip of so many is for evaluation."""
FRAMES = 998
MELS = 128


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a step took."""

    name: str
    seconds: float
    cpu_s: float
    peak_gb: float
    """Of the process up to the end of the step."""
    added_gb: float
    """Of these, what was not there when the process had imported its modules."""


class Clock:
    """Measures the steps of a process."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._imported_gb = peak_gb()
        self._start()

    def _start(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def step(self, name: str) -> None:
        """End a step."""
        seconds, cpu_s = time.monotonic() - self._wall, time.process_time() - self._cpu
        peak = peak_gb()
        added = peak - self._imported_gb
        self.rows.append(Row(name=name, seconds=seconds, cpu_s=cpu_s, peak_gb=peak, added_gb=added))
        self._start()


def peak_gb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("segments", type=Path, nargs="+", help="AudioSet's segment CSVs")
    parser.add_argument("--class-labels", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=NUM_AUDIOSET, help="clips in the manifest")
    parser.add_argument("--reject-share", type=float, default=0.0, help="share of broken clips")
    parser.add_argument("--ranks", type=int, default=8, help="ranks that share each batch")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{arguments.clips:,} clips, {os.cpu_count()} CPUs, load average {load:.1f}")
    print(f"{'':34}{'seconds':>9}{'CPU s':>9}{'clips/s':>12}{'peak GB':>9}{'added':>7}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        labels = read_labels(arguments.segments, arguments.class_labels)
        manifest, output = f"{folder}/manifest.parquet", f"{folder}/data"
        for step in (
            partial(make_data, manifest, output, labels, arguments.clips, arguments.reject_share),
            partial(time_assembly, manifest, output),
            partial(time_opening, output, arguments.ranks),
            partial(time_order, arguments.clips),
        ):
            for row in in_a_process(step):
                print(
                    f"{row.name:34}{row.seconds:9.1f}{row.cpu_s:9.1f}"
                    f"{arguments.clips / row.seconds:12,.0f}{row.peak_gb:9.2f}{row.added_gb:7.2f}",
                    flush=True,
                )
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


def in_a_process(step: Callable[[], list[Row]]) -> list[Row]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step)


Labels = tuple[list[str], list[list[str]]]
"""The vocabulary, and the labels of each segment."""


def read_labels(segments: list[Path], class_labels: Path) -> Labels:
    """The vocabulary, and the labels of each real segment."""
    with class_labels.open() as file:
        names = {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    lines = [line for path in segments for line in path.read_text().splitlines() if line[0] != "#"]
    rows = csv.reader(lines, skipinitialspace=True)
    return [*names.values()], [[names[mid] for mid in row[3].split(",")] for row in rows]


def make_data(
    path: str, output: str, labels: Labels, num_clips: int, reject_share: float
) -> list[Row]:
    """Write the manifest, the plan, and the part files and tars that the tasks would leave."""
    write_manifest(path, make_manifest(labels, num_clips))
    clock = Clock()
    manifest = read_manifest(path)
    clock.step("manifest read")
    job = BuildJob(output=output, settings=PrepareSettings())
    plan = make_plan(manifest, job.settings)
    clock.step(f"plan of {len(plan.specs):,} shards")
    write_plan(plan, job.work, manifest)
    clock.step("plan written")
    write_parts(plan, output, reject_share)
    return clock.rows


def time_assembly(path: str, output: str) -> list[Row]:
    clock = Clock()
    manifest, job = read_manifest(path), BuildJob(output=output, settings=PrepareSettings())
    plan = read_plan(job.work)
    assert plan is not None
    clock.step("manifest and plan read")
    assemble(plan, manifest, job, built=set(), max_reject_share=1.0, elapsed_s=lambda: 1.0)
    clock.step("index, ledger and card")
    again = prepare(manifest, output, job.settings, session=nullcontext(), max_reject_share=1.0)
    assert again is None
    clock.step("prepare again, all complete")
    return clock.rows


def time_opening(output: str, num_ranks: int) -> list[Row]:
    clock = Clock()
    dataset = open_dataset(output)
    clock.step("data set opened")
    data = select_training_data(dataset, DataSettings())
    clips = data.train
    clock.step(f"{len(clips):,} + {len(data.evaluation):,} clips selected")
    loader = Loader(clips, LoaderSettings(), num_frames=1024)
    clock.step("loader")
    weights = class_balanced_weights(clips.label_indices, len(clips.labels))
    clock.step("weights of balanced sampling")
    plan = plan_epoch(
        len(clips), weights, seed=1, epoch=1, batch_size=48, rank=0, world_size=num_ranks
    )
    clock.step("order and partners of an epoch")
    assert plan.num_steps == -(-len(clips) // 48)
    assert len(loader.padded_frames) == len(plan.order)
    return clock.rows


def time_order(num_clips: int) -> list[Row]:
    weights = np.resize(1.0 + np.arange(1009), num_clips)
    clock = Clock()
    order = epoch_order(seed=1, epoch=1, num_clips=num_clips, weights=weights)
    clock.step("balanced order alone")
    assert len(order) == num_clips
    return clock.rows


def make_manifest(labels: Labels, num_clips: int) -> Manifest:
    """Clips with ids and paths like AudioSet's."""
    vocabulary, by_segment = labels
    clips = StoredTable(SCHEMA)
    for start in range(0, num_clips, BATCH_ROWS):
        numbers = range(start, min(start + BATCH_ROWS, num_clips))
        ids = [f"{number:011d}" for number in numbers]
        columns = {
            "id": ids,
            "uri": [f"s3://sounds/audioset/unbalanced/{clip_id}.flac" for clip_id in ids],
            "labels": [by_segment[number % len(by_segment)] for number in numbers],
            "split": ["train" if number % EVAL_SHARE else "eval" for number in numbers],
        }
        clips.append(from_columns(columns, vocabulary).clips)
    return Manifest(clips=clips, labels=tuple(vocabulary))


def write_parts(plan: Plan, output: str, reject_share: float) -> None:
    """Write the part files and tars that the tasks would have left."""
    (Path(output) / "shards").mkdir()
    start = 0
    for spec in plan.specs:
        clips = plan.clips.slice(start, spec.num_clips)
        start += spec.num_clips
        num_rejects = round(reject_share * spec.num_clips)
        broken, clips = clips.slice(0, num_rejects), clips.slice(num_rejects)
        tar = TarEntry(
            name=f"shards/{spec.name}.tar",
            num_clips=clips.num_rows,
            size_bytes=clips.num_rows * 257_536 + 10_240,
            sha256="0" * 64,
        )
        with (Path(output) / tar.name).open("wb") as file:
            file.truncate(tar.size_bytes)
        part = Part(
            fingerprint=spec.fingerprint,
            tar=tar,
            index=_index(clips, tar.name),
            rejects=tuple(
                Reject(**row, stage="decode", reason="cut short or damaged")
                for row in broken.select(["id", "uri"]).to_pylist()
            ),
            stages_s=dict.fromkeys(STAGES, 1.0),
            fetched_bytes=180_000 * spec.num_clips,
            other_rates_hz={},
        )
        write_part(part_path(output, spec.name), part)


def _index(clips: pa.Table, tar_name: str) -> pa.Table:
    num_clips = clips.num_rows
    random = np.random.default_rng(crc32(tar_name.encode()))
    values = {
        "shard": pa.repeat(pa.scalar(tar_name), num_clips),
        "offset_bytes": pa.array(np.arange(num_clips) * 257_536),
        "size_bytes": pa.repeat(pa.scalar(FRAMES * MELS * 2), num_clips),
        "xxh3": pa.array(random.integers(2**64, size=num_clips, dtype=np.uint64)),
        "frames": pa.repeat(pa.scalar(FRAMES), num_clips),
        "duration_s": pa.repeat(pa.scalar(10.0), num_clips),
        "level_dbfs": pa.array(random.normal(-20, 5, num_clips)),
        "file_level_dbfs": pa.array(random.normal(-20, 5, num_clips)),
        "repaired": pa.nulls(num_clips),
        "fbank_sum": pa.array(random.normal(-5e5, 1e5, num_clips)),
        "fbank_sumsq": pa.array(random.normal(4.5e6, 1e5, num_clips)),
    }
    columns = [
        (values[field.name] if field.name in values else clips[field.name]).cast(field.type)
        for field in INDEX_SCHEMA
    ]
    return pa.table(columns, schema=INDEX_SCHEMA)


if __name__ == "__main__":
    main()
