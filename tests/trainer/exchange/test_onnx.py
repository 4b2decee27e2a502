"""Models in ONNX, by onnxruntime, against ours."""

import importlib.util
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from torch import Tensor

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.exports import made_run, our_scores, python_of
from tests.support.prepared import LABELS, make_prepared, tiny_recipe
from trainer.data.clips import select_clips
from trainer.exchange import onnx_graph
from trainer.exchange.export_onnx import OnnxExport, export_onnx
from trainer.exchange.settings import OnnxSettings
from trainer.run.run_folder import read_run, write_run
from trainer.scores.metrics import evaluate_scores
from trainer.studies.ensemble.result import EnsembleResult, MemberEntry

ROOT = Path(__file__).resolve().parents[3]
SQUARE = tiny_recipe(
    model={"patch_frequency": 16, "stride_frequency": 16, "stride_time": 10, "depth": 2}
)
ODD = tiny_recipe(
    model={
        "backbone": "deit_tiny_patch16_224.fb_in1k",
        "patch_frequency": 32,
        "patch_time": 8,
        "stride_frequency": 16,
        "stride_time": 8,
        "patchout_time": 2,
        "compile": True,
    },
    sampler={"bucket_frames": [24, 48]},
    train={"loss": "ce"},
)
"""One class token, patches that are not square, patchout, compiled blocks, buckets and softmax."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), num_train=14, num_eval=20)


@pytest.fixture(scope="module")
def square(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_run(str(tmp_path_factory.mktemp("square")), dataset, SQUARE)


@pytest.fixture(scope="module")
def odd(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_run(str(tmp_path_factory.mktemp("odd")), dataset, ODD, num_mels=80)


@pytest.fixture(scope="module")
def exported(
    square: str, dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OnnxExport]:
    """Log-mels in, and an 8-bit copy, scored on the evaluation clips."""
    out = tmp_path_factory.mktemp("exported")
    settings, clips = OnnxSettings(int8=True), select_clips(dataset, "eval")
    return out, export_onnx(square, str(out), "averaged", settings, clips=clips, licence="mit")


@pytest.fixture(scope="module")
def with_fbank(odd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waveforms in."""
    out = tmp_path_factory.mktemp("with-fbank")
    export_onnx(odd, str(out), "averaged", OnnxSettings(with_fbank=True))
    return out


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


