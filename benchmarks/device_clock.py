"""What a device does, and how fast: timing, memory, and a trace of its kernels.

A GPU works later than it is asked to, so everything here waits for it before a clock is read. On a
CPU the same functions time its operators, so that a benchmark can be tried without a GPU.
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
"""What counts as work of a device, by the categories of a trace."""

MARK = "recorded"
"""Names the stretch of a trace between the recording's start and its end."""

SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""Calls with which the host waits for all that a GPU has to do. Waiting for a single event, as the
loop does to stay at most some steps ahead, is another call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a device did for some time."""

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

    def show(self, most: int = 12) -> None:
        """Print the kernels that take the most time."""
        total_s = sum(self.kernel_s.values())
        for name, seconds in list(self.kernel_s.items())[:most]:
            print(f"  {seconds / total_s:6.1%}  {1000 * seconds:9.2f} ms  {name[:100]}")


class Recording:
    """A profiler that is started and stopped by hand, as in a callback of a loop."""

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
        """Ends the recording, in the thread that started it, and waits for the device."""
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
    # Before and after the mark the profiler and the recording wait for the device themselves.
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
    total, reached = 0.0, -float("inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def median_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a piece of work, after one turn that is not counted."""
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time from asking for the work until the device has done it."""
    synchronise(device)
    start_s = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start_s


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], repeats: int = 20
) -> float:
    """FLOP/s of a product of random matrices [M, K] x [K, N], the median of some."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    batch = 10

    def products() -> None:
        for _ in range(batch):
            a @ b

    return batch * 2 * rows * inner * columns / median_s(products, device, repeats)


def ceiling_shape(device: torch.device) -> tuple[int, int, int]:
    """Of the product of matrices that shares are given of: large enough to fill the device."""
    size = 8192 if device.type == "cuda" else 512
    return size, size, size


def allocated_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors take now; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
