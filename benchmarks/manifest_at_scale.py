"""Seconds and peak memory of `manifest` and of the plan of `prepare` for all of AudioSet, or more.

In: AudioSet's real segment CSVs. Steps: repeat their lines with other ids up to the requested
number of segments; list a file for most of them: from batches in a Parquet file, with `--files`
from real files in a folder, with `--s3` from a local S3 server, a thousand per page; write the
manifest; read it, plan its shards and write the plan; then as after a kill, with a first shard in
place: read that plan and compare it with the manifest. Each step runs in a separate process. Out: a
table.

    .venv/bin/python benchmarks/manifest_at_scale.py data/audioset/*_segments.csv \
        --class-labels data/audioset/class_labels_indices.csv --clips 20000000
"""

import argparse
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from s3_listing import serve_listing

from pipeline import storage
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.layouts import audioset
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.warnings.find import manifest_warnings

NUM_AUDIOSET = 2_084_320
FILES_PER_TEN_SEGMENTS = 9
BATCH_SIZE = 10_000
FILES_PER_FOLDER = 10_000

Result = tuple[int, float, float, float]
"""Clips, seconds, seconds of CPU time, peak memory in GB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("segments", type=Path, nargs="+", help="AudioSet's segment CSVs")
    parser.add_argument("--class-labels", required=True, help="class_labels_indices.csv")
    parser.add_argument("--clips", type=int, default=NUM_AUDIOSET, help="segments to list")
    listed = parser.add_mutually_exclusive_group()
    listed.add_argument("--files", action="store_true", help="create real files and list them")
    listed.add_argument("--s3", action="store_true", help="list them from a local S3 server")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        segments, manifest = Path(folder) / "segments.csv", Path(folder) / "manifest.parquet"
        audio = "s3://bucket/audio" if arguments.s3 else f"{folder}/audio"
        stored = f"{folder}/listing.parquet"
        write_segments(arguments.segments, segments, stored, arguments.clips, audio)
        listing = None
        if arguments.files:
            make_files(stored)
        elif arguments.s3:
            paths = pq.read_table(stored)["path"]
            keys = pa.table({"key": pc.replace_substring(paths, "s3://bucket/", "")})
            pq.write_table(keys, f"{folder}/keys.parquet")
            stack.enter_context(serve_listing(f"{folder}/keys.parquet"))
        else:
            listing = stored
        options = SourceOptions(
            segments=(f"train={segments}",), class_labels=arguments.class_labels
        )
        steps = {
            "listing": partial(time_listing, audio, listing),
            "manifest": partial(time_manifest, audio, options, listing, str(manifest)),
            "read and plan": partial(time_plan, str(manifest), f"{folder}/dataset"),
            "plan, resumed": partial(time_resumed_plan, str(manifest), f"{folder}/dataset"),
        }
        print(f"{arguments.clips:,} segments, {describe_machine()}")
        print(f"{'':16}{'clips':>12}{'seconds':>10}{'CPU s':>10}{'clips/s':>10}{'peak GB':>10}")
        for name, step in steps.items():
            num_clips, seconds, cpu_s, peak_gb = measure(step)
            rate = num_clips / seconds
            print(
                f"{name:16}{num_clips:12,}{seconds:10.1f}{cpu_s:10.1f}{rate:10,.0f}{peak_gb:10.2f}",
                flush=True,
            )


def write_segments(
    sources: list[Path], target: Path, listing: str, num_clips: int, audio: str
) -> None:
    """Write a CSV of `num_clips` segments, and the paths of the files for them as a table."""
    lines = [line for path in sources for line in path.read_text().splitlines() if line[0] != "#"]
    schema = pa.schema([("path", pa.string()), ("size_bytes", pa.int64())])
    with target.open("w") as file, pq.ParquetWriter(listing, schema) as writer:
        for start in range(0, num_clips, BATCH_SIZE):
            paths = []
            for number in range(start, min(start + BATCH_SIZE, num_clips)):
                digest = blake2b(str(number).encode(), digest_size=9).digest()
                clip_id = urlsafe_b64encode(digest).decode()[:11]
                file.write(clip_id + lines[number % len(lines)][11:] + "\n")
                if number % 10 < FILES_PER_TEN_SEGMENTS:
                    paths.append(f"{audio}/{number // FILES_PER_FOLDER:04d}/Y{clip_id}.flac")
            writer.write_table(pa.table([paths, [1] * len(paths)], schema=schema))


def make_files(listing: str) -> None:
    """Create files of one byte, which take no disk block."""
    for batch in stored_batches(listing, ""):
        for path in batch["path"].to_pylist():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.truncate(path, 1)


def stored_batches(listing: str, folder: str) -> Iterator[pa.RecordBatch]:
    """Batches like those of `storage.iter_files`, from a Parquet file."""
    batches: Iterator[pa.RecordBatch] = pq.ParquetFile(listing).iter_batches(BATCH_SIZE)
    return batches


def time_listing(audio: str, listing: str | None) -> int:
    batches = stored_batches(listing, audio) if listing else storage.iter_files(audio)
    return sum(batch.num_rows for batch in batches)


def time_manifest(audio: str, options: SourceOptions, listing: str | None, output: str) -> int:
    iterate = partial(stored_batches, listing) if listing else storage.iter_files
    with mock.patch.object(storage, "iter_files", iterate):
        manifest = audioset.read(audio, options)
    write_manifest(output, manifest)
    manifest_warnings(manifest)
    return manifest.clips.num_rows


def time_plan(path: str, output: str) -> int:
    from pipeline.dataset.decide import decide
    from pipeline.shards.job import BuildJob
    from pipeline.shards.plan import write_plan
    from pipeline.shards.settings import PrepareSettings

    manifest = read_manifest(path)
    job = BuildJob(output=output, settings=PrepareSettings())
    work = decide(manifest, job, retry_rejects=False)
    assert work is not None
    write_plan(work.plan, job.work, manifest, work.before, job.settings)
    return work.plan.clips.num_rows


def time_resumed_plan(path: str, output: str) -> int:
    (Path(output) / "shards").mkdir()
    (Path(output) / "shards" / "train-00000.tar").touch()
    return time_plan(path, output)


def measure(step: Callable[[], int]) -> Result:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, [step])


def _measured(step: Callable[[], int]) -> Result:
    start = time.monotonic()
    num_clips = step()
    seconds = time.monotonic() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return num_clips, seconds, time.process_time(), peak_gb


def describe_machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
