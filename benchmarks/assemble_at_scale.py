"""Seconds and memory of `prepare` apart from building shards, for as many clips as AudioSet has.

In: a number of clips. Steps: make a manifest and its plan; for every shard, write the part file
that a task would leave, and an empty tar of the right size; assemble index, ledger and card from
them; call `prepare` again, which finds everything complete. Out: a table.

    .venv/bin/python benchmarks/assemble_at_scale.py --clips 2084320
"""

import argparse
import os
import resource
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.dataset.assemble import assemble
from pipeline.dataset.prepare import prepare
from pipeline.manifest.manifest import Manifest, from_columns
from pipeline.shards.build import BuildJob
from pipeline.shards.parts import INDEX_SCHEMA, STAGES, Part, TarEntry, part_path, write_part
from pipeline.shards.plan import Plan, make_plan, write_plan
from pipeline.shards.settings import PrepareSettings

NUM_LABELS = 527
FRAMES = 998
MELS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2_084_320, help="clips in the manifest")
    arguments = parser.parse_args()
    print(f"{arguments.clips:,} clips, {os.cpu_count()} CPUs")
    print(f"{'':32}{'seconds':>10}{'peak MB':>10}")
    with tempfile.TemporaryDirectory() as output:
        manifest = make_manifest(arguments.clips)
        settings = PrepareSettings()
        job = BuildJob(output=output, settings=settings)
        start = time.monotonic()
        plan = make_plan(manifest, settings)
        start = show(f"plan of {len(plan.specs):,} shards", start)
        write_plan(plan, job.work, manifest)
        show("plan written", start)
        write_parts(plan, output)
        start = time.monotonic()
        assemble(plan, manifest, job, built=set(), max_reject_share=0.0, elapsed_s=lambda: 1.0)
        start = show("index, ledger and card", start)
        again = prepare(manifest, output, settings, session=nullcontext(), max_reject_share=0.0)
        show("prepare again, all complete", start)
        assert again is None


def show(name: str, start: float) -> float:
    """Print a row; returns the time now."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{name:32}{time.monotonic() - start:10.1f}{peak_mb:10.0f}", flush=True)
    return time.monotonic()


def make_manifest(num_clips: int) -> Manifest:
    """Clips with two labels each, with ids and paths like AudioSet's."""
    labels = [f"label {number}" for number in range(NUM_LABELS)]
    codes = np.random.default_rng(0).integers(0, NUM_LABELS, 2 * num_clips, dtype=np.int32)
    texts = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(labels)).cast(pa.string())
    offsets = pa.array(np.arange(0, 2 * num_clips + 1, 2, dtype=np.int32))
    ids = [f"{number:011d}" for number in range(num_clips)]
    columns = {
        "id": ids,
        "uri": [f"s3://sounds/audioset/unbalanced/{clip_id}.flac" for clip_id in ids],
        "labels": pa.ListArray.from_arrays(offsets, texts),
        "split": pa.repeat(pa.scalar("unbalanced"), num_clips),
    }
    return from_columns(columns, labels)


def write_parts(plan: Plan, output: str) -> None:
    """Write the part files and tars that the tasks would have left."""
    (Path(output) / "shards").mkdir()
    start = 0
    for spec in plan.specs:
        clips = plan.clips.slice(start, spec.num_clips)
        start += spec.num_clips
        tar = TarEntry(
            name=f"shards/{spec.name}.tar",
            num_clips=spec.num_clips,
            size_bytes=spec.num_clips * 257_536 + 10_240,
            sha256="0" * 64,
        )
        with (Path(output) / tar.name).open("wb") as file:
            file.truncate(tar.size_bytes)
        part = Part(
            fingerprint=spec.fingerprint,
            tar=tar,
            index=_index(clips, tar.name),
            rejects=(),
            stages_s=dict.fromkeys(STAGES, 1.0),
            fetched_bytes=180_000 * spec.num_clips,
        )
        write_part(part_path(output, spec.name), part)


def _index(clips: pa.Table, tar_name: str) -> pa.Table:
    num_clips = clips.num_rows
    constants = {
        "shard": tar_name,
        "size_bytes": FRAMES * MELS * 2,
        "frames": FRAMES,
        "duration_s": 10.0,
        "level_dbfs": -20.0,
        "fbank_sum": -500_000.0,
        "fbank_sumsq": 4_500_000.0,
    }
    columns = {name: pa.repeat(pa.scalar(value), num_clips) for name, value in constants.items()}
    columns["offset_bytes"] = pa.array(np.arange(num_clips) * 257_536)
    checksums = np.random.default_rng(0).integers(2**64, size=num_clips, dtype=np.uint64)
    columns["xxh3"] = pa.array(checksums)
    for name in ("id", "uri", "split", "fold", "labels", "common"):
        columns[name] = clips[name]
    ordered = [columns[name].cast(INDEX_SCHEMA.field(name).type) for name in INDEX_SCHEMA.names]
    return pa.table(ordered, schema=INDEX_SCHEMA)


if __name__ == "__main__":
    main()
