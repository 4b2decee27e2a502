"""What reading from S3 and writing to it cost `prepare`, with and without latency.

In: a folder of audio, such as ESC-50's `audio/`. Steps: cut it into 10 s FLAC files of 16 kHz in a
bucket on a local server (see `s3_server`); build a shard of them in this process, from local files,
through pyarrow and obstore, and into the bucket; then run `prepare` on Ray, with its workers
already started. The sides take turns, and the best round of each is kept. Out: a table, with the
seconds of each stage summed over all tasks.

    .venv/bin/python benchmarks/prepare_over_s3.py AUDIO_FOLDER --clips 4000
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from unittest import mock

from prepare_throughput import CLIP_S, describe_machine, make_clips
from s3_reads import Reader, cpu_s, read_by_pyarrow
from s3_server import serve_s3

from cluster.session import connect
from pipeline.dataset.prepare import prepare
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import STAGES
from pipeline.shards.plan import make_plan, write_plan
from pipeline.shards.settings import PrepareSettings
from pipeline.storage import objects

NUM_WARM_UP = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One round of one side."""

    num_clips: int
    seconds: float
    cpu_s: float | None
    """CPU time of this process; None if other processes do the work."""
    stages_s: dict[str, float]


Side = Callable[[str], Timing]
"""A function to time; it takes a folder for its output."""

Key = tuple[str, float]
"""A side's name, and the latency in milliseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of audio files")
    parser.add_argument("--clips", type=int, default=4000, help="clips for prepare")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="added to each request")
    parser.add_argument("--reads-ahead", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the best is shown")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs for prepare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve_s3(Path(folder)) as latency_s:
        (Path(folder) / "bucket").mkdir()
        names = [file.name for file in make_clips(arguments.audio, Path(folder) / "bucket")]
        print(f"clips of {CLIP_S} s ({len(names)} different), {describe_machine()}")
        local_clips = make_manifest(names, arguments.clips, f"{folder}/bucket")
        s3_clips = make_manifest(names, arguments.clips, "s3://bucket")
        written = Path(folder) / "written"
        written.mkdir()
        shards: dict[Key, Side] = {("local files", 0.0): partial(time_shard, local_clips, None, 8)}
        tasks: dict[Key, Side] = {
            ("prepare, local files", 0.0): partial(time_prepare, local_clips, 8)
        }
        for latency_ms in (0.0, arguments.latency_ms):
            shard = partial(time_shard, local_clips, None, 8)
            shards["to S3", latency_ms] = partial(into_bucket, shard, written)
            task = partial(time_prepare, local_clips, 8)
            tasks["prepare, to S3", latency_ms] = partial(into_bucket, task, written)
            for ahead in arguments.reads_ahead:
                for name, read in (("pyarrow", read_by_pyarrow), ("obstore", None)):
                    side = partial(time_shard, s3_clips, read, ahead)
                    shards[f"from S3, {name}, {ahead} ahead", latency_ms] = side
                side = partial(time_prepare, s3_clips, ahead)
                tasks[f"prepare, from S3, {ahead} ahead", latency_ms] = side
        show(take_turns(shards, latency_s, arguments.rounds))
        with connect(num_cpus=arguments.cpus):
            with tempfile.TemporaryDirectory() as output:
                time_prepare(make_manifest(names, NUM_WARM_UP, "s3://bucket"), 8, output)
            show(take_turns(tasks, latency_s, arguments.rounds))


def make_manifest(names: list[str], num_clips: int, folder: str) -> Manifest:
    """`num_clips` clips that repeat the files in a folder."""
    uris = [f"{folder}/{names[number % len(names)]}" for number in range(num_clips)]
    clips = [Clip(id=str(number), uri=uri, labels=("any",)) for number, uri in enumerate(uris)]
    return from_clips(clips, ["any"])


def take_turns(
    sides: dict[Key, Side], latency_s: "Synchronized[float]", rounds: int
) -> dict[Key, Timing]:
    """The fastest round of each side."""
    best: dict[Key, Timing] = {}
    for number in range(rounds):
        # Back and forth, so that no side always runs first.
        for key, side in list(sides.items())[:: -1 if number % 2 else 1]:
            latency_s.value = key[1] / 1000
            with tempfile.TemporaryDirectory() as output:
                timing = side(output)
            if key not in best or timing.seconds < best[key].seconds:
                best[key] = timing
    return {key: best[key] for key in sides}


def into_bucket(side: Side, bucket: Path, output: str) -> Timing:
    """Run a side whose output goes into a bucket of the server, not into the folder `output`."""
    timing = side(f"s3://{bucket.name}/{Path(output).name}")
    shutil.rmtree(bucket / Path(output).name)
    return timing


def time_shard(manifest: Manifest, read: Reader | None, reads_ahead: int, output: str) -> Timing:
    """Build the first shard of a plan in this process, reading objects with `read`."""
    plan = make_plan(manifest, PrepareSettings())
    job = BuildJob(output=output, settings=PrepareSettings(), reads_ahead=reads_ahead)
    write_plan(plan, job.work, manifest)
    start, start_cpu_s = time.monotonic(), cpu_s()
    with nullcontext() if read is None else _reading_with(read):
        part = build_shard(plan.specs[0], job)
    assert not part.rejects
    return Timing(
        num_clips=part.index.num_rows,
        seconds=time.monotonic() - start,
        cpu_s=cpu_s() - start_cpu_s,
        stages_s=part.stages_s,
    )


def _reading_with(read: Reader) -> AbstractContextManager[object]:
    return mock.patch.object(objects, "read_object", lambda uri, check_size: read(uri))


def time_prepare(manifest: Manifest, reads_ahead: int, output: str) -> Timing:
    """Run `prepare` in the current Ray session."""
    summary = prepare(
        manifest,
        output,
        PrepareSettings(),
        session=connect(),
        max_reject_share=0.0,
        reads_ahead=reads_ahead,
    )
    assert summary is not None
    return Timing(
        num_clips=summary.num_clips,
        seconds=summary.wall_s,
        cpu_s=None,
        stages_s=summary.stages_s,
    )


def show(timings: dict[Key, Timing]) -> None:
    """Print a table."""
    stages = "".join(f"{stage:>8}" for stage in STAGES)
    print(f"{'':32}{'latency':>9}{'clips':>7}{'seconds':>9}{'clips/s':>9}{'CPU ms':>8}{stages}")
    for (name, latency_ms), timing in timings.items():
        rate = timing.num_clips / timing.seconds
        cpu = f"{1000 * timing.cpu_s / timing.num_clips:.2f}" if timing.cpu_s else ""
        seconds = "".join(f"{timing.stages_s[stage]:8.1f}" for stage in STAGES)
        print(
            f"{name:32}{latency_ms:>6g} ms{timing.num_clips:7}{timing.seconds:9.1f}{rate:9.1f}"
            f"{cpu:>8}{seconds}"
        )


if __name__ == "__main__":
    main()
