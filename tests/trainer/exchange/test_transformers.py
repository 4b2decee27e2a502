"""Trained models into run folders and out of them, against transformers and the authors' model."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import ray_job
from pipeline import storage
from pipeline.audio.decode import decode_audio
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import SettingError, UserError
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.prepared import LABELS, make_prepared, tiny_recipe, write_recipe
from tests.support.runs import newest
from tests.trainer.checkpoints.test_ast_checkpoint import AuthorsAst, transformers_model
from trainer.checkpoints.averaging import write_weights
from trainer.checkpoints.from_own import EXPORTED_NAME
from trainer.checkpoints.paths import weights_path
from trainer.checkpoints.read_weights import read_weights
from trainer.data.augment import normalise
from trainer.exchange.export_transformers import export_transformers
from trainer.exchange.import_run import import_run
from trainer.model.ast import AST
from trainer.report.write import write_report
from trainer.run.history import is_finished
from trainer.run.run_folder import read_recipe, read_run, write_run
from trainer.scores.predictions import read_predictions
from trainer.training.loop import make_model, train
from trainer.training.world import World

SHAPE = {"patch_frequency": 16, "stride_frequency": 16, "stride_time": 10, "depth": 2}
RECIPE = tiny_recipe(model=SHAPE, train={"epochs": 1})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), num_train=14, num_eval=7)


@pytest.fixture(scope="module")
def run(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run of square patches and two class tokens."""
    path = str(tmp_path_factory.mktemp("run"))
    train(RECIPE, dataset, path, world=World())
    return path


def load_run_model(run: str, dataset: PreparedDataset) -> AST:
    model = make_model(read_recipe(run, read_run(run)), dataset, fresh=False)
    model.load_state_dict(newest(run).model)
    return model.eval()


def inputs(run: str, fbanks: list[Tensor]) -> Tensor:
    data, num_frames = read_run(run).data, read_recipe(run, read_run(run)).model.num_frames
    x = torch.zeros(len(fbanks), num_frames, fbanks[0].shape[1])
    for row, frames in zip(x, fbanks, strict=True):
        row[: len(frames)] = frames[:num_frames]
    return normalise(x, data.mean, data.std)


def made_fbanks(dataset: PreparedDataset) -> list[Tensor]:
    return [torch.tensor(dataset.read_fbank(row)) for row in range(5)]


def assert_same_logits(run: str, dataset: PreparedDataset, folder: str, x: Tensor) -> None:
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    assert type(theirs).__name__ == "ASTForAudioClassification"
    with torch.no_grad():
        ours, expected = load_run_model(run, dataset)(x), theirs(x).logits
    assert ours.std() > 0.01
    torch.testing.assert_close(expected, ours, atol=1e-4, rtol=0)


# Out