@pytest.mark.parametrize(
    ("num_clips", "num_frames"), [(1, 64), (3, 64), (1, 16), (3, 25), (1, 26), (3, 63)]
)
def test_scores_of_log_mels_are_ours(
    exported: tuple[Path, OnnxExport], square: str, num_clips: int, num_frames: int
) -> None:
    model = session(exported[0] / "model.onnx")
    raw = torch.randn(num_clips, num_frames, 128) * 4 - 6
    raw[0, num_frames // 2 :] = 0  # padding
    (scores,) = model.run(["scores"], {"log_mel": raw.numpy()})
    expected = our_scores(square, raw)
    assert expected.std() > 0.05
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_log_mels_too_long_or_too_short_are_rejected(exported: tuple[Path, OnnxExport]) -> None:
    model = session(exported[0] / "model.onnx")
    for num_frames in (15, 80):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            model.run(None, {"log_mel": np.zeros((1, num_frames, 128), np.float32)})


@pytest.mark.parametrize(("longest", "lengths"), [(16, [16]), (32, [16, 25, 26, 32])])
def test_models_of_one_or_two_columns_take_every_length(
    dataset: PreparedDataset, tmp_path: Path, longest: int, lengths: list[int]
) -> None:
    """Where the tracer may take the number of columns for a constant."""
    recipe = tiny_recipe(model={"num_frames": longest, "stride_time": 10}, augment={"time_mask": 0})
    run = made_run(str(tmp_path / "run"), dataset, recipe)
    export_onnx(run, str(tmp_path / "out"), "averaged")
    model = session(tmp_path / "out" / "model.onnx")
    for num_frames in lengths:
        raw = torch.randn(3, num_frames, 128) * 4 - 6
        (scores,) = model.run(None, {"log_mel": raw.numpy()})
        np.testing.assert_allclose(scores, our_scores(run, raw), rtol=0, atol=1e-4)


def test_model_too_large_for_a_file_is_refused(
    square: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 4 * read_run(square).num_parameters - 1)
    with refused(square, f"{read_run(square).num_parameters:,}", remedy="--format transformers"):
        export_onnx(square, str(tmp_path / "out"), "averaged")
    assert not (tmp_path / "out").exists()


def padded(waveforms: Tensor, num_mels: int) -> Tensor:
    """Log-mels as evaluation pads them to the lengths of `ODD`."""
    frames = fbank(waveforms, FbankSettings(num_mels=num_mels)).half().float()[:, :64]
    length = next(edge for edge in (24, 48, 64) if edge >= frames.shape[1])
    x = torch.zeros(len(waveforms), length, num_mels)
    x[:, : frames.shape[1]] = frames
    return x


@pytest.mark.parametrize("num_clips", [1, 3])
@pytest.mark.parametrize(
    "num_samples",
    # One frame; 24 and 25 frames, where the next bucket begins; 64 frames; more, which are cut.
    [400, 4079 + 160, 4080 + 160, 6000, 400 + 63 * 160, 20_000],
)
def test_scores_of_waveforms_are_ours(
    with_fbank: Path, odd: str, num_clips: int, num_samples: int
) -> None:
    model = session(with_fbank / "model.onnx")
    seconds = torch.arange(num_samples) / 16_000
    waves = [torch.sin(2 * torch.pi * 300 * (k + 1) * seconds) / 2 for k in range(num_clips)]
    noise = torch.randn(num_clips, num_samples) * torch.tensor([0.2, 0.001, 1e-5])[:num_clips, None]
    waveforms = torch.stack(waves) * torch.tensor([0.0, 1.0, 0.3])[:num_clips, None] + noise + 0.01
    (scores,) = model.run(["scores"], {"waveform": waveforms.numpy()})
    expected = our_scores(odd, padded(waveforms, 80))
    assert expected.std() > 0.05
    assert num_clips == 1 or expected.std(axis=0).max() > 0.002
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_scores_of_silence_are_ours(with_fbank: Path, odd: str) -> None:
    silence = torch.zeros(3, 8000)
    (scores,) = session(with_fbank / "model.onnx").run(None, {"waveform": silence.numpy()})
    np.testing.assert_allclose(scores, our_scores(odd, padded(silence, 80)), rtol=0, atol=1e-4)


def test_waveforms_shorter_than_a_frame_are_rejected(with_fbank: Path) -> None:
    model = session(with_fbank / "model.onnx")
    with pytest.raises(Exception, match="out of data bounds"):
        model.run(None, {"waveform": np.zeros((1, 399), np.float32)})


def test_only_the_blocks_are_8_bit(exported: tuple[Path, OnnxExport], square: str) -> None:
    out, result = exported
    sizes = {name: (out / name).stat().st_size for name in ("model.onnx", "model_int8.onnx")}
    assert result.size_bytes == sizes
    assert sizes["model_int8.onnx"] < sizes["model.onnx"] / 2.5
    quantised = onnx.load(out / "model_int8.onnx")
    kinds = [node.op_type for node in quantised.graph.node]
    assert kinds.count("MatMulInteger") == 2 * 4
    raw = torch.randn(3, 64, 128) * 4 - 6
    (scores,) = session(out / "model_int8.onnx").run(None, {"log_mel": raw.numpy()})
    difference = np.abs(scores - our_scores(square, raw)).max()
    assert 1e-6 < difference < 0.2


def test_cost_of_8_bits_is_measured_on_the_clips(
    exported: tuple[Path, OnnxExport], square: str, dataset: PreparedDataset
) -> None:
    out, result = exported
    clips = dataset.select("eval")
    rows = [dataset.index["id"].to_pylist().index(name) for name in clips["id"].to_pylist()]
    raw = torch.zeros(len(rows), 64, 128)
    for x, row in zip(raw, rows, strict=True):
        frames = torch.tensor(dataset.read_fbank(row)).float()[:64]
        x[: len(frames)] = frames
    targets = np.array(
        [[name in labels for name in LABELS] for labels in clips["labels"].to_pylist()]
    )
    # One clip at a time: the scales of 8-bit inputs depend on all clips of a batch.
    model = session(out / "model_int8.onnx")
    int8 = np.concatenate([model.run(None, {"log_mel": x[None].numpy()})[0] for x in raw])
    assert result.cost is not None
    assert (result.cost.clips_name, result.cost.num_clips) == ("eval", 20)
    for value, scores in ((result.cost.float32, our_scores(square, raw)), (result.cost.int8, int8)):
        assert value == pytest.approx(evaluate_scores(targets, scores, LABELS).mAP, abs=1e-6)
    assert f"{result.cost.int8:.4f}" in (out / "README.md").read_text()


def test_file_tells_labels_and_no_path(exported: tuple[Path, OnnxExport]) -> None:
    for name in ("model.onnx", "model_int8.onnx"):
        data = (exported[0] / name).read_bytes()
        fields = {field.key: field.value for field in onnx.load_from_string(data).metadata_props}
        assert fields["labels"] == '["low", "middle", "high"]'
        assert (fields["score_function"], fields["sample_rate_hz"]) == ("sigmoid", "16000")
        assert b".py" not in data
        assert str(ROOT).encode() not in data


@pytest.mark.parametrize("kind", ["log_mel", "waveform"])
def test_code_of_the_card_runs(
    exported: tuple[Path, OnnxExport],
    with_fbank: Path,
    square: str,
    odd: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, run = (exported[0], square) if kind == "log_mel" else (with_fbank, odd)
    waveform = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    (tmp_path / "model.onnx").symlink_to(out / "model.onnx")
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    exec(python_of(out / "README.md"), {})
    if kind == "waveform":
        x = padded(torch.from_numpy(waveform)[None], 80)
    else:
        frames = fbank(torch.from_numpy(waveform), FbankSettings())
        x = torch.zeros(1, 64, 128)
        x[0, : len(frames)] = frames
    (expected,) = our_scores(run, x)
    printed = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [label for label, _ in printed] == [LABELS[row] for row in expected.argsort()[::-1]]
    scores = [float(score) for _, score in printed]
    np.testing.assert_allclose(scores, np.sort(expected)[::-1], rtol=0, atol=1e-3)


def test_missing_packages_are_named_before_anything_is_written(
    square: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with refused("--format onnx", "onnxscript", remedy="pip install 'ast-ray[onnx]'"):
        export_onnx(square, str(tmp_path / "out"), "averaged")
    assert not (tmp_path / "out").exists()


def test_folder_with_files_is_refused(square: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with refused(tmp_path, "notes.txt", remedy="--out"):
        export_onnx(square, str(tmp_path), "averaged")


@pytest.mark.parametrize(
    ("options", "option", "needed"),
    [
        (["--int8"], "--int8", "--format onnx"),
        (["--with-fbank"], "--with-fbank", "--format onnx"),
        (["--format", "onnx", "--data", "data"], "--data", "--int8"),
        (["--format", "onnx", "--int8", "--split", "eval"], "--split", "--data"),
        (["--format", "onnx", "--int8", "--fold", "1"], "--fold", "--data"),
    ],
)
def test_options_without_effect_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    option: str,
    needed: str,
) -> None:
    command = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *options]
    assert ray_job.main(command) == 1
    assert_error_line(capsys.readouterr().err, option, needed)


def test_ensemble_is_refused_with_its_members(
    square: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = EnsembleResult(
        runs=[square],
        name="eval",
        entries=[MemberEntry(name="square", run=square)],
        members={"square": {}},
        mean={},
        std={},
        ensemble={},
    )
    storage.write_json(f"{tmp_path}/ensemble.json", asdict(result))
    assert ray_job.main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert_error_line(capsys.readouterr().err, tmp_path, "ensemble", square)


def test_data_with_other_classes_is_refused(
    square: str, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = read_run(square)
    write_run(str(tmp_path), replace(info, data=replace(info.data, labels=["low", "high", "top"])))
    options = ["--format", "onnx", "--int8", "--data", dataset.path]
    command = ["export", str(tmp_path), "--out", str(tmp_path / "out"), *options]
    assert ray_job.main(command) == 1
    assert_error_line(capsys.readouterr().err, dataset.path, "middle", "high", "--labels")


@pytest.mark.slow
def test_command_prints_sizes_and_both_scores(
    square: str, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--format", "onnx", "--with-fbank", "--int8", "--weights", "averaged"]
    options += ["--data", dataset.path, "--split", "train", "--fold", "2"]
    assert ray_job.main(["export", square, "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert_names(printed, "model.onnx", "model_int8.onnx", "7 of train-fold2", "mAP with int8")
    assert printed.splitlines()[-1] == str(out)
    (scores,) = session(out / "model_int8.onnx").run(
        None, {"waveform": np.zeros((2, 8000), np.float32)}
    )
    assert scores.shape == (2, 3)
