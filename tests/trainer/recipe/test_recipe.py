"""Recipes: defaults, files, overrides, and what is said of a setting that cannot be."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ray_job
from pipeline import storage
from pipeline.errors import UserError
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.data.clips import select_training_data
from trainer.model.build import build_model
from trainer.recipe.fit import check_fit
from trainer.recipe.parse import load_recipe, make_recipe
from trainer.recipe.recipe import SECTIONS, Recipe

PROJECT = Path(ray_job.__file__).parent


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(
        '[data]\nfold = 2\n[model]\nbackbone = "vit_tiny_patch16_224"\n'
        "[schedule]\nlr = 1\ndecay_after_epochs = [3, 5]\n[augment]\nnoise = true\n"
    )
    return str(path)


def test_what_a_file_leaves_out_has_its_default(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.name == "small"
    assert (recipe.data.fold, recipe.model.backbone) == (2, "vit_tiny_patch16_224")
    assert recipe.schedule.decay_after_epochs == (3, 5)
    assert recipe.augment.noise is True
    defaults = Recipe(name="small")
    assert recipe.train == defaults.train
    assert recipe.augment.time_mask == defaults.augment.time_mask == 192
    assert math.isnan(recipe.data.mean)


def test_whole_numbers_do_for_floats(recipe_file: str) -> None:
    lr = load_recipe(recipe_file).schedule.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_an_empty_recipe_is_all_defaults() -> None:
    assert make_recipe("empty", {}, where="nowhere") == Recipe(name="empty")


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("train.epochs=7", "train", "epochs", 7),
        ("train.epochs = 7", "train", "epochs", 7),
        ("schedule.lr=2", "schedule", "lr", 2.0),
        ("schedule.lr=5e-4", "schedule", "lr", 5e-4),
        ("schedule.decay_after_epochs=[4, 6]", "schedule", "decay_after_epochs", (4, 6)),
        ("schedule.decay_after_epochs=[]", "schedule", "decay_after_epochs", ()),
        ("augment.noise=false", "augment", "noise", False),
        ("train.loss=ce", "train", "loss", "ce"),
        ('train.loss="ce"', "train", "loss", "ce"),
        ("model.weights_file=s3://bucket/a b.pth", "model", "weights_file", "s3://bucket/a b.pth"),
        ("model.weights_file=/a=b", "model", "weights_file", "/a=b"),
        ("model.weights_file=", "model", "weights_file", ""),
    ],
)
def test_overrides(
    recipe_file: str, override: str, section: str, key: str, expected: object
) -> None:
    value = getattr(getattr(load_recipe(recipe_file, [override]), section), key)
    assert value == expected
    assert type(value) is type(expected)


def test_paths_mean_the_same_to_workers(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["model.weights_file=~/a.pth", "loader.cache_gb=1", "loader.cache_folder=~/shards"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.model.weights_file == f"{tmp_path}/a.pth"
    assert recipe.loader.cache_folder == f"{tmp_path}/shards"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.seed=1", "train.epochs=0", "model.depth=1"], "--set train.epochs=0: train.epochs"),
        (["train.epochs=3", "train.epochs=0"], "--set train.epochs=0: train.epochs"),
        (["train.seed=1", "train.epochs=x"], "--set train.epochs=x: train.epochs: must be a whole"),
        (["model.num_frames=8", "train.seed=1"], "--set model.num_frames=8: model.num_frames"),
        (["sampler.mode=balanced", "loader.cache_gb=1"], "--set loader.cache_gb=1: loader.cache_f"),
        (["train.seed=1", "train.epocs=1"], "--set train.epocs=1: no key"),
        (["train.seed=1", "modl.x=1"], "--set modl.x=1: no section"),
    ],
)
def test_the_override_at_fault_is_named(
    recipe_file: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file, overrides)
    assert str(caught.value).startswith(message)


def test_the_last_override_counts(recipe_file: str) -> None:
    assert load_recipe(recipe_file, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    "override", ["epochs=1", "train.epochs", "train=1", ".epochs=1", "train.=1"]
)
def test_an_override_of_another_form(recipe_file: str, override: str) -> None:
    with pytest.raises(UserError, match=r"^--set .*: must be section\.key=value"):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", r"no key train\.epoch; did you mean train\.epochs\?"),
        ("trian.epochs=1", r"no section \[trian\]; did you mean train\?"),
        # The very key of another section is nearer than a like one of this.
        ("loader.batch_size=1", r"no key loader\.batch_size; did you mean train\.batch_size\?"),
        ("train.lr=1", r"no key train\.lr; did you mean schedule\.lr\?"),
        ("sampler.zzz=1", r"no key sampler\.zzz; there are: mode"),
        ("zzz.epochs=1", r"no section \[zzz\]; there are: data, model"),
    ],
)
def test_unknown_names_get_the_nearest(recipe_file: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(recipe_file, [override])
    assert str(caught.value).startswith(f"--set {override}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=1.5", r"train\.epochs: must be a whole number, got 1\.5"),
        ("train.epochs=true", r"train\.epochs: must be a whole number, got True"),
        ("train.epochs=many", r"train\.epochs: must be a whole number, got 'many'"),
        ("schedule.lr=true", r"schedule\.lr: must be a number, got True"),
        ("augment.noise=1", r"augment\.noise: must be true or false, got 1"),
        ("data.eval_split=5", r"data\.eval_split: must be a text, got 5"),
        ("train.loss=5", r"train\.loss: must be one of 'bce', 'ce', got 5"),
        ("schedule.decay_after_epochs=3", r"must be a list, each of it a whole number, got 3"),
        ("schedule.decay_after_epochs=[1.5]", r"decay_after_epochs: must be a whole number"),
    ],
)
def test_a_value_of_another_type(recipe_file: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.fold=-1", r"data\.fold: must be at least 0, got -1"),
        ("data.std=2", r"data\.mean: must be given together with std"),
        ("model.num_frames=0", r"model\.num_frames: must be at least 1, got 0"),
        ("augment.mixup_share=2", r"augment\.mixup_share: must be from 0 to 1, got 2\.0"),
        ("sampler.mode=random", r"sampler\.mode: must be one of .*, got 'random'"),
        ("schedule.lr=nan", r"schedule\.lr: must be a number above 0, got nan"),
        ("optimiser.beta1=1", r"optimiser\.beta1: must be at least 0 and below 1, got 1\.0"),
        ("optimiser.name=sgd", r"optimiser\.name: must be one of .*, got 'sgd'"),
        ("optimiser.weight_decay=nan", r"optimiser\.weight_decay: must be .*, got nan"),
        ("loader.threads=0", r"loader\.threads: must be at least 1, got 0"),
        ("loader.cache_mb=-1", r"loader\.cache_mb: must be at least 0, got -1"),
        ("train.batch_size=0", r"train\.batch_size: must be at least 1, got 0"),
        ("train.loss=mse", r"train\.loss: must be one of .*, got 'mse'"),
        ("train.seed=-1", r"train\.seed: must be from 0 to \d+, got -1"),
        ("train.checkpoint_every_s=inf", r"train\.checkpoint_every_s: must be .*, got inf"),
        ("train.micro_batch_size=-1", r"train\.micro_batch_size: must be .*, got -1"),
        ("train.max_gradient_norm=nan", r"train\.max_gradient_norm: must be .*, got nan"),
        ("train.max_bad_steps=0", r"train\.max_bad_steps: must be at least 1, got 0"),
        ("train.lr_after_divergence=0", r"train\.lr_after_divergence: must be above 0"),
    ],
)
def test_a_value_out_of_range(recipe_file: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file, [override])


def test_given_statistics_must_be_usable(recipe_file: str) -> None:
    for values, message in (
        (["data.mean=1", "data.std=0"], r"data\.std: must be a finite number above 0, got 0\.0"),
        (["data.mean=1", "data.std=inf"], r"data\.std: must be a finite number above 0, got inf"),
        (["data.mean=inf", "data.std=1"], r"data\.mean: must be a finite number, got inf"),
    ):
        with pytest.raises(UserError, match=message):
            load_recipe(recipe_file, values)


def test_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(UserError, match=f"^{path}: no such recipe"):
        load_recipe(str(path))
    with pytest.raises(UserError, match=f"^{tmp_path}: Is a directory"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize("content", [b"[train\nepochs = 1", b"\xff\xfe[train]"])
def test_not_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a TOML file"):
        load_recipe(str(path))


@pytest.mark.parametrize("overrides", [[], ["train.epochs=1"]])
def test_a_value_in_the_place_of_a_section(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("train = 3\n")
    with pytest.raises(UserError, match=r"train is a section, not a value; write \[train\]"):
        load_recipe(str(path), overrides)


def test_from_a_bucket(s3: str, recipe_file: str) -> None:
    storage.write_bytes(f"{s3}/recipes/small.toml", Path(recipe_file).read_bytes())
    assert load_recipe(f"{s3}/recipes/small.toml") == load_recipe(recipe_file)
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(f"{s3}/recipes/other.toml")
    with pytest.raises(UserError, match="the bucket does not exist"):
        load_recipe("s3://no-bucket-of-this-name/small.toml")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {"fold": st.integers(0, 9)},
            optional={"eval_split": st.text(max_size=5), "train_split": st.text(max_size=5)},
        )
        | st.builds(
            lambda mean, std: {"mean": mean, "std": std}, NUMBERS, st.floats(1e-300, 1e300)
        ),
        "augment": st.fixed_dictionaries(
            {"noise": st.booleans(), "mixup_share": st.floats(0, 1), "time_mask": st.integers(0)}
        ),
        "schedule": st.fixed_dictionaries(
            {
                "lr": st.floats(1e-30, 1e30),
                "decay_after_epochs": st.sets(st.integers(1, 99)).map(sorted),
            }
        ),
        "train": st.fixed_dictionaries(
            {"seed": st.integers(0, 2**64 - 1), "loss": st.sampled_from(["bce", "ce"])}
        ),
    },
)


@given(DOCUMENTS)
def test_json_round_trip(document: dict[str, Any]) -> None:
    recipe = make_recipe("some", document, where="here")
    text = json.dumps(recipe.to_json(), allow_nan=False)
    again = make_recipe("some", json.loads(text), where="there")
    # NaN, which stands for "not given", equals nothing, not even itself.
    assert again.to_json() == recipe.to_json()
    assert repr(again) == repr(recipe)
    for section, keys in document.items():
        for key, value in keys.items():
            assert recipe.to_json()[section][key] == value


def test_json_names_every_setting() -> None:
    document = Recipe(name="all").to_json()
    assert document["data"]["mean"] is None
    assert {section: set(keys) for section, keys in document.items()} == {
        section: {field.name for field in fields(kind)} for section, kind in SECTIONS.items()
    }


def test_a_file_says_the_same_as_json(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    path = write_recipe(tmp_path / "tiny.toml", recipe)
    assert repr(load_recipe(str(path))) == repr(recipe)


RECIPES = sorted((PROJECT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe.name == path.stem
    assert recipe.augment.time_mask <= recipe.model.num_frames


def test_there_are_recipes() -> None:
    assert RECIPES


AFTER_EACH_FROM_5 = tuple(range(5, 26))
PAPER: dict[str, dict[str, Any]] = {
    "audioset-full": {
        "loss": "bce", "lr": 1e-5, "batch": 12, "epochs": 5, "decay": (0.5, (2, 3, 4)),
        "warmup": (1000, 50), "sampling": "balanced", "masks": (48, 192), "mixup": 0.5,
        "frames": 1024, "statistics": (-4.2677393, 4.5689974), "noise": (False, 0),
        "clips": ("train", "eval", 0), "averaged": [1, 2, 3, 4, 5],
    },
    "audioset-balanced": {
        "loss": "bce", "lr": 5e-5, "batch": 12, "epochs": 25, "decay": (0.5, (10, 15, 20)),
        "warmup": (1000, 50), "sampling": "shuffle", "masks": (48, 192), "mixup": 0.5,
        "frames": 1024, "statistics": (-4.2677393, 4.5689974), "noise": (False, 0),
        "clips": ("balanced", "eval", 0), "averaged": list(range(6, 26)),
    },
    "esc50": {
        "loss": "ce", "lr": 1e-4, "batch": 48, "epochs": 25, "decay": (0.85, AFTER_EACH_FROM_5),
        "warmup": (0, 50), "sampling": "shuffle", "masks": (24, 96), "mixup": 0.0,
        "frames": 512, "statistics": (-6.6268077, 5.358466), "noise": (False, 0),
        "clips": ("train", "train", 1), "averaged": [],
    },
    "esc50-from-audioset": {
        "loss": "ce", "lr": 1e-5, "batch": 48, "epochs": 25, "decay": (0.85, AFTER_EACH_FROM_5),
        "warmup": (0, 50), "sampling": "shuffle", "masks": (24, 96), "mixup": 0.0,
        "frames": 512, "statistics": (-6.6268077, 5.358466), "noise": (False, 0),
        "clips": ("train", "train", 1), "averaged": [],
    },
    "speech-commands": {
        "loss": "bce", "lr": 2.5e-4, "batch": 128, "epochs": 30,
        "decay": (0.85, AFTER_EACH_FROM_5),
        "warmup": (0, 50), "sampling": "shuffle", "masks": (48, 48), "mixup": 0.5,
        "frames": 128, "statistics": (-6.845978, 5.5654526), "noise": (True, 10),
        "clips": ("train", "validation", 0), "averaged": [],
    },
}  # fmt: skip
"""What the paper and its authors' scripts train with."""


