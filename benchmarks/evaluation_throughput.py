"""Clips per second when a model scores a clip set: `evaluate` on one device, from local shards.

In: data sets that `prepared_sets` made. Steps: a model with random weights scores the split `eval`
a few times, as after each epoch and in the step `evaluate`; the forward pass alone, on one batch
that stays on the device, is timed in the same process. Out: figures (see `figures`).

    python benchmarks/prepared_sets.py FOLDER
    python benchmarks/evaluation_throughput.py FOLDER
"""

import argparse
from pathlib import Path

import torch
from device_clock import default_device, median_s
from figures import record

from pipeline.dataset.prepared import open_dataset
from trainer.data.clips import select_clips, select_training_data
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings, LoaderSettings
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.model.precision import autocast
from trainer.model.settings import ModelSettings, Precision
from trainer.recipe.settings import TrainSettings
from trainer.training.evaluation import evaluate
from trainer.training.world import World

STORES = ("fbank", "audio")


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=48 if has_gpu else 4)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best is shown")
    arguments = parser.parse_args()
    device = default_device()
    settings = ModelSettings(
        backbone=f"deit_{'base' if has_gpu else 'tiny'}_distilled_patch16_224",
        pretrained=False,
        depth=0 if has_gpu else 1,
        num_frames=1024 if has_gpu else 128,
        compile=True,
    )
    precision: Precision = "bfloat16" if has_gpu else "float32"
    train = TrainSettings(batch_size=arguments.batch_size, precision=precision)
    for store in STORES:
        part = f"evaluation, {store}"
        print(f"\n{part}")
        dataset = open_dataset(f"{arguments.folder}/{store}")
        data = select_training_data(dataset, DataSettings())
        clips = select_clips(dataset, "eval")
        model = build_model(
            settings, num_classes=len(dataset.labels), num_mels=dataset.num_mels
        ).to(device)
        # No cache: a set that is scored once is read once.
        loader = Loader(
            clips, LoaderSettings(cache_mb=0), num_frames=settings.num_frames, device=device
        )
        rounds = [
            evaluate(
                model,
                loader,
                mean=data.mean,
                std=data.std,
                settings=train,
                world=World(device=device),
                run_path=part,
            )
            for _ in range(1 + arguments.rounds)  # the first compiles
        ]
        best_s = min(result.wall_s for result in rounds[1:])
        print(record(part, "evaluate", len(clips) / best_s, "clips/s"))
        bare = arguments.batch_size / forward_s(model, arguments.batch_size, precision, device)
        print(record(part, "forward pass alone", bare, "clips/s"))
        print(record(part, "evaluate / forward pass alone", len(clips) / best_s / bare))


@torch.inference_mode()
def forward_s(model: AST, batch_size: int, precision: Precision, device: torch.device) -> float:
    """Seconds of one batch's forward pass, the inputs on the device."""
    x = torch.randn(batch_size, *model.input_shape, device=device)
    model.eval()

    def forward() -> None:
        with autocast(device, precision):
            model(x)

    return median_s(forward, device, 10)


if __name__ == "__main__":
    main()
