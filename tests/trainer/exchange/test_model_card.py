"""Cards of exported models, by the hub's own reader and by the code they show."""

import logging
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from pipeline.dataset.prepared import PreparedDataset
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from tests.support.errors import assert_names
from tests.support.exports import made_run, our_scores, python_of
from tests.support.prepared import LABELS, make_prepared, tiny_recipe
from trainer.exchange.export_transformers import export_transformers
from trainer.run.run_folder import read_run, write_run
from trainer.scores.predictions import read_metrics
from trainer.training.loop import train
from trainer.training.world import World

SHAPE = {"patch_frequency": 16, "stride_frequency": 16, "stride_time": 10}
RECIPE = tiny_recipe(model=SHAPE, train={"epochs": 2})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data") / "clips"), num_train=14, num_eval=7)


@pytest.fixture(scope="module")
def run(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("run"))
    train(RECIPE, dataset, path, world=World())
    return path


def test_front_matter_is_what_the_hub_reads(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    export_transformers(run, str(tmp_path / "barks"), licence="apache-2.0")
    card = ModelCard.load(tmp_path / "barks" / "README.md").data
    assert (card.license, card.library_name, card.model_name) == (
        "apache-2.0",
        "transformers",
        "barks",
    )
    assert card.pipeline_tag == "audio-classification"
    assert "audio-spectrogram-transformer" in card.tags
    assert card.to_dict()["labels"] == list(LABELS)
    metrics = read_metrics(run, "eval").metrics
    values = {result.metric_name: result.metric_value for result in card.eval_results}
    assert values["mAP"] == metrics.mAP
    assert values["accuracy"] == metrics.accuracy
    (first, *_) = card.eval_results
    assert (first.task_type, first.dataset_name) == ("audio-classification", "clips")
    assert first.dataset_args == {"fingerprint": dataset.card.fingerprint}


def test_text_has_the_settings_and_no_path(
    run: str, dataset: PreparedDataset, tmp_path: Path
) -> None:
    export_transformers(run, str(tmp_path / "barks"), licence="mit")
    text = (tmp_path / "barks" / "README.md").read_text()
    assert_names(text, "hf upload USER/barks", "14 clips", "2 epochs")
    assert str(Path(dataset.path).parent) not in text
    assert str(Path(run).parent) not in text
    settings = tomllib.loads(text.partition("```toml")[2].partition("```")[0])
    assert settings["model"]["num_frames"] == 64
    assert settings["data"]["mean"] == read_run(run).data.mean
    assert "stride_time" not in settings["model"]  # the default
    assert "loader" not in settings


def test_model_without_scores_or_licence_has_a_card(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made_run(str(tmp_path / "run"), dataset, RECIPE)
    write_run(run, replace(read_run(run), imported_from="/home/me/authors.pth"))
    with caplog.at_level(logging.INFO):
        export_transformers(run, str(tmp_path / "out"), "averaged")
    assert_names(caplog.text, "--licence")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown"
    assert card.data.eval_results is None
    assert_names(card.text, "not evaluated", "authors.pth", "licence is not stated")
    assert "/home/me" not in card.text


def test_code_of_the_card_scores_as_the_run_does(
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where scores are not what transformers takes for this loss."""
    recipe = tiny_recipe(model=SHAPE, train={"loss": "ce", "scores": "sigmoid"})
    run, out = made_run(str(tmp_path / "run"), dataset, recipe), tmp_path / "out"
    export_transformers(run, str(out), "averaged")
    waveform = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    soundfile.write(out / "clip.wav", waveform, 16_000, subtype="FLOAT")
    monkeypatch.chdir(out)
    capsys.readouterr()
    exec(python_of(out / "README.md"), {})
    frames = fbank(torch.from_numpy(waveform), FbankSettings())
    x = torch.zeros(1, 64, 128)
    x[0, : len(frames)] = frames
    expected = dict(zip(LABELS, our_scores(run, x)[0].tolist(), strict=True))
    printed = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    scores = {label: float(score) for label, score in printed}
    assert scores == pytest.approx(expected, abs=1e-3)
