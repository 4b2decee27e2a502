"""Timing, memory and kernel traces of a device.

A GPU works asynchronously, so everything here waits for it before reading a clock. On a CPU the
same functions time its operators, so that a benchmark can be tried without a GPU.
"""

import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

KERNELS = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}
"""Categories of a trace that count as work of the device."""

MARK = "recorded"
"""Name of the span of a trace from the recording's start to its end."""

SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""Calls by which the host waits for all work of a GPU. Waiting for a single event, as the loop does
to limit how many steps it is ahead, is another call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a device did during a recording."""

    span_s: float
    """From the start of the first kernel to the end of the last."""
    busy_s: float
    """Time within it in which at least one kernel ran."""
    kernel_s: dict[str, float]
    """Time of each kernel by its name, the longest first."""
    num_synchronisations: int
    """Times that the recorded thread waited for the whole device."""

    @property
    def idle_share(self) -> float:
        """Share of the span in which the device did nothing."""
        return 1 - self.busy_s / self.span_s

    def show(self, max_kernels: int = 12) -> None:
        """Print the kernels that take the most time."""
        total_s = sum(self.kernel_s.values())
        for name, seconds in list(self.kernel_s.items())[:max_kernels]:
            print(f"  {seconds / total_s:6.1%}  {1000 * seconds:9.2f} ms  {name[:100]}")


class Recording:
    """A profiler with explicit start and stop, for use in a callback of a loop."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._mark = record_function(MARK)

    def start(self) -> None:
        synchronise(self._device)
        self._profile.start()
        self._mark.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> Trace:
        """End the recording, in the thread that started it, and wait for the device."""
        self._mark.__exit__(None, None, None)
        synchronise(self._device)
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            return read_trace(path, self._device.type)


def read_trace(path: Path, device_type: str) -> Trace:
    """The trace of a `Recording` on a device of this type, as PyTorch's profiler exported it."""
    events = [event for event in json.loads(path.read_text())["traceEvents"] if "dur" in event]
    kernels = [event for event in events if event.get("cat") in KERNELS[device_type]]
    if not kernels:
        raise ValueError(f"{path}: the profiler recorded no work of the {device_type} device")
    seconds: Counter[str] = Counter()
    for kernel in kernels:
        seconds[kernel["name"]] += kernel["dur"] / 1e6
    intervals = [(kernel["ts"] / 1e6, (kernel["ts"] + kernel["dur"]) / 1e6) for kernel in kernels]
    # Outside the mark, the profiler and the recording wait for the device themselves.
    mark = next(event for event in events if event["name"] == MARK)
    num_waits = sum(
        event["name"] in SYNCHRONISATIONS
        and event["tid"] == mark["tid"]
        and mark["ts"] <= event["ts"] <= mark["ts"] + mark["dur"]
        for event in events
    )
    return Trace(
        span_s=max(end for _, end in intervals) - min(start for start, _ in intervals),
        busy_s=covered(intervals),
        kernel_s=dict(seconds.most_common()),
        num_synchronisations=num_waits,
    )


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, covered_until = 0.0, -float("inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return total


def median_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of `work`, after one call to warm up."""
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time from the call until the device has finished the work."""
    synchronise(device)
    start_s = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start_s


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], repeats: int = 20
) -> float:
    """Median FLOP/s of products of random matrices [M, K] x [K, N]."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    batch = 10

    def products() -> None:
        for _ in range(batch):
            a @ b

    return batch * 2 * rows * inner * columns / median_s(products, device, repeats)


def ceiling_shape(device: torch.device) -> tuple[int, int, int]:
    """M, K and N of the reference matrix product: large enough to fill the device."""
    size = 8192 if device.type == "cuda" else 512
    return size, size, size


def allocated_bytes(device: torch.device) -> int:
    """GPU memory that tensors take now; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_device() -> torch.device:
    """The first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
