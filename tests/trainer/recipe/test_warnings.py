"""Warnings about recipes that are odd for their clips, and none about others."""

import json
import re
from typing import Any

import pytest

from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.data.clips import select_training_data
from trainer.recipe.fit import check_rate
from trainer.recipe.model_fit import check_fit
from trainer.recipe.parse import load_recipe, make_recipe
from trainer.recipe.recipe import Recipe
from trainer.recipe.warnings import recipe_warnings

PLAIN = ("data.train_split=train", "data.eval_split=eval", "data.fold=0")
RECIPES = ("audioset-balanced", "audioset-full", "esc50", "esc50-from-audioset", "speech-commands")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """40 clips of 40 to 90 frames to train on: 6 steps an epoch."""
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def cropping(changes: dict[str, dict[str, Any]]) -> Recipe:
    """Half of the clips are longer than the input; of random crops nothing is left out."""
    return tiny_recipe(**{**changes, "augment": {"crop": "random"} | changes.get("augment", {})})


NO_EFFECT = ["without effect"]


@pytest.mark.parametrize(
    ("changes", "setting", "values"),
    [
        ({"augment": {"crop": "first"}}, "model.num_frames", ["21 of 40", 64]),
        ({"data": {"fold": 0, "eval_split": "train"}}, "data.eval_split", ["40 of its 40"]),
        ({"data": {"fold": 1, "eval_split": "nonsense"}}, "data.eval_split", NO_EFFECT),
        ({"model": {"position_embedding": "reinitialise"}}, "model.position_embedding", NO_EFFECT),
        ({"model": {"patchout_share": 0.1}}, "model.patchout_share", ["8 patches"]),
        ({"train": {"batch_size": 41}}, "train.batch_size", [40]),
        ({"train": {"micro_batch_size": 7}}, "train.micro_batch_size", NO_EFFECT),
        ({"sampler": {"bucket_frames": [30, 39]}}, "sampler.bucket_frames", ["shortest"]),
        ({"sampler": {"bucket_batches": 5}}, "sampler.bucket_batches", NO_EFFECT),
        ({"augment": {"mixup_share": 0.0, "mixup_alpha": 3.0}}, "augment.mixup_alpha", NO_EFFECT),
        ({"augment": {"time_mask": 1}}, "augment.time_mask", NO_EFFECT),
        (
            {"augment": {"crop": "random"}, "model": {"num_frames": 96}},
            "augment.crop",
            NO_EFFECT,
        ),
        (
            {"schedule": {"decay_factor": 0.1, "decay_after_epochs": []}},
            "schedule.decay_factor",
            NO_EFFECT,
        ),
        ({"loader": {"cache_gb": 1.0, "cache_folder": "cache"}}, "loader.cache_gb", NO_EFFECT),
        ({"schedule": {"warmup_steps": 18}}, "schedule.warmup_steps", ["18 steps"]),
        ({"schedule": {"decay_after_epochs": [3]}}, "schedule.decay_after_epochs", [3]),
        ({"published": {"mAP": [0.5]}}, "published.mAP", ["1 epoch", 3]),
    ],
)
def test_odd_settings_are_warned_about(
    dataset: PreparedDataset, changes: dict[str, dict[str, Any]], setting: str, values: list[object]
) -> None:
    recipe = cropping(changes)
    warnings = recipe_warnings(recipe, select_training_data(dataset, recipe.data))
    [warning] = [line for line in warnings if line.startswith(f"{setting}: ")]
    assert_names(warning, *values)
    if "schedule" not in changes and "batch_size" not in changes.get("train", {}):
        assert len(warnings) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"fold": 1}},
        {"model": {"patchout_share": 0.2}},
        {"train": {"micro_batch_size": 6}},
        {"sampler": {"bucket_frames": [48], "bucket_batches": 5}},
        {"augment": {"mixup_alpha": 3.0}},
        {"augment": {"crop": "first"}, "model": {"num_frames": 96}},
        {"schedule": {"warmup_steps": 17, "decay_after_epochs": [2, 3]}},
        {"published": {"mAP": [0.5, 0.5, 0.5]}},
    ],
)
def test_effective_settings_give_no_warning(
    dataset: PreparedDataset, changes: dict[str, dict[str, Any]]
) -> None:
    recipe = cropping(changes)
    assert recipe_warnings(recipe, select_training_data(dataset, recipe.data)) == []


@pytest.mark.parametrize(
    ("num_frames", "time_mask", "setting", "mended"),
    [
        (512, 0, "model.num_frames", {"model.num_frames": "96"}),
        (512, 128, "model.num_frames", {"model.num_frames": "96", "augment.time_mask": "24"}),
        (170, 0, "sampler.bucket_frames", {"sampler.bucket_frames": "[80]"}),
    ],
)
def test_inputs_of_mostly_padding_come_with_the_settings_that_mend_it(
    dataset: PreparedDataset,
    num_frames: int,
    time_mask: int,
    setting: str,
    mended: dict[str, str],
) -> None:
    """All clips are far shorter than the input, or most."""
    sizes = {"model": {"num_frames": num_frames}, "augment": {"time_mask": time_mask}}
    recipe = tiny_recipe(**sizes)
    [warning] = recipe_warnings(recipe, select_training_data(dataset, recipe.data))
    assert warning.startswith(f"{setting}: ")
    assert dict(re.findall(r"([a-z]+\.[a-z_]+)=(\S+)", warning)) == mended
    document = recipe.to_json()
    for name, value in mended.items():
        section, key = name.split(".")
        document[section][key] = json.loads(value)
    better = make_recipe("better", document, where="better")
    data = select_training_data(dataset, better.data)
    check_fit(better, data)
    assert recipe_warnings(better, data) == []


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes_warn_only_about_the_small_data_set(
    dataset: PreparedDataset, name: str
) -> None:
    recipe = load_recipe(f"recipes/{name}.toml", PLAIN)
    warnings = recipe_warnings(recipe, select_training_data(dataset, recipe.data))
    assert {line.partition(":")[0] for line in warnings} <= {
        "model.num_frames",
        "train.batch_size",
        "schedule.warmup_steps",
    }


@pytest.mark.parametrize(("every", "is_refused"), [(18, True), (17, False)])
def test_run_with_a_rate_of_0_is_refused(
    dataset: PreparedDataset, every: int, is_refused: bool
) -> None:
    """The run has 18 steps."""
    recipe = tiny_recipe(schedule={"warmup_steps": 30, "warmup_every_steps": every})
    data = select_training_data(dataset, recipe.data)
    if is_refused:
        with refused("schedule.warmup_every_steps", "18 steps", "first 18", remedy=True):
            check_rate(recipe, data)
    else:
        check_rate(recipe, data)


def test_backbone_of_several_weights_needs_a_tag(dataset: PreparedDataset) -> None:
    for name, warns in (
        ("vit_base_patch16_384", True),
        ("vit_base_patch16_384.orig_in21k_ft_in1k", False),
        ("deit_base_patch16_384", False),
    ):
        recipe = cropping({"model": {"backbone": name, "pretrained": True}})
        warnings = recipe_warnings(recipe, select_training_data(dataset, recipe.data))
        found = [warning for warning in warnings if warning.startswith("model.backbone: ")]
        assert bool(found) == warns
        if warns:
            assert_names(found[0], f"{name}.augreg_in21k_ft_in1k", f"{name}.orig_in21k_ft_in1k")
