"""Recipes: defaults, files, overrides, and errors about invalid settings."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ray_job
from pipeline import storage
from pipeline.errors import SettingError
from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.data.clip_columns import ClipLabels
from trainer.data.clips import select_training_data
from trainer.model.build import build_model
from trainer.recipe.model_fit import check_fit
from trainer.recipe.parse import load_recipe, make_recipe
from trainer.recipe.recipe import SECTIONS, Recipe

PROJECT = Path(ray_job.__file__).parent


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(
        '[data]\nfold = 2\n[model]\nbackbone = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"\n'
        "[schedule]\nlr = 1\ndecay_after_epochs = [3, 5]\n[augment]\nnoise = true\n"
    )
    return str(path)


def test_missing_settings_have_their_defaults(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.name == "small"
    assert (recipe.data.fold, recipe.model.backbone) == (
        2,
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    )
    assert recipe.schedule.decay_after_epochs == (3, 5)
    assert recipe.augment.noise is True
    defaults = Recipe(name="small")
    assert recipe.train == defaults.train
    assert recipe.augment.time_mask == defaults.augment.time_mask == 192
    assert math.isnan(recipe.data.mean)


def test_whole_numbers_are_accepted_for_floats(recipe_file: str) -> None:
    lr = load_recipe(recipe_file).schedule.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_empty_recipe_has_all_defaults() -> None:
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
def test_overrides_change_settings(
    recipe_file: str, override: str, section: str, key: str, expected: object
) -> None:
    value = getattr(getattr(load_recipe(recipe_file, [override]), section), key)
    assert value == expected
    assert type(value) is type(expected)


def test_home_folder_in_paths_is_expanded(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["model.weights_file=~/a.pth", "loader.cache_gb=1", "loader.cache_folder=~/shards"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.model.weights_file == f"{tmp_path}/a.pth"
    assert recipe.loader.cache_folder == f"{tmp_path}/shards"


@pytest.mark.parametrize(
    ("overrides", "culprit", "setting"),
    [
        (["train.seed=1", "train.epochs=0", "model.depth=1"], "train.epochs=0", "train.epochs"),
        (["train.epochs=3", "train.epochs=0"], "train.epochs=0", "train.epochs"),
        (["train.seed=1", "train.epochs=x"], "train.epochs=x", "train.epochs"),
        (["model.num_frames=8", "train.seed=1"], "model.num_frames=8", "model.num_frames"),
        (["train.seed=1", "loader.cache_gb=1"], "loader.cache_gb=1", "loader.cache_folder"),
        (["train.seed=1", "train.epocs=1"], "train.epocs=1", "train.epocs"),
        (["train.seed=1", "modl.x=1"], "modl.x=1", "modl"),
    ],
)
def test_override_at_fault_is_named(
    recipe_file: str, overrides: list[str], culprit: str, setting: str
) -> None:
    with refused(f"--set {culprit}", setting, type=SettingError, setting=setting):
        load_recipe(recipe_file, overrides)


def test_last_override_wins(recipe_file: str) -> None:
    assert load_recipe(recipe_file, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    "override", ["epochs=1", "train.epochs", "train=1", ".epochs=1", "train.=1"]
)
def test_malformed_overrides_are_refused(recipe_file: str, override: str) -> None:
    with refused(f"--set {override}", "section.key=value"):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "setting", "suggestion"),
    [
        ("train.epoch=1", "train.epoch", "train.epochs"),
        ("trian.epochs=1", "trian", "train"),
        # An equal key of another section is nearer than a similar one of this section.
        ("loader.batch_size=1", "loader.batch_size", "train.batch_size"),
        ("train.lr=1", "train.lr", "schedule.lr"),
        ("sampler.zzz=1", "sampler.zzz", "mode"),
        ("zzz.epochs=1", "zzz", "data, model"),
    ],
)
def test_unknown_settings_get_a_suggestion(
    recipe_file: str, override: str, setting: str, suggestion: str
) -> None:
    expected = refused(
        f"--set {override}", setting, type=SettingError, setting=setting, remedy=suggestion
    )
    with expected:
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("train.epochs=1.5", ["whole number", "got 1.5"]),
        ("train.epochs=true", ["whole number", "got True"]),
        ("train.epochs=many", ["whole number", "got 'many'"]),
        ("schedule.lr=true", ["number", "got True"]),
        ("augment.noise=1", ["true or false", "got 1"]),
        ("data.eval_split=5", ["string", "got 5"]),
        ("train.loss=5", ["'bce', 'ce'", "got 5"]),
        ("schedule.decay_after_epochs=3", ["list", "got 3"]),
        ("schedule.decay_after_epochs=[1.5]", ["whole number", "got 1.5"]),
    ],
)
def test_values_of_another_type_are_refused(
    recipe_file: str, override: str, values: list[str]
) -> None:
    setting = override.partition("=")[0]
    with refused(f"--set {override}", setting, *values, type=SettingError, setting=setting):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.fold=-1", "got -1"),
        ("model.num_frames=0", "got 0"),
        ("augment.mixup_share=2", "got 2.0"),
        ("sampler.mode=random", "got 'random'"),
        ("schedule.lr=nan", "got nan"),
        ("optimiser.beta1=1", "got 1.0"),
        ("optimiser.name=sgd", "got 'sgd'"),
        ("optimiser.weight_decay=nan", "got nan"),
        ("loader.threads=0", "got 0"),
        ("loader.cache_mb=-1", "got -1"),
        ("train.batch_size=0", "got 0"),
        ("train.loss=mse", "got 'mse'"),
        ("train.seed=-1", "got -1"),
        ("train.checkpoint_every_s=inf", "got inf"),
        ("train.micro_batch_size=-1", "got -1"),
        ("train.max_gradient_norm=nan", "got nan"),
        ("train.max_bad_steps=0", "got 0"),
        ("train.lr_after_divergence=0", "got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(recipe_file: str, override: str, value: str) -> None:
    setting = override.partition("=")[0]
    with refused(f"--set {override}", setting, value, type=SettingError, setting=setting):
        load_recipe(recipe_file, [override])


def test_statistics_must_be_given_together(recipe_file: str) -> None:
    with refused("--set data.std=2", "std", type=SettingError, setting="data.mean"):
        load_recipe(recipe_file, ["data.std=2"])


def test_given_statistics_must_be_usable(recipe_file: str) -> None:
    for overrides, culprit, value in (
        (["data.mean=1", "data.std=0"], "data.std=0", "got 0.0"),
        (["data.mean=1", "data.std=inf"], "data.std=inf", "got inf"),
        (["data.mean=inf", "data.std=1"], "data.mean=inf", "got inf"),
    ):
        setting = culprit.partition("=")[0]
        with refused(f"--set {culprit}", value, type=SettingError, setting=setting):
            load_recipe(recipe_file, overrides)


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with refused(path, "no such recipe", ".toml"):
        load_recipe(str(path))
    with refused(tmp_path, "folder", type=storage.NoFileError, remedy=True):
        load_recipe(str(tmp_path))


def test_recipe_may_start_with_a_byte_order_mark(recipe_file: str) -> None:
    plain = load_recipe(recipe_file)
    path = Path(recipe_file)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_recipe(recipe_file) == plain


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_recipe_that_is_not_utf_8_is_refused(recipe_file: str, encoding: str) -> None:
    path = Path(recipe_file)
    path.write_text(f"# é\n{path.read_text()}", encoding=encoding)
    with refused(recipe_file, "UTF-16" if encoding == "utf-16" else "utf-8", remedy="UTF-8"):
        load_recipe(recipe_file)


FLOATS = [
    f"{section}.{key}"
    for section, kind in SECTIONS.items()
    for key, hint in get_type_hints(kind).items()
    if hint is float
]
MAY_BE_NAN = {"data.mean", "data.std"}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("setting", FLOATS)
def test_numbers_are_finite(recipe_file: str, setting: str, value: str) -> None:
    if value == "nan" and setting in MAY_BE_NAN:
        return  # computed from the training clips
    # A mean is given together with a deviation.
    other = {"data.mean": ["data.std=1"], "data.std": ["data.mean=1"]}.get(setting, [])
    with refused(f"--set {setting}={value}", setting, type=SettingError, setting=setting):
        load_recipe(recipe_file, [*other, f"{setting}={value}"])


@pytest.mark.parametrize("content", [b"[train\nepochs = 1", b"\xff\xfe[train]"])
def test_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with refused(path, "TOML"):
        load_recipe(str(path))


@pytest.mark.parametrize("overrides", [[], ["train.epochs=1"]])
def test_value_in_place_of_a_section_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("train = 3\n")
    with refused(path, "section", type=SettingError, setting="train", remedy="[train]"):
        load_recipe(str(path), overrides)


def test_recipe_is_read_from_a_bucket(s3: str, recipe_file: str) -> None:
    storage.write_bytes(f"{s3}/recipes/small.toml", Path(recipe_file).read_bytes())
    assert load_recipe(f"{s3}/recipes/small.toml") == load_recipe(recipe_file)
    with refused(f"{s3}/recipes/other.toml", "no such recipe"):
        load_recipe(f"{s3}/recipes/other.toml")
    with refused("s3://no-bucket-of-this-name", "bucket", remedy="endpoint"):
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
            {
                "noise": st.booleans(),
                "mixup_share": st.floats(0, 1),
                "time_mask": st.integers(0, 1_000_000),
            }
        ),
        "schedule": st.fixed_dictionaries(
            {
                "lr": st.floats(1e-30, 1e6),
                "decay_after_epochs": st.sets(st.integers(1, 99)).map(sorted),
            }
        ),
        "train": st.fixed_dictionaries(
            {"seed": st.integers(0, 2**64 - 1), "loss": st.sampled_from(["bce", "ce"])}
        ),
    },
)


@given(DOCUMENTS)
def test_recipe_round_trips_as_json(document: dict[str, Any]) -> None:
    recipe = make_recipe("some", document, where="here")
    text = json.dumps(recipe.to_json(), allow_nan=False)
    again = make_recipe("some", json.loads(text), where="there")
    # NaN, which means "not given", does not equal itself.
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


def test_toml_file_equals_json(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    path = write_recipe(tmp_path / "tiny.toml", recipe)
    assert repr(load_recipe(str(path))) == repr(recipe)


RECIPES = sorted((PROJECT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(str(path))
    assert recipe.name == path.stem
    assert recipe.augment.time_mask <= recipe.model.num_frames


def test_recipes_are_found() -> None:
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
    assert model.backbone == "deit_base_distilled_patch16_384.fb_in1k"
    assert model.pretrained
    assert bool(model.weights_file) == (name == "esc50-from-audioset")
    assert model.num_patches(128) == {1024: 1212, 512: 600, 128: 144}[model.num_frames]
    assert (model.position_embedding, model.depth) == ("adapt", 0)
    with torch.device("meta"):
        drawn = replace(model, pretrained=False, weights_file="")
        ast = build_model(drawn, num_classes=2, num_mels=128)
    norms = [layer.eps for layer in ast.modules() if isinstance(layer, nn.LayerNorm)]
    assert (ast.head_norm.eps, sorted(norms)) == (1e-5, [1e-6] * 25 + [1e-5])
    optimiser = recipe.optimiser
    assert (optimiser.name, optimiser.beta1, optimiser.beta2) == ("adam", 0.95, 0.999)
    assert optimiser.weight_decay == 5e-7


def test_audioset_recipe_has_the_published_curve() -> None:
    recipe = load_recipe(str(PROJECT / "recipes" / "audioset-full.toml"))
    assert recipe.published.mAP == (0.4153, 0.4349, 0.4476, 0.4490, 0.4486)
    assert recipe.published.mAUC == (0.9759, 0.9767, 0.9762, 0.9750, 0.9736)
    with refused("here", "got [45.9]", type=SettingError, setting="published.mAP"):
        make_recipe("other", {"published": {"mAP": [45.9]}}, where="here")


@pytest.mark.parametrize(
    ("changes", "where", "values"),
    [
        (
            {"augment": {"time_mask": 65}},
            "augment.time_mask",
            ["model.num_frames", 64, "got 65"],
        ),
        (
            {"augment": {"frequency_mask": 129}},
            "augment.frequency_mask",
            [128, "got 129"],
        ),
        ({"model": {"patch_frequency": 129}}, "model.patch_frequency", [128, "got 129"]),
        ({"model": {"depth": 13}}, "model.depth", [12, "got 13"]),
        (
            {"model": {"patchout_frequency": 2}},
            "model.patchout_frequency",
            ["2 rows", "got 2"],
        ),
        (
            {"sampler": {"bucket_frames": [15, 32]}},
            "sampler.bucket_frames",
            ["model.patch_time", 16, "got [15, 32]"],
        ),
        (
            {"sampler": {"bucket_frames": [64]}},
            "sampler.bucket_frames",
            ["model.num_frames", 64, "got [64]"],
        ),
        ({"train": {"loss": "ce"}}, "train.loss", ["'ce'", "label"]),
    ],
)
def test_settings_unfit_for_the_data_are_refused(
    tmp_path: Path, changes: dict[str, dict[str, Any]], where: str, values: list[object]
) -> None:
    dataset = make_prepared(str(tmp_path), num_train=8, num_eval=8, max_labels=3)
    fitting = tiny_recipe(augment={"time_mask": 64, "frequency_mask": 128})
    check_fit(fitting, select_training_data(dataset, fitting.data))
    with refused(where, *values):
        check_fit(tiny_recipe(**changes), select_training_data(dataset, fitting.data))


def test_best_epoch_of_clips_without_labels_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(train={"select_by": "mAP"})
    data = select_training_data(make_prepared(str(tmp_path), num_train=8, num_eval=8), recipe.data)
    check_fit(recipe, data)
    unlabelled = replace(data.evaluation, label_indices=ClipLabels.of([[]] * 8))
    with refused("train.select_by", "'eval'", remedy="data.eval_split"):
        check_fit(recipe, replace(data, evaluation=unlabelled))


def number_settings() -> list[tuple[str, str]]:
    """Each setting that is a number or a list of numbers, and a value far too large for it."""
    kinds: dict[Any, str] = {
        int: "1" + 25 * "0",
        float: "1" + 400 * "0",
        tuple[int, ...]: "[1" + 25 * "0" + "]",
        tuple[float, ...]: "[1e300]",
    }
    return [
        (f"{section}.{name}", kinds[hint])
        for section, kind in SECTIONS.items()
        for name, hint in get_type_hints(kind).items()
        if hint in kinds
    ]


def test_every_number_has_a_largest_value(recipe_file: str) -> None:
    settings = number_settings()
    assert len(settings) > 40
    for setting, value in settings:
        override = f"--set {setting}={value}"
        with refused(override, setting, type=SettingError, setting=setting):
            load_recipe(recipe_file, [f"{setting}={value}"])


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_number_or_list_that_toml_cannot_hold_is_one_line(recipe_file: str, value: str) -> None:
    with refused(f"--set train.epochs={value}", "train.epochs", type=SettingError):
        load_recipe(recipe_file, [f"train.epochs={value}"])
    Path(recipe_file).write_text(f"[train]\nepochs = {value}")
    with refused(recipe_file, "not a TOML file"):
        load_recipe(recipe_file)
