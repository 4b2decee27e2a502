"""Clips per second of `tag` from local FLAC, beside a plain loop and transformers' own pipeline.

In: nothing; sounds are synthesised. A tiny AST with stride 16 is trained for one epoch and
exported, so that all sides have the same weights. Steps, one after the other, each in processes of
its own: `tag` on Ray with as many workers as there are CPUs; a plain loop of decode, fbank and
model with PyTorch on all of them; `transformers.pipeline("audio-classification")` with its feature
extractor; the forward pass alone. Out: figures (see `figures`); the rates leave out the start, and
`tag`'s is between two runs of different sizes. Last, the memory of `tag` with few and with many
short files.

    .venv/bin/python benchmarks/tag_throughput.py
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from figures import record
from prepared_sets import prepare, synthetic

PROJECT = Path(__file__).resolve().parent.parent
PART = "tag"
RATE_HZ = 16_000
FEW = 128
"""More than `tag` takes without Ray."""
BATCH_SIZE = 16
FORWARD_BATCHES = 20
CLIP_S = 10.0
SHORT_S = 0.5
RECIPE = {
    "model": {
        "backbone": "deit_tiny_distilled_patch16_224",
        "pretrained": False,
        "stride_frequency": 16,
        "stride_time": 16,
        "num_frames": 1024,
    },
    "train": {"epochs": 1, "batch_size": 8, "precision": "float32"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clips",
        type=int,
        default=1024,
        help="clips of 10 s, a multiple of 64 for each CPU, so that no worker idles at the end",
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that all is measured")
    parser.add_argument(
        "--many", type=int, default=10_000, help="short files; 0: memory is not measured"
    )
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.clips, arguments.rounds)
        if arguments.many:
            measure_memory(Path(folder), arguments.many)


def measure(folder: Path, num_clips: int, num_rounds: int) -> None:
    write_model(folder)
    write_noise(folder / "few", FEW, CLIP_S)
    write_noise(folder / "audio", FEW + num_clips, CLIP_S)
    rates: dict[str, list[float]] = {side: [] for side in ("tag", *SIDES)}
    for number in range(num_rounds):
        few_s = tag(folder, "few", f"few-{number}")[0]
        all_s = tag(folder, "audio", f"all-{number}")[0]
        rates["tag"].append(num_clips / (all_s - few_s))
        print(f"tag: {few_s:.1f} s for {FEW} clips, {all_s:.1f} s for {FEW + num_clips}")
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rates[side].append(json.loads(done.stdout.splitlines()[-1]))
    for side, of_side in rates.items():
        shown = ", ".join(f"{rate:.2f}" for rate in of_side)
        print(record(PART, f"{side} ({shown})", max(of_side), "clips/s"))
    best = {side: max(of_side) for side, of_side in rates.items()}
    print(record(PART, "tag / the forward pass alone", best["tag"] / best["forward"]))
    print(record(PART, "tag / plain loop", best["tag"] / best["plain"], aim=0.85))
    print(record(PART, "tag / transformers", best["tag"] / best["transformers"], aim=1.5))


def measure_memory(folder: Path, many: int) -> None:
    for num in (FEW, many):
        write_noise(folder / f"short-{num}", num, SHORT_S)
        _, peaks = tag(folder, f"short-{num}", f"memory-{num}")
        for kind, num_bytes in peaks.items():
            name = f"peak of {kind}, {num:,} files of {SHORT_S:g} s"
            print(record(PART, name, num_bytes / 1e6, "MB"))


def write_model(folder: Path) -> None:
    from pipeline.dataset.prepared import open_dataset
    from trainer.exchange.export_transformers import export_transformers
    from trainer.recipe.parse import make_recipe
    from trainer.training.loop import train
    from trainer.training.world import World

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        prepare(synthetic(folder / "sounds", 16, CLIP_S), folder / "data", "fbank", pool)
    recipe = make_recipe("tiny", RECIPE, where="benchmark")
    train(recipe, open_dataset(str(folder / "data")), str(folder / "run"), world=World())
    export_transformers(str(folder / "run"), str(folder / "exported"))


def write_noise(folder: Path, num: int, duration_s: float) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(num):
        samples = rng.normal(0, 0.05, round(duration_s * RATE_HZ)).astype(np.float32)
        soundfile.write(folder / f"{number:06d}.flac", samples, RATE_HZ)


def tag(folder: Path, audio: str, output: str) -> tuple[float, dict[str, int]]:
    """Seconds, and the most memory of the step's own process and of its largest worker."""
    command = [
        *(sys.executable, str(PROJECT / "ray_job.py"), "tag", str(folder / "run")),
        *(str(folder / audio), "--out", str(folder / output), "--no-page", "--quiet"),
        *("--batch-size", str(BATCH_SIZE), "--num-cpus", str(os.cpu_count()), "--no-gpu"),
    ]
    start_s = time.monotonic()
    over = threading.Event()
    peaks: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as step:
        watch = threading.Thread(target=watch_memory, args=(step.pid, over, peaks))
        watch.start()
        status = step.wait()
        elapsed_s = time.monotonic() - start_s
        over.set()
        watch.join()
    assert status == 0
    return elapsed_s, peaks


