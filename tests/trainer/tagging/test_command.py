"""The step `tag` as a user runs it, without Ray: models of all kinds, its output, wrong options."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import ray_job
from pipeline import storage
from tests.support.audio import encode, tone
from tests.support.errors import assert_error_line, assert_names
from tests.support.tagging import (
    PITCHES_HZ,
    Trained,
    sound,
    train_on_audio,
    write_recording,
    write_sounds,
)
from tests.trainer.checkpoints.test_ast_checkpoint import AuthorsAst
from trainer.scores.predictions import read_predictions
from trainer.tagging.job import Tags, tag_in_memory
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.settings import KeepSettings, TagSettings

ALL = TagSettings(keep=KeepSettings(top=len(PITCHES_HZ)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_audio(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    path = tmp_path / "a meeting, “spät”.wav"
    write_recording(path, [("rain", 1.0), ("dog", 1.0), ("never", 1.0)])
    return path


def tag(*arguments: str | Path) -> int:
    return ray_job.main(["tag", *map(str, arguments)])


def printed_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def scores_by_label(tags: Tags) -> dict[str, dict[str, float]]:
    return {
        row["recording"]: dict(zip(row["labels"], row["scores"], strict=True))
        for row in tags.windows.to_pylist()
    }


def check_scores(tags: Tags, run: str) -> None:
    """Whether the tags are the scores of the evaluation of a run or an ensemble."""
    expected = read_predictions(run, "eval")
    found = scores_by_label(tags)
    assert len(found) == len(expected.ids)
    for name, row in zip(expected.ids, expected.scores, strict=True):
        scores = [found[name][label] for label in expected.labels]
        np.testing.assert_allclose(scores, row, rtol=0, atol=2e-6)


def tags_of(model: str, trained: Trained) -> Tags:
    clips = [clip for clip in trained.clips if clip.split == "eval"]
    return tag_in_memory(load_tagger(ModelChoice(path=model)), clips, ALL, batch_size=5)


def test_a_single_window_is_one(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    clip = trained.clips[0]
    assert tag(trained.run, clip.uri) == 0
    assert printed_lines(capsys)[0] == f"{clip.id}: 1 window"


def test_one_file_is_a_table_with_bars(
    trained: Trained, meeting: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tag(trained.run, meeting, "--top", "3") == 0
    lines = printed_lines(capsys)
    assert lines[0] == f"{meeting.name}: 9 windows"
    rows = {
        cells[1].strip(): cells[4].rstrip()
        for cells in (line.split("│") for line in lines if line.startswith("│"))
    }
    assert rows.keys() == PITCHES_HZ.keys()
    # Each class is highest where it sounds: a third of the bar.
    for number, label in enumerate(("rain", "dog", "never")):
        bar = rows[label][1:].ljust(9)
        assert set(bar) <= set(" ▁▂▃▄▅▆▇█")
        thirds = [sum(map(" ▁▂▃▄▅▆▇█".index, bar[at : at + 3])) for at in (0, 3, 6)]
        assert thirds.index(max(thirds)) == number, bar


def test_folder_is_tagged_and_totals_are_shown(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(tmp_path / "in" / "a", 2)
    write_sounds(tmp_path / "in" / "b ü 'c'", 1)
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF no")
    out = tmp_path / "tags"
    assert tag(trained.run, tmp_path / "in", "--out", out) == 0
    text = capsys.readouterr().out
    assert_names(text, "recordings", "3, 1.0 s", "classes", "broken", out / "windows.parquet")
    rows = storage.read_table(str(out / "recordings.parquet"))["recording"].to_pylist()
    assert rows == ["a/eval-001.wav", "a/train-000.wav", "b ü 'c'/eval-000.wav"]


def test_single_file_with_out_is_shown_and_written(
    trained: Trained, meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tag(trained.run, meeting, "--out", tmp_path / "tags") == 0
    lines = printed_lines(capsys)
    assert f"{meeting.name}: 9 windows" in lines
    assert (tmp_path / "tags" / "tags.json").exists()


def test_page_is_drawn_and_left_out_on_request(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(tmp_path / "in", 2)
    page = tmp_path / "tags" / "tags.html"
    command = (trained.run, tmp_path / "in", "--out", tmp_path / "tags")
    assert tag(*command, "--no-page") == 0
    assert not page.exists()
    assert str(page) not in capsys.readouterr().out
    assert tag(*command, "--audio-url", "../in/") == 0
    assert printed_lines(capsys)[-1] == str(page)
    assert 'src="../in/eval-001.wav"' in page.read_text()


def test_page_that_cannot_be_drawn_is_a_warning(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(tmp_path / "in", 2)
    page = tmp_path / "tags" / "tags.html"
    command = (trained.run, tmp_path / "in", "--out", tmp_path / "tags")
    assert tag(*command, "--no-page") == 0
    page.mkdir()
    capsys.readouterr()
    assert tag(*command) == 0
    captured = capsys.readouterr()
    assert_names(captured.err, f"warning: {page}: not drawn", "the same command draws it")
    assert captured.out.splitlines()[-1] == str(tmp_path / "tags" / "windows.parquet")


def test_labels_and_names_with_markup_are_shown_as_they_are(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[/red]", "[bold]dog[/bold]", ":smile:"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    path = tmp_path / "[b]x[c].wav"
    path.write_bytes(encode(sound("dog", 1.0)))
    assert tag(trained.run, path, "--labels", tmp_path / "labels.txt") == 0
    text = capsys.readouterr().out
    for name in (*names, path.name):
        assert name in text
    assert tag(trained.run, path, "--out", tmp_path / "[b]tags[/c]") == 0
    assert "[b]tags[/c]" in capsys.readouterr().out


def test_format_without_out_prints_only_the_tags(
    trained: Trained, meeting: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert tag(trained.run, meeting, "--format", "jsonl", "--top", "1") == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["start_s"] for line in lines] == pytest.approx(
        [0.32 * n for n in range(8)] + [2.36]
    )
    assert {line["recording"] for line in lines} == {meeting.name}
    assert tag(trained.run, meeting, "--format", "csv", "--top", "1") == 0
    rows = list(csv.DictReader(capfdbinary.readouterr().out.decode().splitlines()))
    assert [row["label"] for row in rows] == [line["labels"][0] for line in lines]
    assert tag(trained.run, meeting, "--format", "audacity", "--top", "1") == 0
    events = [line.split("\t") for line in capfdbinary.readouterr().out.decode().splitlines()]
    assert {event[2] for event in events} == {row["label"] for row in rows}
    assert min(len(event) for event in events) == max(len(event) for event in events) == 3
    assert tag(trained.run, meeting, "--format", "raven") == 0
    assert capfdbinary.readouterr().out.startswith(b"Selection\tView\tChannel\t")


def test_format_is_added_to_complete_tags(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(tmp_path / "in", 2)
    command = (trained.run, tmp_path / "in", "--out", tmp_path / "tags")
    assert tag(*command) == 0
    before = (tmp_path / "tags" / "windows.parquet").stat().st_mtime_ns
    assert tag(*command, "--format", "csv,audacity", "--format", "RAVEN") == 0
    assert (tmp_path / "tags" / "windows.parquet").stat().st_mtime_ns == before
    for name in ("windows.csv", "audacity/train-000.wav.txt", "raven/eval-001.wav.selections.txt"):
        assert (tmp_path / "tags" / name).exists()


def test_files_below_the_rate_of_the_model_are_warned_of(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, rate_hz in enumerate((8_000, 11_025, 16_000)):
        path = tmp_path / "in" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(tone(1.0, rate_hz), rate_hz=rate_hz))
    for _ in range(2):
        assert tag(trained.run, tmp_path / "in", "--out", tmp_path / "tags") == 0
        (warning,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")
        ]
        assert_names(warning, "2 recordings", "8,000 to 11,025 Hz", "16,000 Hz")
    assert tag(trained.run, tmp_path / "in" / "0.wav") == 0
    assert_names(capsys.readouterr().err, "1 recording is at 8,000 Hz", "16,000 Hz")
    assert tag(trained.run, tmp_path / "in" / "2.wav") == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "where", "values", "status"),
    [
        (("--window", "0"), "--window", ("'0'",), 2),
        (("--window", "nan"), "--window", ("'nan'",), 2),
        (("--hop", "-1"), "--hop", ("'-1'",), 2),
        (("--hop", "0.001"), "--hop", ("0.001", "0.05"), 1),
        (("--window", "4000"), "--window", ("4000", "3600"), 1),
        (("--top", "0"), "--top", ("'0'",), 2),
        (("--threshold", "2"), "--threshold", ("'2'",), 2),
        (("--format", "parquet"), "--format", ("'parquet'", "csv, jsonl, audacity, raven"), 2),
        (("--format", "csv,"), "--format", ("''",), 2),
        (("--format", "csv,jsonl"), "--format", ("--out",), 1),
        (("--audio-url", "javascript:x"), "--audio-url", ("'javascript:x'", "relative path"), 2),
        (("--weights", "best"), "", ("best",), 1),
    ],
)
def test_wrong_options_are_one_line(
    trained: Trained,
    meeting: Path,
    options: Sequence[str],
    where: str,
    values: Sequence[str],
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code: object = tag(trained.run, meeting, *options)
    except SystemExit as end:
        code = end.code
    assert code == status
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    assert_names(stderr, where, *values)


def test_missing_models_and_sources_are_one_line(
    trained: Trained, meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no audio")
    write_sounds(tmp_path / "two", 2)
    for model, source, where, values in (
        (tmp_path / "no-model", meeting, "no-model", ()),
        (tmp_path / "empty", meeting, "empty", ()),
        (meeting, meeting, meeting.name, ()),
        (trained.run, tmp_path / "no-source", "no-source", ()),
        (trained.run, tmp_path / "empty", "empty", ("hidden files",)),
        (trained.run, tmp_path / "text", "text", ("no audio",)),
        (trained.run, tmp_path / "text" / "a.txt", "a.txt", ("nothing to tag",)),
        (trained.run, tmp_path / "two", "--out", ("2 recordings",)),
    ):
        assert tag(model, source) == 1, (model, source)
        assert_error_line(capsys.readouterr().err, where, *values)


def test_folder_of_broken_files_has_tags_without_rows(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.wav", "b.mp3"):
        (tmp_path / "in" / name).write_bytes(b"no audio")
    out = tmp_path / "tags"
    assert tag(trained.run, tmp_path / "in", "--out", out, "--format", "csv,raven,jsonl") == 0
    assert_names(capsys.readouterr().out, "broken", "2 decode")
    assert storage.read_table(str(out / "windows.parquet")).num_rows == 0
    assert (out / "windows.csv").read_text() == "recording,start_s,end_s,label,score\n"
    assert (out / "windows.jsonl").read_text() == ""


@pytest.mark.parametrize("num_labels", [2, 4])
def test_names_for_fewer_or_more_classes_are_refused(
    trained: Trained,
    meeting: Path,
    tmp_path: Path,
    num_labels: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"class {n}\n" for n in range(num_labels)))
    assert tag(trained.run, meeting, "--labels", tmp_path / "labels.txt") == 1
    assert_error_line(capsys.readouterr().err, "labels.txt", num_labels, 3)


@pytest.mark.parametrize(
    "training", [{"loss": "bce"}, {"loss": "ce"}, {"loss": "ce", "scores": "sigmoid"}]
)
def test_exported_folders_give_the_scores_of_the_run(
    tmp_path: Path, training: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    patches = {"patch_frequency": 16, "patch_time": 16, "stride_frequency": 16, "stride_time": 16}
    trained = train_on_audio(
        tmp_path, model={**patches, "depth": 1}, train={"epochs": 1, **training}
    )
    exported = tmp_path / "exported"
    assert ray_job.main(["export", trained.run, "--out", str(exported)]) == 0
    tags = tags_of(str(exported), trained)
    check_scores(tags, trained.run)
    # Without our own file it is a folder of transformers, which has softmax with cross-entropy.
    (exported / "ast.safetensors").unlink()
    if "scores" in training:
        return
    check_scores(tags_of(str(exported), trained), trained.run)
    capsys.readouterr()


def test_ensemble_gives_the_mean_of_its_members(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train_on_audio(tmp_path, seed=1)
    ensemble = str(tmp_path / "both")
    runs = [trained.run, other.run]
    assert ray_job.main(["ensemble", "--runs", *runs, "--out", ensemble]) == 0
    tags = tags_of(ensemble, trained)
    check_scores(tags, ensemble)
    singles = [scores_by_label(tags_of(run, trained)) for run in runs]
    for name, scores in scores_by_label(tags).items():
        for label, score in scores.items():
            mean = np.mean([single[name][label] for single in singles])
            assert score == pytest.approx(mean, abs=1e-6)
    capsys.readouterr()


def test_file_of_the_authors_needs_names_and_is_tagged(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "esc.pth"
    torch.save(AuthorsAst(3).state_dict(), path)
    assert tag(path, meeting) == 1
    assert_error_line(capsys.readouterr().err, "esc.pth", "3 classes", "--labels")
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    assert tag(path, meeting, "--labels", tmp_path / "names.txt") == 0
    captured = capsys.readouterr()
    assert_names(captured.out, "one", "two", "three")
    # It was not said how its inputs were normalised.
    assert_names(captured.err, "mean", "-4.2677")


def test_published_file_names_its_classes(
    meeting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audioset_16_16_0.4422.pth"
    torch.save(AuthorsAst(527).state_dict(), path)
    assert tag(path, meeting, "--top", "527") == 0
    captured = capsys.readouterr()
    assert_names(captured.out, "Speech", "Field recording")
    assert "warning" not in captured.err
