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
from pipeline.errors import UserError
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from tests.support.prepared import LABELS, make_prepared, tiny_recipe, write_recipe
from tests.support.runs import newest
from tests.trainer.checkpoints.test_ast_checkpoint import AuthorsAst, transformers_model
from trainer.checkpoints.ast_checkpoint import EXPORTED_NAME, read_weights
from trainer.checkpoints.averaging import weights_path, write_weights
from trainer.data.augment import normalise
from trainer.exchange.export_run import export_run
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
    model = make_model(read_recipe(read_run(run)), dataset, fresh=False)
    model.load_state_dict(newest(run).model)
    return model.eval()


def inputs(run: str, fbanks: list[Tensor]) -> Tensor:
    data, num_frames = read_run(run).data, read_recipe(read_run(run)).model.num_frames
    x = torch.zeros(len(fbanks), num_frames, fbanks[0].shape[1])
    for row, one in zip(x, fbanks, strict=True):
        row[: len(one)] = one[:num_frames]
    return normalise(x, data.mean, data.std)


def made_fbanks(dataset: PreparedDataset) -> list[Tensor]:
    return [torch.tensor(dataset.read_fbank(row)) for row in range(5)]


def assert_same_logits(run: str, dataset: PreparedDataset, folder: str, x: Tensor) -> None:
    theirs = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    assert type(theirs).__name__ == "ASTForAudioClassification"
    with torch.no_grad():
        ours, found = load_run_model(run, dataset)(x), theirs(x).logits
    assert ours.std() > 0.01
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=0)


# Out