def test_transformers_gives_our_logits(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    export_transformers(run, str(tmp_path))
    assert_same_logits(run, dataset, str(tmp_path), inputs(run, made_fbanks(dataset)))
    assert any("encoder.layer.1.attention" in name for name in load_file(tmp_path / NAME))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {label: row for row, label in enumerate(LABELS)}
    assert config.problem_type == "multi_label_classification"


NAME = "model.safetensors"


def test_transformers_pipeline_scores_real_recordings_alike(
    run: str, dataset: PreparedDataset, esc10: Path, tmp_path: Path
) -> None:
    export_transformers(run, str(tmp_path))
    paths = sorted((esc10 / "audio").iterdir())[::100]
    waves = [
        decode_audio(path.read_bytes(), DecodeSettings(), sample_rate_hz=16_000).samples
        for path in paths
    ]
    x = inputs(run, [fbank(torch.tensor(wave), FbankSettings()) for wave in waves])
    assert_same_logits(run, dataset, str(tmp_path), x)
    classify = transformers.pipeline("audio-classification", str(tmp_path), top_k=None)
    with torch.no_grad():
        scores = torch.sigmoid(load_run_model(run, dataset)(x))
    for row, wave in enumerate(waves):
        results = classify({"raw": wave, "sampling_rate": 16_000})
        by_label = {result["label"]: result["score"] for result in results}
        expected = dict(zip(LABELS, scores[row].tolist(), strict=True))
        assert by_label == pytest.approx(expected, abs=1e-3)


def test_export_of_a_run_in_buckets_warns_about_padding(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path / "run")
    sampler = replace(RECIPE.sampler, bucket_frames=(48, 56))
    train(replace(RECIPE, sampler=sampler), dataset, run, world=World())
    with caplog.at_level(logging.WARNING):
        export_transformers(run, str(tmp_path / "out"))
    assert_names(caplog.text, run, "[48, 56] frames")


def test_head_norm_eps_survives_the_export(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    """Where the head's input varies so little that its eps counts as much as the variance."""
    model = load_run_model(run, dataset)
    with torch.no_grad():
        model.get_parameter("norm.weight").mul_(0.003)
        model.head.weight.mul_(50)
    saved = newest(run)
    path = tmp_path / "run"
    write_run(str(path), read_run(run))
    (path / "checkpoints").mkdir()
    document = {"optimiser": saved.optimiser, "model": model.state_dict(), "progress": {}}
    torch.save(document, path / "checkpoints" / "step-00000000.pt")
    export_transformers(str(path), str(tmp_path / "out"))
    x = inputs(run, made_fbanks(dataset))
    assert_same_logits(str(path), dataset, str(tmp_path / "out"), x)
    before = model(x)
    model.head_norm.eps = 1e-6
    assert (model(x) - before).abs().max() > 0.01


def test_interrupted_import_is_repeated(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    again = str(tmp_path / "again")
    import_run(run, dataset.path, again, "", [])
    storage.remove(f"{again}/run.json")
    import_run(run, dataset.path, again, "", [])
    storage.remove(f"{again}/run.json")
    (tmp_path / "again" / "notes.txt").touch()
    with refused(again, "notes.txt", remedy="--out"):
        import_run(run, dataset.path, again, "", [])


def test_export_and_import_round_trip_bit_by_bit(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    export_transformers(run, str(tmp_path / "out"))
    for source in ("out", "out/ast.safetensors"):
        again = str(tmp_path / ("from-" + source.replace("/", "-")))
        import_run(str(tmp_path / source), dataset.path, again, "", [])
        state = newest(again).model
        assert all(torch.equal(value, state[name]) for name, value in newest(run).model.items())
        before, after = (read_run(path).data for path in (run, again))
        assert (after.mean, after.std) == (before.mean, before.std)
        assert read_recipe(again, read_run(again)).model == RECIPE.model


@pytest.mark.parametrize(
    "model", [{"backbone": "deit_tiny_patch16_224.fb_in1k"}, {"patch_time": 8, "stride_time": 8}]
)
def test_models_unknown_to_transformers_are_refused(
    dataset: PreparedDataset, tmp_path: Path, model: dict[str, Any]
) -> None:
    recipe = tiny_recipe(model={**SHAPE, **model}, train={"epochs": 1})
    train(recipe, dataset, str(tmp_path / "run"), world=World())
    shape = {"backbone": "deit_tiny_distilled_patch16_224.fb_in1k", "patch_time": 16, **model}
    names = ("transformers", shape["backbone"], f"16 x {shape['patch_time']}")
    with refused("", *names, remedy="--format onnx"):
        export_transformers(str(tmp_path / "run"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_best_weights_are_exported_on_request(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    halved = {name: value / 2 for name, value in newest(run).model.items()}
    with refused(run, "'best'", remedy="train.select_by"):
        export_transformers(run, str(tmp_path / "out"), "best")
    copy = shutil.copytree(run, tmp_path / "run")
    write_weights(str(copy), "best", halved)
    export_transformers(str(copy), str(tmp_path / "out"), "best")
    import_run(str(tmp_path / "out"), dataset.path, str(tmp_path / "again"), "", [])
    state = newest(str(tmp_path / "again")).model
    assert all(torch.equal(value, state[name]) for name, value in halved.items())


def test_averaged_weights_need_no_checkpoint_but_must_be_intact(run: str, tmp_path: Path) -> None:
    write_run(str(tmp_path), read_run(run))
    write_weights(str(tmp_path), "averaged", newest(run).model)
    export_transformers(str(tmp_path), str(tmp_path / "out"), "averaged")
    state, expected = (
        load_file(path)
        for path in (tmp_path / "out" / EXPORTED_NAME, weights_path(str(tmp_path), "averaged"))
    )
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    for path in (tmp_path / "epochs" / "averaged.safetensors", tmp_path / "out" / EXPORTED_NAME):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with refused("epochs/averaged.safetensors", "damaged", "checksum", remedy="restore"):
        export_transformers(str(tmp_path), str(tmp_path / "again"), "averaged")
    with refused("out/ast.safetensors", "damaged", "checksum", remedy="restore"):
        read_weights(str(tmp_path / "out"), {})
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_export_into_a_folder_with_files_is_refused(
    run: str, tmp_path: Path, s3: str, kind: str
) -> None:
    out = f"{s3}/out" if kind == "s3" else str(tmp_path)
    storage.write_bytes(f"{out}/shards/train-00000.tar", b"data")
    with refused(out, "shards/train-00000.tar", remedy="--out"):
        export_transformers(run, out)
    assert storage.list_files(out) == [f"{out}/shards/train-00000.tar"]


def test_export_of_a_run_without_checkpoint_is_refused(run: str, tmp_path: Path) -> None:
    write_run(str(tmp_path), read_run(run))
    with refused(tmp_path, "no checkpoint"):
        export_transformers(str(tmp_path), str(tmp_path / "out"))


# In


def authors_file(folder: Path, num_classes: int = 3, name: str = "authors.pth") -> tuple[Any, str]:
    model = AuthorsAst(num_classes)
    torch.save(model.state_dict(), folder / name)
    return model.eval(), str(folder / name)


def test_imported_model_gives_the_authors_logits(dataset: PreparedDataset, tmp_path: Path) -> None:
    model, path = authors_file(tmp_path)
    run = str(tmp_path / "run")
    done = import_run(path, dataset.path, run, "", [])
    assert (done.num_classes, done.num_classes_left_out, done.by_name) == (3, 0, False)
    x = inputs(run, made_fbanks(dataset))
    with torch.no_grad():
        torch.testing.assert_close(load_run_model(run, dataset)(x), model(x), atol=1e-5, rtol=0)
    assert is_finished(run)


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_imported_model_is_evaluated_averaged_and_reported(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = authors_file(tmp_path)
    recipe = tiny_recipe(
        data={"mean": -5.0, "std": 3.0},
        model={**SHAPE, "stride_time": 16, "num_frames": 128},
        augment={"frequency_mask": 0, "time_mask": 0},
    )
    file = str(write_recipe(tmp_path / "tiny.toml", recipe))
    runs = [str(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    for seed, run in enumerate(runs):
        options = ["--data", dataset.path, "--recipe", file, "--set", f"train.seed={seed}"]
        assert ray_job.main(["import", path, "--out", run, *options]) == 0
        assert "3 classes, assumed to be in the order of the data" in capsys.readouterr().out
        assert is_finished(run)
        trained = ["train", file, "--data", dataset.path, "--out", run]
        assert ray_job.main([*trained, "--set", f"train.seed={seed}"]) == 1
        assert_error_line(capsys.readouterr().err, run, "imported")
        assert ray_job.main(["evaluate", run, "--split", "eval"]) == 0
    predictions = read_predictions(runs[0], "eval")
    rows = [dataset.index["id"].to_pylist().index(clip_id) for clip_id in predictions.ids]
    x = inputs(runs[0], [torch.tensor(dataset.read_fbank(row)) for row in rows])
    with torch.no_grad():
        np.testing.assert_allclose(predictions.scores, torch.sigmoid(model(x)), atol=1e-5)
    out = str(tmp_path / "runs")
    command = ["ensemble", file, "--seeds", "0", "1", "--data", dataset.path, "--out", out]
    assert ray_job.main(command) == 0
    np.testing.assert_allclose(read_predictions(out, "eval").scores, predictions.scores, atol=1e-6)
    assert ray_job.main(["report", *runs]) == 0
    assert (Path(runs[0]) / "report.html").exists()


def test_import_takes_settings_from_the_checkpoint(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    model, path = authors_file(tmp_path)
    import_run(path, dataset.path, str(tmp_path / "run"), "", [])
    recipe = read_recipe(str(tmp_path / "run"), read_run(str(tmp_path / "run")))
    assert (recipe.model.stride_time, recipe.model.num_frames, recipe.model.depth) == (16, 128, 2)
    import_run(path, dataset.path, str(tmp_path / "long"), "", ["model.num_frames=200"])
    assert (
        read_recipe(str(tmp_path / "long"), read_run(str(tmp_path / "long"))).model.num_frames
        == 200
    )
    longer = load_run_model(str(tmp_path / "long"), dataset)
    assert longer.pos_embed.shape == (1, 2 + 8 * 12, 192)
    assert torch.equal(longer.pos_embed[:, :2], model.v.pos_embed[:, :2])
    assert read_run(str(tmp_path / "long")).data.num_train_clips == 0


def test_unknown_normalisation_comes_from_the_data_with_a_notice(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = authors_file(tmp_path)
    import_run(path, dataset.path, str(tmp_path / "given"), "", ["data.mean=-5", "data.std=3"])
    assert "normalised" not in caplog.text
    import_run(path, dataset.path, str(tmp_path / "run"), "", [])
    data = read_run(str(tmp_path / "run")).data
    assert "authors.pth: " in caplog.text
    assert f"data.mean={data.mean:.4f}, data.std={data.std:.4f}" in caplog.text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.position_embedding=reinitialise", "no effect"),
        ("model.pretrained=false", "no effect"),
        ("model.patchout_time=2", "no effect"),
        ("schedule.lr=0.1", "no effect"),
        ("train.epochs=3", "no effect"),
        ("augment.mixup_share=0.5", "no effect"),
        ("schedule.rate=0.1", "no key schedule.rate"),
        ("model.weights_file=other.pth", "checkpoint"),
    ],
)
def test_settings_without_effect_are_refused(
    dataset: PreparedDataset, tmp_path: Path, override: str, value: str
) -> None:
    _, path = authors_file(tmp_path)
    kind = SettingError if "no key" in value else UserError
    with refused(f"--set {override}", value, type=kind):
        import_run(path, dataset.path, str(tmp_path / "run"), "", [override])
    assert not (tmp_path / "run").exists()


def test_settings_with_an_effect_are_applied(dataset: PreparedDataset, tmp_path: Path) -> None:
    given = ["train.loss=ce", "train.batch_size=3", "train.seed=4", "loader.threads=1"]
    given += ["model.stride_time=8", "model.head_norm_eps=1e-6", "data.fold=1"]
    import_run(authors_file(tmp_path)[1], dataset.path, str(tmp_path / "run"), "", given)
    settings = read_run(str(tmp_path / "run")).settings
    for override in given:
        name, _, value = override.partition("=")
        section, _, key = name.partition(".")
        assert str(settings[section][key]) == str(float(value) if "eps" in key else value)


def test_model_with_other_mel_bins_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    names = dict(enumerate(LABELS))
    transformers_model(num_mel_bins=64, id2label=names).save_pretrained(tmp_path / "ast")
    with refused("ast/model.safetensors", "64 mel bins", 128, remedy=True):
        import_run(str(tmp_path / "ast"), dataset.path, str(tmp_path / "run"), "", [])
    assert not (tmp_path / "run").exists()


def test_checkpoint_setting_out_of_range_is_refused(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    names = dict(enumerate(LABELS))
    transformers_model(layer_norm_eps=2.0, id2label=names).save_pretrained(tmp_path)
    setting = "model.layer_norm_eps"
    path = tmp_path / "model.safetensors"
    with refused(path, setting, "got 2.0", type=SettingError, setting=setting):
        import_run(str(tmp_path), dataset.path, str(tmp_path / "run"), "", [])


def test_model_without_evaluation_can_be_reported(dataset: PreparedDataset, tmp_path: Path) -> None:
    import_run(authors_file(tmp_path)[1], dataset.path, str(tmp_path / "run"), "", [])
    assert Path(write_report([str(tmp_path / "run")])).exists()


def test_classes_are_ordered_by_name(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    export_transformers(run, str(tmp_path / "out"))
    config = storage.read_json(f"{tmp_path}/out/config.json")
    (tmp_path / "out" / "ast.safetensors").unlink()
    other = {"0": LABELS[2], "1": LABELS[0], "2": LABELS[1]}
    storage.write_json(f"{tmp_path}/out/config.json", {**config, "id2label": other})
    done = import_run(str(tmp_path / "out"), dataset.path, str(tmp_path / "run"), "", [])
    assert (done.num_classes, done.num_classes_left_out, done.by_name) == (3, 0, True)
    bias = newest(run).model["head.bias"]
    assert torch.equal(newest(str(tmp_path / "run")).model["head.bias"], bias[[1, 2, 0]])


def test_unsuitable_checkpoints_are_not_imported(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    with refused("authors.pth", dataset.path, "4 classes", 3):
        import_run(authors_file(tmp_path, 4)[1], dataset.path, out, "", [])
    with refused("authors.pth", dataset.path, "3 of", "low, middle"):
        import_run(authors_file(tmp_path, 35)[1], dataset.path, out, "", [])
    torch.save(AuthorsAst(2).v.state_dict(), tmp_path / "backbone.pth")
    backbone = str(tmp_path / "backbone.pth")
    with refused(backbone, "AST", remedy=f"--set model.weights_file={backbone}"):
        import_run(backbone, dataset.path, out, "", [])
    with refused(run, "run.json", remedy="--out"):
        import_run(run, dataset.path, run, "", [])
    assert not Path(out).exists()
