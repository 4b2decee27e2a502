"""Peak memory of writing an index and a manifest into a bucket.

In: sizes in MB. Steps: write tables of random numbers of these sizes, row group by row group, as
`prepare` writes its index and `manifest` its table, to a local S3 server (see `s3_server`), each in
a process of its own. Out: a table. "Added" is the memory beside that of the imported modules.

    .venv/bin/python benchmarks/memory_of_s3_writes.py 100 300 900
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from s3_server import serve_s3

from pipeline import storage
from pipeline.dataset.index_writer import IndexWriter

NUM_COLUMNS = 8
SCHEMA = pa.schema([(f"column {number}", pa.uint64()) for number in range(NUM_COLUMNS)])
BATCH_ROWS = 2**17
_BATCH_MB = BATCH_ROWS * NUM_COLUMNS * 8 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes_mb", type=int, nargs="+", help="sizes of the tables in MB")
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(f"{'':10}{'MB written':>12}{'seconds':>9}{'CPU s':>8}{'peak GB':>9}{'added':>7}")
    with tempfile.TemporaryDirectory() as folder, serve_s3(Path(folder)):
        (Path(folder) / "bucket").mkdir()
        for name, write in (("index", write_index), ("manifest", write_manifest)):
            for size_mb in arguments.sizes_mb:
                path = f"s3://bucket/{name}-{size_mb}.parquet"
                seconds, cpu_s, peak_gb, added_gb = in_a_process(partial(write, path, size_mb))
                size = storage.object_version(path)[0] / 1e6
                print(
                    f"{name:10}{size:12.0f}{seconds:9.1f}{cpu_s:8.1f}{peak_gb:9.2f}{added_gb:7.2f}",
                    flush=True,
                )


def write_index(path: str, size_mb: int) -> None:
    with IndexWriter(path, SCHEMA) as index:
        for batch in random_batches(size_mb):
            index.write(batch)
        index.commit()


def write_manifest(path: str, size_mb: int) -> None:
    storage.write_batches(path, SCHEMA, random_batches(size_mb))


def random_batches(size_mb: int) -> Iterator[pa.Table]:
    """Numbers that no compression makes smaller."""
    random = np.random.default_rng(0)
    for _ in range(round(size_mb / _BATCH_MB)):
        columns = [random.integers(2**64, size=BATCH_ROWS, dtype=np.uint64) for _ in SCHEMA]
        yield pa.table(columns, schema=SCHEMA)


def in_a_process(step: Callable[[], None]) -> tuple[float, float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, [step])


def _measured(step: Callable[[], None]) -> tuple[float, float, float, float]:
    """Seconds, seconds of CPU time, and the peak memory in GB, all of it and what was added."""
    imported_gb = peak_gb()
    start, start_cpu_s = time.monotonic(), time.process_time()
    step()
    seconds, cpu_s = time.monotonic() - start, time.process_time() - start_cpu_s
    return seconds, cpu_s, peak_gb(), peak_gb() - imported_gb


def peak_gb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