@pytest.mark.parametrize("name", PAPER)
def test_published_recipes_have_the_published_values(name: str) -> None:
    recipe = load_recipe(str(PROJECT / "recipes" / f"{name}.toml"))
    schedule, augment, model = recipe.schedule, recipe.augment, recipe.model
    assert PAPER[name] == {
        "loss": recipe.train.loss,
        "lr": schedule.lr,
        "batch": recipe.train.batch_size,
        "epochs": recipe.train.epochs,
        "decay": (schedule.decay_factor, schedule.decay_after_epochs),
        "warmup": (schedule.warmup_steps, schedule.warmup_every_steps),
        "sampling": recipe.sampler.mode,
        "masks": (augment.frequency_mask, augment.time_mask),
        "mixup": augment.mixup_share,
        "frames": model.num_frames,
        "statistics": (recipe.data.mean, recipe.data.std),
        "noise": (augment.noise, augment.roll_frames),
        "clips": (recipe.data.train_split, *recipe.data.evaluation),
        "averaged": list(recipe.averaging.epochs(recipe.train.epochs)),
    }
    assert recipe.averaging.ema_decay == 0
    # Mixed precision as there; no gradient is clipped, no finite one skipped.
    train = recipe.train
    assert (train.precision, train.max_gradient_norm) == ("bfloat16", 0)
    assert (train.max_bad_steps, train.lr_after_divergence) == (10, 1)
    assert train.select_by == ("accuracy" if name == "speech-commands" else "")
    assert (augment.mixup_alpha, augment.crop) == (10, "first")
    assert model.backbone == "deit_base_distilled_patch16_384"
    assert model.pretrained
    assert bool(model.weights_file) == (name == "esc50-from-audioset")
    assert model.num_patches(128) == {1024: 1212, 512: 600, 128: 144}[model.num_frames]
    assert (model.position_embedding, model.depth) == ("adapt", 0)
    with torch.device("meta"):
        drawn = replace(model, pretrained=False, weights_file="")
        ast = build_model(drawn, num_classes=2, num_mels=128)
    norms = [one.eps for one in ast.modules() if isinstance(one, nn.LayerNorm)]
    assert (ast.head_norm.eps, sorted(norms)) == (1e-5, [1e-6] * 25 + [1e-5])
    optimiser = recipe.optimiser
    assert (optimiser.name, optimiser.beta1, optimiser.beta2) == ("adam", 0.95, 0.999)
    assert optimiser.weight_decay == 5e-7


