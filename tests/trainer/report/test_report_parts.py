"""What a report chooses to show: examples, confusions, thinned curves, names."""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from tests.support.prepared import tiny_recipe
from tests.support.reports import SOUNDS, make_history, report, shown_figures, write_run
from trainer.checkpoints.progress import CurvePoint
from trainer.optim.schedule import learning_rate
from trainer.optim.settings import ScheduleSettings
from trainer.report import examples, figures
from trainer.report.runs import run_names
from trainer.report.write import write_report
from trainer.scores.predictions import Predictions, Source


def test_missed_label_is_shown_with_its_rank() -> None:
    labels = [f"class {number}" for number in range(20)]
    targets = np.zeros((1, 20), dtype=np.float32)
    targets[0, [0, 19]] = 1
    scores = np.linspace(1, 0, 20, dtype=np.float32)[None]
    clips = Predictions(
        name="eval",
        ids=["a"],
        labels=labels,
        targets=targets,
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    tags = examples._tags(clips, 0)
    assert [tag.rank for tag in tags] == [1, 2, 3, 4, 5, 20]
    assert [tag.is_true for tag in tags] == [True, False, False, False, False, True]


@given(
    targets=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=25),
    num_right=st.integers(0, 5),
    num_wrong=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_chosen_rows_are_right_wrong_and_independent_of_order(
    targets: list[tuple[bool, ...]], num_right: int, num_wrong: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct scores, so that there are ties.
    scores = rng.integers(0, 4, (len(targets), 3)).astype(np.float32) / np.float32(4)
    clips = Predictions(
        name="eval",
        ids=[f"{number:02d}" for number in range(len(targets))],
        labels=["a", "b", "c"],
        targets=np.array(targets, dtype=np.float32).reshape(-1, 3),
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    rows = examples.choose_rows(clips, num_right=num_right, num_wrong=num_wrong)
    usable = [row for row, own in enumerate(targets) if 0 < sum(own) < 3]
    right = {row for row in usable if targets[row][int(scores[row].argmax())]}
    assert len(set(rows)) == len(rows) == min(len(usable), num_right + num_wrong)
    assert set(rows) <= set(usable)
    num_wrong_usable = len(usable) - len(right)
    assert len(set(rows) - right) >= min(num_wrong, num_wrong_usable)
    assert len(set(rows) & right) >= min(num_right, len(right))
    order = rng.permutation(len(targets))
    shuffled = replace(
        clips,
        ids=[clips.ids[row] for row in order],
        targets=clips.targets[order],
        scores=clips.scores[order],
    )
    again = examples.choose_rows(shuffled, num_right=num_right, num_wrong=num_wrong)
    assert [shuffled.ids[row] for row in again] == [clips.ids[row] for row in rows]


def test_most_confidently_wrong_clip_comes_first() -> None:
    scores = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32)
    targets = np.array([[0, 1], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    clips = Predictions(
        name="eval",
        ids=list("abcd"),
        labels=["x", "y"],
        targets=targets,
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    assert examples.choose_rows(clips, num_right=2, num_wrong=2) == [1, 0, 2, 3]


@given(true=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_confusions_count_each_clip_once(true: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).random((len(true), 4), dtype=np.float32)
    clips = Predictions(
        name="eval",
        ids=[str(number) for number in range(len(true))],
        labels=list(SOUNDS),
        targets=np.eye(4, dtype=np.float32)[true],
        scores=scores,
        common=np.zeros(4, dtype=bool),
        source=Source(loss="bce"),
    )
    counts = examples.confusion_counts(clips)
    assert counts is not None
    expected = np.zeros((4, 4), dtype=int)
    for row, number in enumerate(true):
        expected[number, int(scores[row].argmax())] += 1
    assert (counts == expected).all()
    clips.targets[0] = 0
    assert examples.confusion_counts(clips) is None


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), min_size=1, max_size=60),
    max_points=st.integers(1, 20),
)
def test_thinned_curves_keep_their_mean(values: list[float | None], max_points: int) -> None:
    means, length = figures.thinned(values, max_points)
    assert len(means) <= max_points
    for number, mean in enumerate(means):
        defined = [
            value for value in values[number * length : (number + 1) * length] if value is not None
        ]
        if defined:
            assert mean == pytest.approx(statistics.fmean(defined), rel=1e-4, abs=1e-3)
        else:
            assert mean is None


def test_long_history_is_thinned(tmp_path: Path, data: str) -> None:
    run = write_run(str(tmp_path / "run"), data, num_epochs=1)
    history = make_history(
        np.random.default_rng(0), 1, is_finished=True, steps_per_epoch=5 * figures.MAX_POINTS - 3
    )
    storage.write_json(f"{run}/history.json", history)
    plots = shown_figures([run])
    logged = plots["curve-loss"]["data"][0]
    assert len(logged["x"]) == len(logged["y"]) == figures.MAX_POINTS
    assert logged["x"][:2] == [5, 10]
    assert logged["x"][-1] == 5 * figures.MAX_POINTS - 3
    assert len(plots["curve-lr"]["data"][0]["x"]) == figures.MAX_POINTS
    assert "(means of 5)" in report(run)


def logged(schedule: ScheduleSettings, *ends: int, factor: float = 1.0) -> figures.RunCurves:
    """Points at these steps of an epoch of 20 steps each; the second half at a lowered rate."""
    steps = []
    for number, end in enumerate(ends):
        epoch = (end - 1) // 20 + 1
        rate = learning_rate(schedule, step=end - 1, epoch=epoch)
        lowered = rate * (factor if 2 * number >= len(ends) else 1.0)
        steps.append(CurvePoint(step=end, epoch=epoch, lr=lowered))
    return figures.RunCurves(name="run", steps=steps, epochs=[], schedule=schedule)


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_learning_rate_curve_equals_every_step(factor: float) -> None:
    """It holds for sparse logging and for a rate lowered after a divergence."""
    schedule = ScheduleSettings(
        lr=1e-3, warmup_steps=7, warmup_every_steps=1, decay_after_epochs=(1, 2)
    )
    rates = figures.step_rates(logged(schedule, 5, 10, 20, 25, 40, 60, factor=factor))
    expected = [
        learning_rate(schedule, step=step, epoch=step // 20 + 1) * (factor if step >= 20 else 1)
        for step in range(60)
    ]
    at = dict(rates)
    drawn: list[float | None] = []
    for step in range(1, 61):
        drawn.append(at.get(step, drawn[-1] if drawn else None))
    assert drawn == pytest.approx(expected)
    assert rates[-1][0] == 60
    assert len(rates) == 8 + 2 + 1


def test_logged_rates_are_connected_without_a_schedule(run: str) -> None:
    line = shown_figures([run])["curve-lr"]["data"][0]
    assert (line["line"]["shape"], len(line["x"])) == ("linear", 60)
    assert "At the logged steps." in report(run)
    info = storage.read_json(f"{run}/run.json")
    info["settings"] = tiny_recipe().to_json()
    storage.write_json(f"{run}/run.json", info)
    assert shown_figures([run])["curve-lr"]["data"][0]["line"]["shape"] == "hv"
    assert "Learning rate At each step." in report(run)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1, max_size=5))
def test_run_names_are_distinct(parts: list[list[str]]) -> None:
    paths = ["/runs/" + "/".join(part) for part in parts]
    names = run_names(paths)
    assert len(set(names)) == len(names)
    if len(set(paths)) == len(paths):
        assert all(path.endswith("/" + name) for path, name in zip(paths, names, strict=True))


def test_run_names_are_as_short_as_possible() -> None:
    assert run_names(["s3://bucket/x/run"]) == ["run"]
    assert run_names(["/x/seed-0/run", "/x/seed-1/run"]) == ["seed-0/run", "seed-1/run"]
    assert run_names(["/x/run", "/x/run"]) == ["run (1)", "run (2)"]


def test_many_classes_keep_a_full_confusion_matrix() -> None:
    labels = [f"a rather long label that ends in its number {number}" for number in range(80)]
    counts = np.eye(80, dtype=np.int64) * 3
    plot = examples.confusion_plot(counts, labels)
    cells = plot.figure["data"][0]
    assert len(set(cells["x"])) == 80
    assert np.array(cells["z"]).shape == (80, 80)
    assert plot.height_px < 700


def test_figures_cannot_end_their_script_element(run: str) -> None:
    page = storage.read_bytes(write_report([run])).decode()
    start = page.index('id="figures">') + len('id="figures">')
    # The figures do hold tags: those of the texts shown on hovering.
    assert "<b>" in shown_figures([run])["classes"]["data"][0]["hovertemplate"]
    assert not set(page[start : page.index("</script>", start)]) & set("<>&")
