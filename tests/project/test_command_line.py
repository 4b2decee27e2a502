"""Options of the steps: what is written twice, so that `--help` answers at once, agrees."""

import argparse
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import ray_job
from cluster.command_line import make_parser
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.prepare import prepare
from pipeline.manifest.download import DATASETS
from pipeline.manifest.layouts import LAYOUTS
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.shards.settings import PrepareSettings, Store
from trainer.checkpoints.settings import Weights
from trainer.model.settings import Precision
from trainer.on_ray.settings import Workers

PROJECT = Path(ray_job.__file__).parent


def steps() -> dict[str, argparse.ArgumentParser]:
    (action,) = make_parser()._subparsers._group_actions  # type: ignore[union-attr]
    return dict(action.choices)  # type: ignore[arg-type]


def choices(step: str, name: str) -> tuple[Any, ...]:
    (action,) = (one for one in steps()[step]._actions if one.dest == name)
    return tuple(action.choices or ())


def defaults(step: str, *names: str) -> list[Any]:
    return [steps()[step].get_default(name) for name in names]


def test_every_step_has_a_function() -> None:
    assert list(steps()) == list(ray_job.STEPS)


def test_choices_are_those_of_the_settings() -> None:
    assert choices("download", "name") == tuple(DATASETS)
    assert choices("manifest", "layout") == ("auto", *LAYOUTS)
    assert choices("manifest", "cut") == get_args(get_type_hints(SourceOptions)["cut"])
    assert choices("prepare", "store") == get_args(Store)
    assert choices("evaluate", "precision") == get_args(Precision)
    for step in ("evaluate", "export"):
        assert choices(step, "weights") == get_args(Weights)


def test_defaults_are_those_of_the_settings() -> None:
    source, plan, decode, workers = SourceOptions(), PrepareSettings(), DecodeSettings(), Workers()
    assert defaults("manifest", "cut", "separator", "split") == [
        source.cut, source.separator, source.split
    ]  # fmt: skip
    assert defaults("prepare", "clips_per_shard", "store", "max_duration_s") == [
        plan.clips_per_shard, plan.store, decode.max_duration_s
    ]  # fmt: skip
    assert defaults("prepare", "max_file_mb") == [decode.max_file_bytes / 1e6]
    reads_ahead = inspect.signature(prepare).parameters["reads_ahead"].default
    assert defaults("prepare", "reads_ahead") == [reads_ahead]
    for step in ("train", "evaluate", "ensemble", "cross-validate"):
        found = defaults(step, "workers", "cpus_per_worker", "gpu")
        assert found == [workers.num, workers.cpus, workers.use_gpu]


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys, ray_job\n"
        "try:\n    ray_job.main(['prepare', '--help'])\n"
        "except SystemExit:\n    print(sorted({'av', 'ray', 'torch', 'timm'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
