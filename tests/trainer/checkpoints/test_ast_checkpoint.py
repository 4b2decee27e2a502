"""Trained ASTs from the authors, transformers and this program, adapted to other models."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ASTConfig, ASTForAudioClassification

from pipeline import storage
from pipeline.manifest.layouts.segments import read_vocabulary
from tests.support.errors import assert_names, refused
from tests.support.prepared import LABELS, make_prepared, tiny_recipe
from tests.support.runs import newest
from trainer.checkpoints.ast_checkpoint import AstCheckpoint
from trainer.checkpoints.audioset_classes import audioset_names, other_name
from trainer.checkpoints.from_own import metadata
from trainer.checkpoints.read_weights import read_weights
from trainer.checkpoints.state_files import read_metadata
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.model.patches import adapt_position_embedding
from trainer.model.settings import ModelSettings
from trainer.training.loop import make_model, train
from trainer.training.world import World

TINY = "deit_tiny_distilled_patch16_224.fb_in1k"
LIKE = {
    "patch_frequency": 16,
    "patch_time": 16,
    "stride_frequency": 10,
    "stride_time": 10,
    "num_frames": 1024,
}


class AuthorsAst(nn.Module):
    """The model of the authors' code with two blocks: timm's whole DeiT and a separate head."""

    def __init__(self, num_classes: int, *, stride: int = 16, num_frames: int = 128) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.v = cast(Any, timm.create_model(TINY, pretrained=False))
        self.v.blocks = self.v.blocks[:2]
        self.v.patch_embed.proj = nn.Conv2d(1, 192, 16, stride)
        num_patches = ((128 - 16) // stride + 1) * ((num_frames - 16) // stride + 1)
        self.v.pos_embed = nn.Parameter(0.3 * torch.randn(1, 2 + num_patches, 192))
        self.mlp_head = nn.Sequential(nn.LayerNorm(192), nn.Linear(192, num_classes))
        nn.init.normal_(self.get_parameter("mlp_head.0.weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.v.patch_embed.proj(x.unsqueeze(1).transpose(2, 3)).flatten(2).transpose(1, 2)
        tokens = [token.expand(len(x), -1, -1) for token in (self.v.cls_token, self.v.dist_token)]
        x = self.v.norm(self.v.blocks(torch.cat([*tokens, x], dim=1) + self.v.pos_embed))
        logits: Tensor = self.mlp_head((x[:, 0] + x[:, 1]) / 2)
        return logits


def settings(path: object, **changes: Any) -> ModelSettings:
    """A model of two blocks that starts from a checkpoint."""
    shape = {"stride_frequency": 16, "stride_time": 16, "num_frames": 128, "depth": 2}
    return ModelSettings(backbone=TINY, weights_file=str(path), **{**shape, **changes})


def read_ast(path: object) -> AstCheckpoint:
    checkpoint = read_weights(str(path), LIKE)
    assert isinstance(checkpoint, AstCheckpoint)
    return checkpoint


def logits(model: nn.Module, num_frames: int = 128) -> Tensor:
    x = torch.randn(3, num_frames, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Any = model.eval()(x)
    outputs: Tensor = output.logits if hasattr(output, "logits") else output
    return outputs


# The authors' files


@pytest.mark.parametrize("prefix", ["module.", "module.module.", ""])
def test_authors_weights_give_the_authors_logits(tmp_path: Path, prefix: str) -> None:
    reference = AuthorsAst(5)
    state = {prefix + name: value for name, value in reference.state_dict().items()}
    assert f"{prefix}v.head_dist.weight" in state
    torch.save(state, tmp_path / "ast.pth")
    model = build_model(settings(tmp_path / "ast.pth"), num_classes=5, num_mels=128)
    assert logits(model).std() > 0.1
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "num_patches", "num_classes", "stride", "num_frames"),
    [
        ("audioset_10_10_0.4593.pth", 1212, 527, 10, 1024),
        ("audioset_10_10_0.4495.pth", 1212, 527, 10, 1024),
        ("audioset_10_10_0.4483.pth", 1212, 527, 10, 1024),
        ("audioset_10_10_0.4475.pth", 1212, 527, 10, 1024),
        ("audioset_12_12_0.4467.pth", 850, 527, 12, 1024),
        ("audioset_14_14_0.4431.pth", 657, 527, 14, 1024),
        ("audioset_16_16_0.4422.pth", 512, 527, 16, 1024),
        ("speechcommands_10_10_0.9812.pth", 144, 35, 10, 128),
        ("renamed.pth", 600, 50, 10, 512),
        ("mine_15_13_0.9.pth", 8 * 20, 3, (15, 13), 19 * 13 + 16),
    ],
)
def test_strides_and_length_of_an_authors_file_are_detected(
    tmp_path: Path, name: str, num_patches: int, num_classes: int, stride: Any, num_frames: int
) -> None:
    state = AuthorsAst(num_classes).state_dict()
    state["v.pos_embed"] = torch.zeros(1, 2 + num_patches, 192)
    torch.save(state, tmp_path / name)
    checkpoint = read_ast(tmp_path / name)
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    assert (checkpoint.model["stride_frequency"], checkpoint.model["stride_time"]) == strides
    assert checkpoint.model["num_frames"] == num_frames
    assert (checkpoint.model["backbone"], checkpoint.model["depth"]) == (TINY, 2)
    known = {527: (-4.2677393, 4.5689974, "bce"), 35: (-6.845978, 5.5654526, "bce")}
    expected = known.get(num_classes, (None, None, None))
    assert (checkpoint.mean, checkpoint.std, checkpoint.loss) == expected
    assert (checkpoint.labels is not None) == (num_classes in (35, 527))


def test_ambiguous_strides_come_from_the_recipe(tmp_path: Path) -> None:
    state = AuthorsAst(3).state_dict()
    state["v.pos_embed"] = torch.zeros(1, 2 + 12 * 7, 192)
    torch.save(state, tmp_path / "mine.pth")
    with refused("mine.pth", "84 patches", remedy="model.stride_frequency"):
        read_ast(tmp_path / "mine.pth")
    checkpoint = read_weights(str(tmp_path / "mine.pth"), {**LIKE, "num_frames": 80})
    assert isinstance(checkpoint, AstCheckpoint)
    assert checkpoint.grid == (12, 7)


def test_speech_commands_classes_are_known_by_name(tmp_path: Path) -> None:
    torch.save(AuthorsAst(35).state_dict(), tmp_path / "sc.pth")
    checkpoint = read_ast(tmp_path / "sc.pth")
    words = sorted(checkpoint.labels or [])
    assert len(set(words)) == 35
    rows = checkpoint.head_rows(35, words)
    assert rows is not None
    assert (rows[words.index("backward")], rows[words.index("one")]) == (0, 34)


@pytest.fixture(scope="module")
def audioset_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuthorsAst, str]:
    """The authors' model with AudioSet's classes, and its file."""
    path = tmp_path_factory.mktemp("audioset") / "audioset_16_16_0.4422.pth"
    reference = AuthorsAst(527)
    torch.save(reference.state_dict(), path)
    return reference, str(path)


@pytest.mark.parametrize("kind", ["names", "machine ids", "both"])
@pytest.mark.parametrize("num_classes", [527, 20])
def test_audioset_classes_are_known_by_name_in_any_order(
    audioset_model: tuple[AuthorsAst, str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    num_classes: int,
) -> None:
    reference, path = audioset_model
    order = torch.randperm(527, generator=torch.Generator().manual_seed(0))[:num_classes].tolist()
    labels = [audioset_names()[row] for row in order]
    if kind != "names":
        step = 1 if kind == "machine ids" else 2
        labels[::step] = [str(other_name(label)) for label in labels[::step]]
        assert labels[0].startswith(("/m/", "/t/", "/g/"))
    with caplog.at_level(logging.WARNING):
        model = build_model(settings(path), num_classes=num_classes, num_mels=128, labels=labels)
    assert caplog.text == ""
    torch.testing.assert_close(logits(model), logits(reference)[:, order], atol=1e-5, rtol=0)


def test_order_of_audioset_classes_is_the_published() -> None:
    names = audioset_names()
    assert len(set(names)) == 527
    assert (names[0], names[137], names[526]) == ("Speech", "Music", "Field recording")
    assert (other_name("Speech"), other_name("/m/04rlf"), other_name("sea")) == (
        "/m/09x0r",
        "Music",
        None,
    )


def test_audioset_classes_equal_the_official_file(real_data: Path) -> None:
    official = read_vocabulary(str(real_data / "audioset" / "class_labels_indices.csv"))
    assert audioset_names() == list(official.values())
    assert [other_name(name) for name in official.values()] == list(official)


def test_other_527_classes_make_a_new_head(
    audioset_model: tuple[AuthorsAst, str], caplog: pytest.LogCaptureFixture
) -> None:
    reference, path = audioset_model
    labels = [*audioset_names()[:526], "sea"]
    with caplog.at_level(logging.WARNING):
        model = build_model(settings(path), num_classes=527, num_mels=128, labels=labels)
    assert_names(caplog.text, path, "random weights", "1 of the 527", "'sea'")
    assert not torch.equal(model.head.weight, reference.get_parameter("mlp_head.1.weight"))


def test_machine_ids_of_a_checkpoint_match_display_names(tmp_path: Path) -> None:
    path = tmp_path / "ast.safetensors"
    theirs = our_checkpoint(path, ["/m/09x0r", "mine", "/m/04rlf"])
    labels = ["Music", "mine", "/m/09x0r"]
    model = build_model(settings(path), num_classes=3, num_mels=128, labels=labels)
    torch.testing.assert_close(logits(model), logits(theirs)[:, [2, 1, 0]])


# Fitted to another model


def test_weights_are_adapted_to_another_length_and_stride(tmp_path: Path) -> None:
    reference = AuthorsAst(3, num_frames=128)
    torch.save(reference.state_dict(), tmp_path / "ast.pth")
    shape = settings(tmp_path / "ast.pth", stride_time=10, num_frames=256, depth=1)
    model = build_model(shape, num_classes=3, num_mels=128)
    expected = adapt_position_embedding(
        reference.v.pos_embed, num_class_tokens=2, source=(8, 8), target=(8, 25)
    )
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.patch_embed.weight, reference.v.patch_embed.proj.weight)
    assert torch.equal(model.get_parameter("norm.weight"), reference.v.norm.weight)
    assert len(model.blocks) == 1
    again = settings(tmp_path / "ast.pth", position_embedding="reinitialise")
    drawn = build_model(again, num_classes=3, num_mels=128).pos_embed
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)


def our_checkpoint(path: Path, labels: list[str]) -> AST:
    """A small model of ours, exported with these classes."""
    torch.manual_seed(4)
    shape: dict[str, Any] = {
        "num_frames": 128,
        "depth": 2,
        "stride_frequency": 16,
        "stride_time": 16,
    }
    model = build_model(
        ModelSettings(backbone=TINY, pretrained=False, **shape),
        num_classes=len(labels),
        num_mels=128,
    )
    head = metadata(
        {**LIKE, **shape, "backbone": TINY},
        num_mels=128,
        labels=labels,
        mean=-5.0,
        std=3.0,
        loss="ce",
    )
    save_file(model.state_dict(), path, head)
    return model


def test_head_rows_follow_the_order_of_our_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ast.safetensors"
    theirs = our_checkpoint(path, ["dog", "cat", "rain"])
    with caplog.at_level(logging.WARNING):
        model = build_model(settings(path), num_classes=2, num_mels=128, labels=["rain", "dog"])
    assert caplog.text == ""
    torch.testing.assert_close(logits(model), logits(theirs)[:, [2, 0]])


def test_unknown_class_makes_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ast.safetensors"
    theirs = our_checkpoint(path, ["dog", "cat", "rain"])
    with caplog.at_level(logging.WARNING):
        model = build_model(
            settings(path), num_classes=3, num_mels=128, labels=["rain", "dog", "sea"]
        )
    (record,) = caplog.records
    assert_names(record.getMessage(), path, "head", "random weights", "1 of the 3", "'sea'")
    assert not torch.equal(model.head.weight, theirs.head.weight)
    assert torch.equal(model.head_norm.weight, torch.ones(192))
    name = "norm.weight"
    assert torch.equal(model.get_parameter(name), theirs.get_parameter(name))


def test_head_without_class_names_is_matched_by_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = AuthorsAst(3)
    torch.save(reference.state_dict(), tmp_path / "ast.pth")
    shape = settings(tmp_path / "ast.pth")
    with caplog.at_level(logging.WARNING):
        same = build_model(shape, num_classes=3, num_mels=128, labels=list(LABELS))
        assert_names(caplog.text, tmp_path / "ast.pth", "no names", "order")
        caplog.clear()
        other = build_model(shape, num_classes=4, num_mels=128, labels=["a", "b", "c", "d"])
        assert_names(caplog.text, tmp_path / "ast.pth", "random weights", "3 classes", 4)
    assert torch.equal(same.head.weight, reference.get_parameter("mlp_head.1.weight"))
    assert other.head.out_features == 4


# Folders of transformers


def transformers_model(**changes: Any) -> ASTForAudioClassification:
    config = ASTConfig(
        **{
            "hidden_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "frequency_stride": 16,
            "time_stride": 12,
            "max_length": 128,
            "id2label": {0: "low", 1: "high"},
            "label2id": {"low": 0, "high": 1},
            **changes,
        }
    )
    torch.manual_seed(5)
    return ASTForAudioClassification(config)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "file"])
def test_transformers_folder_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    reference = transformers_model(problem_type="single_label_classification")
    reference.save_pretrained(tmp_path)
    storage.write_json(f"{tmp_path}/preprocessor_config.json", {"mean": -6.5, "std": 5.0})
    if kind == "bin":
        # Names in memory, those of version 5.
        torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "model.safetensors" if kind == "file" else tmp_path
    checkpoint = read_ast(path)
    assert checkpoint.labels == ["low", "high"]
    assert (checkpoint.mean, checkpoint.std, checkpoint.loss) == (-6.5, 5.0, "ce")
    shape = settings(path, stride_time=12, layer_norm_eps=1e-12, head_norm_eps=1e-12)
    assert (
        checkpoint.model.items() <= {name: getattr(shape, name) for name in shape.__slots__}.items()
    )
    model = build_model(shape, num_classes=2, num_mels=128)
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers, for tests to copy."""
    path = tmp_path_factory.mktemp("transformers")
    transformers_model().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("features", "norm"),
    [
        ({"do_normalize": False, "mean": -4.0, "std": 4.5}, (0.0, 0.5)),
        ({"do_normalize": True, "mean": -4, "std": 4.5, "sampling_rate": 16_000}, (-4, 4.5)),
        ({}, (None, None)),
    ],
)
def test_normalisation_comes_from_the_feature_extractor(
    folder: Path, tmp_path: Path, features: dict[str, Any], norm: tuple[Any, Any]
) -> None:
    shutil.copytree(folder, tmp_path / "ast")
    storage.write_json(f"{tmp_path}/ast/preprocessor_config.json", features)
    checkpoint = read_ast(tmp_path / "ast")
    assert (checkpoint.mean, checkpoint.std) == norm


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("config.json", '{"hidden_size": 1', ["not valid JSON"]),
        ("config.json", "[]", ["object", "[]"]),
        ("config.json", '{"time_stride": 0}', ["time_stride", "above 0", "got 0"]),
        ("config.json", '{"max_length": "long"}', ["max_length", "integer", "'long'"]),
        ("config.json", '{"id2label": ["a"]}', ["id2label", "object", "['a']"]),
        ("preprocessor_config.json", "mean: 3", ["not valid JSON"]),
        ("preprocessor_config.json", "3", ["object", "got 3"]),
        ("preprocessor_config.json", '{"mean": "a"}', ["mean", "number", "'a'"]),
        ("preprocessor_config.json", '{"mean": 1}', ["std", "mean", None]),
        ("preprocessor_config.json", '{"mean": 1, "std": 0}', ["std", "above 0", "got 0"]),
        ("preprocessor_config.json", '{"sampling_rate": 8000}', ["8000 Hz", "16000 Hz"]),
        ("model.safetensors.index.json", '{"weight_map": 1}', ["weight_map"]),
    ],
)
def test_invalid_transformers_files_are_refused(
    folder: Path, tmp_path: Path, name: str, text: str, values: list[object]
) -> None:
    shutil.copytree(folder, tmp_path / "ast")
    (tmp_path / "ast" / name).write_text(text)
    if "index" in name:
        (tmp_path / "ast" / "model.safetensors").unlink()
    with refused(tmp_path / "ast" / name, *values):
        read_ast(tmp_path / "ast")