def test_published_curve_of_audioset() -> None:
    recipe = load_recipe(str(PROJECT / "recipes" / "audioset-full.toml"))
    assert recipe.published.mAP == (0.4153, 0.4349, 0.4476, 0.4490, 0.4486)
    assert recipe.published.mAUC == (0.9759, 0.9767, 0.9762, 0.9750, 0.9736)
    with pytest.raises(UserError, match=r"published\.mAP: must be numbers from 0 to 1, got \[45"):
        make_recipe("other", {"published": {"mAP": [45.9]}}, where="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment": {"time_mask": 65}},
            r"^augment\.time_mask: must be at most model\.num_frames \(64\), got 65",
        ),
        (
            {"augment": {"frequency_mask": 129}},
            r"^augment\.frequency_mask: must be at most the number of mel bins \(128\), got 129",
        ),
        ({"model": {"patch_frequency": 129}}, r"^model\.patch_frequency: .* \(128\), got 129"),
        ({"model": {"depth": 13}}, r"^model\.depth: must be at most 12, .* got 13"),
        (
            {"model": {"patchout_frequency": 2}},
            r"^model\.patchout_frequency: .* the 2 rows .*, got 2",
        ),
        (
            {"sampler": {"bucket_frames": [15, 32]}},
            r"^sampler\.bucket_frames: .* model\.patch_time \(16\) and .*, got \[15, 32\]",
        ),
        ({"sampler": {"bucket_frames": [64]}}, r"below model\.num_frames \(64\), got \[64\]"),
        ({"train": {"loss": "ce"}}, r"^train\.loss: 'ce' is for clips with one label, but clip"),
    ],
)
def test_settings_that_do_not_fit_the_data(
    tmp_path: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    dataset = make_prepared(str(tmp_path), num_train=8, num_eval=8, max_labels=3)
    fitting = tiny_recipe(augment={"time_mask": 64, "frequency_mask": 128})
    check_fit(fitting, select_training_data(dataset, fitting.data))
    with pytest.raises(UserError, match=message):
        check_fit(tiny_recipe(**changes), select_training_data(dataset, fitting.data))