def watch_memory(step: int, over: threading.Event, peaks: dict[str, int]) -> None:
    while not over.wait(0.5):
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                kind = "the step" if int(path.name) == step else "a worker with the model"
                is_worker = b"_Scorer" in (path / "cmdline").read_bytes()
                if int(path.name) == step or is_worker:
                    pages = int((path / "statm").read_text().split()[1])
                    peaks[kind] = max(peaks.get(kind, 0), pages * os.sysconf("SC_PAGE_SIZE"))


def plain(folder: Path) -> float:
    """Clips per second of a loop over the files, in this process."""
    import torch

    from pipeline.audio.decode import decode_audio
    from pipeline.audio.settings import DecodeSettings
    from pipeline.fbank import fbank
    from pipeline.fbank_settings import FbankSettings
    from trainer.data.augment import normalise
    from trainer.tagging.load import ModelChoice, load_tagger

    member = load_tagger(ModelChoice(path=str(folder / "run"))).members[0]
    files = sorted((folder / "audio").iterdir())
    settings, decode = FbankSettings(), DecodeSettings()

    @torch.inference_mode()
    def score(batch: list[Path]) -> None:
        x = torch.zeros(len(batch), 1024, settings.num_mels)
        for row, path in enumerate(batch):
            samples = decode_audio(path.read_bytes(), decode, sample_rate_hz=RATE_HZ).samples
            frames = fbank(torch.from_numpy(samples), settings)
            x[row, : len(frames)] = frames
        torch.sigmoid(member.ast(normalise(x, member.mean, member.std)))

    score(files[:BATCH_SIZE])
    start_s = time.monotonic()
    for start in range(0, len(files), BATCH_SIZE):
        score(files[start : start + BATCH_SIZE])
    return len(files) / (time.monotonic() - start_s)


def forward(folder: Path) -> float:
    """Clips per second of the model alone, on one batch: no side can be faster."""
    import torch

    from trainer.tagging.load import ModelChoice, load_tagger

    model = load_tagger(ModelChoice(path=str(folder / "run"))).members[0].ast
    x = torch.randn(BATCH_SIZE, *model.input_shape)
    with torch.inference_mode():
        model(x)
        start_s = time.monotonic()
        for _ in range(FORWARD_BATCHES):
            model(x)
    return FORWARD_BATCHES * BATCH_SIZE / (time.monotonic() - start_s)


def transformers(folder: Path) -> float:
    """Clips per second of transformers' pipeline, given what libsndfile reads."""
    from transformers import pipeline

    tagger = pipeline(
        "audio-classification", str(folder / "exported"), device="cpu", batch_size=BATCH_SIZE
    )
    files = sorted((folder / "audio").iterdir())

    def read(paths: list[Path]):  # type: ignore[no-untyped-def]
        for path in paths:
            samples, rate_hz = soundfile.read(path, dtype="float32")
            yield {"raw": samples, "sampling_rate": rate_hz}

    list(tagger(read(files[:BATCH_SIZE])))
    start_s = time.monotonic()
    num = sum(1 for _ in tagger(read(files)))
    return num / (time.monotonic() - start_s)


SIDES = {"plain": plain, "transformers": transformers, "forward": forward}

if __name__ == "__main__":
    main()