def test_sharded_transformers_weights_are_read(folder: Path, tmp_path: Path) -> None:
    transformers_model().save_pretrained(tmp_path, max_shard_size="1MB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    state, expected = read_ast(tmp_path).state, read_ast(folder).state
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    files[1].unlink()
    with refused(files[1], "no such file"):
        read_ast(tmp_path)


def test_generated_label_names_are_ignored(tmp_path: Path) -> None:
    transformers_model(id2label={0: "LABEL_0", 1: "LABEL_1"}).save_pretrained(tmp_path)
    assert read_ast(tmp_path).labels is None


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"time_stride": 10}, "model.safetensors", [[1, 82, 192], "8 x 12"]),
        ({"num_attention_heads": 4}, "config.json", ["attention head", "gelu, 4 and 192"]),
        ({"hidden_act": "relu"}, "config.json", ["hidden_act", "relu, 3 and 192"]),
    ],
)
def test_config_of_other_weights_is_refused(
    tmp_path: Path, change: dict[str, Any], name: str, values: list[object]
) -> None:
    transformers_model().save_pretrained(tmp_path)
    config = storage.read_json(f"{tmp_path}/config.json")
    storage.write_json(f"{tmp_path}/config.json", {**config, **change})
    with refused(tmp_path / name, *values):
        read_ast(tmp_path)