def test_transformers_gives_our_logits(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    export_run(run, str(tmp_path))
    assert_same_logits(run, dataset, str(tmp_path), inputs(run, made_fbanks(dataset)))
    assert any("encoder.layer.1.attention" in name for name in load_file(tmp_path / NAME))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {label: row for row, label in enumerate(LABELS)}
    assert config.problem_type == "multi_label_classification"


NAME = "model.safetensors"


def test_real_recordings_through_the_pipeline_of_transformers(
    run: str, dataset: PreparedDataset, esc10: Path, tmp_path: Path
) -> None:
    export_run(run, str(tmp_path))
    paths = sorted((esc10 / "audio").iterdir())[::100]
    waves = [
        decode_audio(path.read_bytes(), DecodeSettings(), sample_rate_hz=16_000) for path in paths
    ]
    x = inputs(run, [fbank(torch.tensor(wave), FbankSettings()) for wave in waves])
    assert_same_logits(run, dataset, str(tmp_path), x)
    classify = transformers.pipeline("audio-classification", str(tmp_path), top_k=None)
    with torch.no_grad():
        scores = torch.sigmoid(load_run_model(run, dataset)(x))
    for row, wave in enumerate(waves):
        found = classify({"raw": wave, "sampling_rate": 16_000})
        by_label = {one["label"]: one["score"] for one in found}
        expected = dict(zip(LABELS, scores[row].tolist(), strict=True))
        assert by_label == pytest.approx(expected, abs=1e-3)


def test_short_clips_of_a_run_in_buckets_are_told_of(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path / "run")
    sampler = replace(RECIPE.sampler, bucket_frames=(48, 56))
    train(replace(RECIPE, sampler=sampler), dataset, run, world=World())
    with caplog.at_level(logging.WARNING):
        export_run(run, str(tmp_path / "out"))
    notice = "was trained and evaluated on clips padded to the next of [48, 56] frames"
    assert f"{run}: {notice}" in caplog.text


def test_the_two_eps_of_our_norms_do_not_show(
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
    torch.save(document, path / "checkpoints" / "step-00000001.pt")
    export_run(str(path), str(tmp_path / "out"))
    x = inputs(run, made_fbanks(dataset))
    assert_same_logits(str(path), dataset, str(tmp_path / "out"), x)
    before = model(x)
    model.head_norm.eps = 1e-6
    assert (model(x) - before).abs().max() > 0.01


def test_an_import_that_was_stopped_is_done_again(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    again = str(tmp_path / "again")
    import_run(run, dataset.path, again, "", [])
    storage.remove(f"{again}/run.json")
    import_run(run, dataset.path, again, "", [])
    storage.remove(f"{again}/run.json")
    (tmp_path / "again" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"not empty, notes\.txt is there already"):
        import_run(run, dataset.path, again, "", [])


def test_what_is_exported_comes_back_bit_by_bit(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    export_run(run, str(tmp_path / "out"))
    for source in ("out", "out/ast.safetensors"):
        again = str(tmp_path / ("from-" + source.replace("/", "-")))
        import_run(str(tmp_path / source), dataset.path, again, "", [])
        state = newest(again).model
        assert all(torch.equal(value, state[name]) for name, value in newest(run).model.items())
        before, after = (read_run(path).data for path in (run, again))
        assert (after.mean, after.std) == (before.mean, before.std)
        assert read_recipe(read_run(again)).model == RECIPE.model


@pytest.mark.parametrize(
    "model", [{"backbone": "deit_tiny_patch16_224"}, {"patch_time": 8, "stride_time": 8}]
)
def test_models_that_transformers_has_no_class_for(
    dataset: PreparedDataset, tmp_path: Path, model: dict[str, Any]
) -> None:
    recipe = tiny_recipe(model={**SHAPE, **model}, train={"epochs": 1})
    train(recipe, dataset, str(tmp_path / "run"), world=World())
    with pytest.raises(UserError, match="transformers has no class for this model: "):
        export_run(str(tmp_path / "run"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_weights_than_the_last(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    halved = {name: value / 2 for name, value in newest(run).model.items()}
    with pytest.raises(UserError, match=r"no weights 'best' there; .* train.select_by ask for"):
        export_run(run, str(tmp_path / "out"), "best")
    copy = shutil.copytree(run, tmp_path / "run")
    write_weights(str(copy), "best", halved)
    export_run(str(copy), str(tmp_path / "out"), "best")
    import_run(str(tmp_path / "out"), dataset.path, str(tmp_path / "again"), "", [])
    state = newest(str(tmp_path / "again")).model
    assert all(torch.equal(value, state[name]) for name, value in halved.items())


def test_other_weights_need_no_checkpoint_but_must_be_whole(run: str, tmp_path: Path) -> None:
    write_run(str(tmp_path), read_run(run))
    write_weights(str(tmp_path), "averaged", newest(run).model)
    export_run(str(tmp_path), str(tmp_path / "out"), "averaged")
    state, expected = (
        load_file(path)
        for path in (tmp_path / "out" / EXPORTED_NAME, weights_path(str(tmp_path), "averaged"))
    )
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    for path in (tmp_path / "epochs" / "averaged.safetensors", tmp_path / "out" / EXPORTED_NAME):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"averaged\.safetensors: damaged .* or take other weights"):
        export_run(str(tmp_path), str(tmp_path / "again"), "averaged")
    with pytest.raises(UserError, match=r"ast\.safetensors: damaged "):
        read_weights(str(tmp_path / "out"), {})
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("place", ["local", "s3"])
def test_nothing_is_exported_over_what_is_there(
    run: str, tmp_path: Path, s3: str, place: str
) -> None:
    out = f"{s3}/out" if place == "s3" else str(tmp_path)
    storage.write_bytes(f"{out}/shards/train-00000.tar", b"data")
    message = f"^{out}: not empty, shards/train-00000.tar is there already; give another --out$"
    with pytest.raises(UserError, match=message):
        export_run(run, out)
    assert storage.list_files(out) == [f"{out}/shards/train-00000.tar"]


def test_a_run_that_has_no_checkpoint(run: str, tmp_path: Path) -> None:
    write_run(str(tmp_path), read_run(run))
    with pytest.raises(UserError, match="the run has no checkpoint yet"):
        export_run(str(tmp_path), str(tmp_path / "out"))


# In


def authors_file(folder: Path, num_classes: int = 3, name: str = "authors.pth") -> tuple[Any, str]:
    model = AuthorsAst(num_classes)
    torch.save(model.state_dict(), folder / name)
    return model.eval(), str(folder / name)


def test_an_imported_model_gives_the_logits_of_the_authors_model(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
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
def test_an_imported_model_is_evaluated_averaged_and_reported_as_a_run(
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
        assert f"{run}: an imported model, which has no training" in capsys.readouterr().err
        assert ray_job.main(["evaluate", run, "--split", "eval"]) == 0
    found = read_predictions(runs[0], "eval")
    rows = [dataset.index["id"].to_pylist().index(one) for one in found.ids]
    x = inputs(runs[0], [torch.tensor(dataset.read_fbank(row)) for row in rows])
    with torch.no_grad():
        np.testing.assert_allclose(found.scores, torch.sigmoid(model(x)), atol=1e-5)
    out = str(tmp_path / "runs")
    command = ["ensemble", file, "--seeds", "0", "1", "--data", dataset.path, "--out", out]
    assert ray_job.main(command) == 0
    np.testing.assert_allclose(read_predictions(out, "eval").scores, found.scores, atol=1e-6)
    assert ray_job.main(["report", *runs]) == 0
    assert (Path(runs[0]) / "report.html").exists()


def test_settings_are_the_checkpoints_where_nothing_else_is_said(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    model, path = authors_file(tmp_path)
    import_run(path, dataset.path, str(tmp_path / "run"), "", [])
    recipe = read_recipe(read_run(str(tmp_path / "run")))
    assert (recipe.model.stride_time, recipe.model.num_frames, recipe.model.depth) == (16, 128, 2)
    import_run(path, dataset.path, str(tmp_path / "long"), "", ["model.num_frames=200"])
    assert read_recipe(read_run(str(tmp_path / "long"))).model.num_frames == 200
    longer = load_run_model(str(tmp_path / "long"), dataset)
    assert longer.pos_embed.shape == (1, 2 + 8 * 12, 192)
    assert torch.equal(longer.pos_embed[:, :2], model.v.pos_embed[:, :2])
    assert read_run(str(tmp_path / "long")).data.num_train_clips == 0


def test_what_no_one_tells_is_taken_from_the_data_with_a_notice(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = authors_file(tmp_path)
    import_run(path, dataset.path, str(tmp_path / "told"), "", ["data.mean=-5", "data.std=3"])
    assert "normalised" not in caplog.text
    import_run(path, dataset.path, str(tmp_path / "run"), "", [])
    facts = read_run(str(tmp_path / "run")).data
    notice = "authors.pth: does not tell what its inputs were normalised with; taken from the data"
    assert notice in caplog.text
    assert f"data.mean={facts.mean:.4f}, data.std={facts.std:.4f}" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.position_embedding=reinitialise", "has no effect on a model that is not trained"),
        ("model.pretrained=false", "has no effect"),
        ("model.patchout_time=2", "has no effect"),
        ("schedule.lr=0.1", "has no effect"),
        ("train.epochs=3", "has no effect"),
        ("augment.mixup_share=0.5", "has no effect"),
        ("schedule.rate=0.1", "no key schedule.rate"),
        ("model.weights_file=other.pth", "the checkpoint is where the weights come from$"),
    ],
)
def test_settings_without_effect_are_refused(
    dataset: PreparedDataset, tmp_path: Path, override: str, message: str
) -> None:
    _, path = authors_file(tmp_path)
    with pytest.raises(UserError, match=f"^--set {override}: {message}"):
        import_run(path, dataset.path, str(tmp_path / "run"), "", [override])
    assert not (tmp_path / "run").exists()


def test_settings_with_an_effect_are_taken(dataset: PreparedDataset, tmp_path: Path) -> None:
    given = ["train.loss=ce", "train.batch_size=3", "train.seed=4", "loader.threads=1"]
    given += ["model.stride_time=8", "model.head_norm_eps=1e-6", "data.fold=1"]
    import_run(authors_file(tmp_path)[1], dataset.path, str(tmp_path / "run"), "", given)
    settings = read_run(str(tmp_path / "run")).settings
    for one in given:
        name, _, value = one.partition("=")
        section, _, key = name.partition(".")
        assert str(settings[section][key]) == str(float(value) if "eps" in key else value)


def test_a_model_of_other_mel_bins(dataset: PreparedDataset, tmp_path: Path) -> None:
    names = dict(enumerate(LABELS))
    transformers_model(num_mel_bins=64, id2label=names).save_pretrained(tmp_path / "ast")
    with pytest.raises(UserError, match="the model is for 64 mel bins, and the data has 128; take"):
        import_run(str(tmp_path / "ast"), dataset.path, str(tmp_path / "run"), "", [])
    assert not (tmp_path / "run").exists()


def test_a_setting_of_the_checkpoint_that_is_out_of_range(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    names = dict(enumerate(LABELS))
    transformers_model(layer_norm_eps=2.0, id2label=names).save_pretrained(tmp_path)
    message = f"^{tmp_path}/model.safetensors: model.layer_norm_eps: must be at least 0 and below 1"
    with pytest.raises(UserError, match=message):
        import_run(str(tmp_path), dataset.path, str(tmp_path / "run"), "", [])


def test_a_report_of_a_model_that_was_not_evaluated(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    import_run(authors_file(tmp_path)[1], dataset.path, str(tmp_path / "run"), "", [])
    assert Path(write_report([str(tmp_path / "run")])).exists()


def test_classes_are_left_out_and_ordered_by_name(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    export_run(run, str(tmp_path / "out"))
    config = storage.read_json(f"{tmp_path}/out/config.json")
    (tmp_path / "out" / "ast.safetensors").unlink()
    other = {"0": LABELS[2], "1": LABELS[0], "2": LABELS[1]}
    storage.write_json(f"{tmp_path}/out/config.json", {**config, "id2label": other})
    done = import_run(str(tmp_path / "out"), dataset.path, str(tmp_path / "run"), "", [])
    assert (done.num_classes, done.num_classes_left_out, done.by_name) == (3, 0, True)
    bias = newest(run).model["head.bias"]
    assert torch.equal(newest(str(tmp_path / "run")).model["head.bias"], bias[[1, 2, 0]])


def test_what_cannot_be_imported(run: str, dataset: PreparedDataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot score .*: it has 4 classes without names, .* 3$"):
        import_run(authors_file(tmp_path, 4)[1], dataset.path, out, "", [])
    with pytest.raises(UserError, match=r"cannot score .*: 3 of the .* 3 classes .*: low, middle"):
        import_run(authors_file(tmp_path, 35)[1], dataset.path, out, "", [])
    torch.save(AuthorsAst(2).v.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"not a whole AST; .* --set model\.weights_file="):
        import_run(str(tmp_path / "backbone.pth"), dataset.path, out, "", [])
    with pytest.raises(UserError, match=r"a run is there .*; give another --out"):
        import_run(run, dataset.path, run, "", [])
    assert not Path(out).exists()
