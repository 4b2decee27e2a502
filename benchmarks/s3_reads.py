"""Small S3 objects read per second, and CPU time for each, with several clients in one run.

Steps: serve a bucket of 200 KB objects on this machine (see `s3_server`); read them from 1, 8 and
32 threads with pyarrow and obstore (as `pipeline.storage` uses it), with and
without added latency per request; keep the best of several rounds. Out: a table.

    .venv/bin/python benchmarks/s3_reads.py
"""

import argparse
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pyarrow.fs
from s3_server import serve_s3

from pipeline import storage

OBJECT_BYTES = 200_000
NUM_OBJECTS = 200
IN_FLIGHT = (1, 8, 32)
MIN_READS = 100
READS_PER_THREAD = 40

Reader = Callable[[str], bytes]


def read_by_obstore(uri: str) -> bytes:
    return storage.read_file(uri)


def read_by_pyarrow(uri: str) -> bytes:
    with pyarrow_file_system().open_input_file(uri.removeprefix("s3://")) as file:
        return bytes(file.read())


@cache
def pyarrow_file_system() -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"], region=os.environ["AWS_DEFAULT_REGION"]
    )


READERS: dict[str, Reader] = {
    "pyarrow": read_by_pyarrow,
    "obstore": read_by_obstore,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=20.0, help="added to each request")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best is shown")
    arguments = parser.parse_args()
    print(f"objects of {OBJECT_BYTES} bytes, best of {arguments.rounds}, {describe_machine()}")
    print(f"{'':10}{'latency':>10}{'in flight':>11}{'objects/s':>11}{'CPU ms':>9}")
    with tempfile.TemporaryDirectory() as folder, serve_s3(Path(folder)) as latency_s:
        uris = make_objects(Path(folder))
        for latency_ms in (0.0, arguments.latency_ms):
            latency_s.value = latency_ms / 1000
            for in_flight in IN_FLIGHT:
                for name, (rate, cpu_ms) in measure(uris, in_flight, arguments.rounds).items():
                    latency = f"{latency_ms:g} ms"
                    print(f"{name:10}{latency:>10}{in_flight:11}{rate:11.0f}{cpu_ms:9.2f}")


def make_objects(folder: Path) -> list[str]:
    """Write objects to a bucket; returns their URIs."""
    (folder / "bucket").mkdir()
    generator = random.Random(0)
    for number in range(NUM_OBJECTS):
        (folder / "bucket" / str(number)).write_bytes(generator.randbytes(OBJECT_BYTES))
    return [f"s3://bucket/{number}" for number in range(NUM_OBJECTS)]


def measure(uris: list[str], in_flight: int, rounds: int) -> dict[str, tuple[float, float]]:
    """The highest rate of each reader, and its lowest CPU time per object."""
    num_reads = max(MIN_READS, READS_PER_THREAD * in_flight)
    requested = [uris[number % len(uris)] for number in range(num_reads)]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    for _ in range(rounds):
        for name, read in READERS.items():
            results[name].append(time_reads(read, requested, in_flight))
    return {
        name: (max(rate for rate, _ in timings), min(cpu_ms for _, cpu_ms in timings))
        for name, timings in results.items()
    }


def time_reads(read: Reader, uris: list[str], in_flight: int) -> tuple[float, float]:
    """Objects per second, and milliseconds of this process' CPU time per object."""
    with ThreadPoolExecutor(in_flight) as pool:
        # Opens the connections.
        list(pool.map(read, uris[:in_flight]))
        start, start_cpu_s = time.perf_counter(), cpu_s()
        assert {len(data) for data in pool.map(read, uris)} == {OBJECT_BYTES}
        seconds, used_s = time.perf_counter() - start, cpu_s() - start_cpu_s
    return len(uris) / seconds, 1000 * used_s / len(uris)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def describe_machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