def test_incomplete_transformers_folder_is_refused(tmp_path: Path) -> None:
    transformers_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with refused("model.safetensors", "config.json", remedy="folder"):
        read_ast(tmp_path / "model.safetensors")
    (tmp_path / "other.json").rename(tmp_path / "config.json")
    (tmp_path / "model.safetensors").unlink()
    with refused(tmp_path, "config.json", "model.safetensors"):
        read_ast(tmp_path)


# Our own


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_run_initialises_training_on_other_data(
    tmp_path: Path, s3: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_prepared(str(tmp_path / "data"))
    run = f"{s3}/run" if kind == "s3" else str(tmp_path / "run")
    train(tiny_recipe(train={"epochs": 1}), dataset, run, world=World())
    recipe = tiny_recipe(model={"pretrained": True, "weights_file": run, "num_frames": 64})
    model = make_model(recipe, dataset, fresh=True)
    assert caplog.text == ""
    state = newest(run).model
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    checkpoint = read_ast(run)
    assert checkpoint.labels == list(LABELS)
    assert checkpoint.mean == storage.read_json(f"{run}/run.json")["data"]["mean"]


def test_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    run = {
        "data": {"labels": ["dog"], "mean": -5.0, "std": 3.0},
        "settings": {"model": LIKE, "train": {"loss": "bce"}},
    }
    storage.write_json(f"{tmp_path}/run.json", run)
    with refused(tmp_path, "no checkpoint"):
        read_ast(tmp_path)
    for text, value in (('{"data":', "JSON"), ("{}", "settings")):
        (tmp_path / "run.json").write_text(text)
        with refused(tmp_path / "run.json", value):
            read_ast(tmp_path)


@pytest.mark.parametrize(
    ("text", "where", "values"),
    [
        ("nojson", "ast.safetensors", ["ast_ray", "damaged", "export"]),
        ("3", "ast.safetensors", ["ast_ray", "damaged", "export"]),
        ('{"num_mels": 128}', "ast.safetensors", ["model", "labels", "mean"]),
        ({"model": 1}, "ast.safetensors", ["model", "object", "got 1"]),
        (
            {"model": {**LIKE, "stride_time": 0}},
            "ast.safetensors",
            ["stride_time", "above 0", "got 0"],
        ),
        ({"labels": ["a", "b"]}, "ast.safetensors", ["1 class", 2]),
        ({"std": "x"}, "ast.safetensors", ["std", "number", "'x'"]),
    ],
)
def test_invalid_settings_in_exported_weights_are_refused(
    tmp_path: Path, text: str | dict[str, Any], where: str, values: list[object]
) -> None:
    path = tmp_path / "ast.safetensors"
    state = our_checkpoint(path, ["dog"]).state_dict()
    if not isinstance(text, str):
        text = json.dumps({**json.loads(read_metadata(str(path))["ast_ray"]), **text})
    save_file(state, path, {"ast_ray": text})
    with refused(where, *values):
        read_ast(path)


def test_exported_weights_without_settings_are_refused(tmp_path: Path) -> None:
    model = our_checkpoint(tmp_path / "ast.safetensors", ["dog"])
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with refused("bare.safetensors", "settings", "run folder", remedy="ast.safetensors"):
        read_ast(tmp_path / "bare.safetensors")


# What does not fit


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"depth": 3}, ["missing", "blocks.2.attn.proj.bias", "8 more"]),
        (
            {"backbone": "deit_tiny_patch16_224.fb_in1k"},
            ["unexpected: dist_token", "shape: pos_embed", [1, 66, 192], [1, 65, 192]],
        ),
    ],
)
def test_mismatched_names_and_shapes_are_named(
    tmp_path: Path, changes: dict[str, Any], values: list[object]
) -> None:
    our_checkpoint(tmp_path / "ast.safetensors", ["dog"])
    shape = settings(tmp_path / "ast.safetensors")
    shape = ModelSettings(
        **{name: getattr(shape, name) for name in shape.__slots__} | changes,
    )
    with refused("ast.safetensors", *values):
        build_model(shape, num_classes=1, num_mels=128)


