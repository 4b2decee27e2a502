"""A device's name, versions and best speed: of matrix products, and of a copy.

Steps: query the driver; time products of random matrices, one that fills the device and
those of a transformer block, and a copy within the device. Out: lines, and figures (see `figures`).

    .venv/bin/python benchmarks/machine.py

Other benchmarks give their speed as a share of the large product here, not of a data sheet.
"""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata

import torch
from device_clock import (
    ceiling_shape,
    default_device,
    device_name,
    matmul_flops_per_s,
    median_s,
)
from figures import record

PACKAGES = ("torch", "triton", "torchaudio", "timm", "transformers", "torchao", "numpy", "pyarrow")
PART = "machine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much to compute; little on a CPU, only to try the code."""

    tokens: int
    """Rows of a block's matrix products: clips times tokens per clip."""
    copied_bytes: int
    repeats: int


ON_GPU = Sizes(tokens=32 * 1214, copied_bytes=4 << 30, repeats=20)
ON_CPU = Sizes(tokens=256, copied_bytes=64 << 20, repeats=3)
WIDTH = 768
"""Width of the base model."""


def main() -> None:
    device = default_device()
    sizes = ON_GPU if device.type == "cuda" else ON_CPU
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    show(device)
    ceiling = matmul_flops_per_s(device, dtype, ceiling_shape(device), sizes.repeats)
    print(record(PART, "matrix product", ceiling / 1e12, "TFLOP/s"), flush=True)
    for name, inner, columns in (
        ("queries, keys and values", WIDTH, 3 * WIDTH),
        ("attention's projection", WIDTH, WIDTH),
        ("first layer of the MLP", WIDTH, 4 * WIDTH),
        ("second layer of the MLP", 4 * WIDTH, WIDTH),
    ):
        reached = matmul_flops_per_s(device, dtype, (sizes.tokens, inner, columns), sizes.repeats)
        print(record(PART, f"product of {name}", reached / 1e12, "TFLOP/s"), flush=True)
    source = torch.randn(sizes.copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source), device, sizes.repeats)
    print(
        record(
            PART, "copy, bytes read and written", 2 * sizes.copied_bytes / copy_s / 1e12, "TB/s"
        ),
        flush=True,
    )


def show(device: torch.device) -> None:
    """Print the device, its machine, and the versions that matter."""
    print(record(PART, "device", device_name(device)), flush=True)
    print(record(PART, "CPUs", float(os.cpu_count() or 0)), flush=True)
    print(record(PART, "Python", platform.python_version()), flush=True)
    for package in PACKAGES:
        try:
            print(record(PART, package, metadata.version(package)), flush=True)
        except metadata.PackageNotFoundError:
            print(record(PART, package, "not installed"), flush=True)
    if device.type == "cuda":
        print(record(PART, "CUDA", str(torch.version.cuda)), flush=True)
        print(record(PART, "cuDNN", str(torch.backends.cudnn.version())), flush=True)  # type: ignore[no-untyped-call]
    if nvidia_smi := shutil.which("nvidia-smi"):
        fields = "driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
        command = [nvidia_smi, f"--query-gpu={fields}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        print(record(PART, fields, answer.stdout.strip() or answer.stderr.strip()), flush=True)


if __name__ == "__main__":
    main()