@pytest.mark.parametrize(
    ("changes", "num_mels", "values"),
    [
        ({}, 96, ["128 mel bins", 96]),
        ({"patch_time": 20}, 128, ["16 x 20", "model.patch_frequency=16", "model.patch_time=16"]),
    ],
)
def test_other_mel_bins_or_patch_shapes_are_refused(
    tmp_path: Path, changes: dict[str, Any], num_mels: int, values: list[object]
) -> None:
    our_checkpoint(tmp_path / "ast.safetensors", ["dog"])
    shape = settings(tmp_path / "ast.safetensors", **changes)
    with refused("ast.safetensors", *values, remedy=True):
        build_model(shape, num_classes=1, num_mels=num_mels)


@pytest.mark.parametrize(
    ("name", "value", "values"),
    [
        ("v.norm.weight", torch.full((192,), torch.nan), ["norm.weight", "NaN"]),
        ("v.pos_embed", torch.ones(1, 66, 192).int(), ["pos_embed", "int32"]),
        ("v.pos_embed", torch.ones(66), ["pos_embed", "3 dimensions", [66]]),
        ("v.pos_embed", torch.ones(2, 66, 192), [[2, 66, 192], "8 x 8"]),
        ("mlp_head.1.weight", torch.ones(1, 192), ["head.weight", "head.bias", "classes"]),
        ("mlp_head.1.weight", None, ["missing: head.weight"]),
    ],
)
def test_invalid_weights_are_refused(
    tmp_path: Path, name: str, value: Tensor | None, values: list[object]
) -> None:
    state = {**AuthorsAst(2).state_dict(), name: value}
    torch.save({key: item for key, item in state.items() if item is not None}, tmp_path / "ast.pth")
    with refused("ast.pth", *values):
        read_ast(tmp_path / "ast.pth")


def test_unexpected_or_missing_authors_weights_are_refused(tmp_path: Path) -> None:
    state = {**AuthorsAst(2).state_dict(), "mlp_head.2.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "ast.pth")
    with refused("ast.pth", "unexpected: mlp_head.2.weight"):
        read_ast(tmp_path / "ast.pth")
    del state["mlp_head.2.weight"], state["mlp_head.1.bias"]
    torch.save(state, tmp_path / "ast.pth")
    with refused("ast.pth", "missing: head.bias"):
        read_ast(tmp_path / "ast.pth")
