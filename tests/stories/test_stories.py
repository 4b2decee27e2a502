"""The scripts of whole stories, run as a user runs them."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset.prepared import open_dataset
from tests.support.browser import open_page
from tests.support.steps import PROJECT


def run_script(name: str, *arguments: str, **variables: str) -> None:
    """Run a script of `recipes/`; its output is shown if the test fails."""
    environment = {**os.environ, **variables}
    # Ray's workers compile all their imports again where this is set.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(["sh", f"recipes/{name}", *arguments], cwd=PROJECT, env=environment, check=True)


def read_metrics(run_path: str, name: str) -> Any:
    return storage.read_json(storage.join(run_path, "predictions", f"{name}.json"))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_demo_learns_its_sounds_and_draws_a_report(tmp_path: Path) -> None:
    run_script("demo.sh", DEMO_FOLDER=str(tmp_path))

    card = open_dataset(str(tmp_path / "dataset")).card
    assert (card.num_clips, card.rejects.num) == (800, 5)
    metrics = read_metrics(str(tmp_path / "run"), "eval")
    assert metrics["mAP"] > 0.7 > 3 * metrics["chance_mAP"]
    with open_page(tmp_path / "run" / "report.html") as opened:
        assert opened.page.locator(".js-plotly-plot .main-svg").count() > 0
        assert opened.requests == []
        assert opened.errors == []


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_esc10_goes_from_a_bucket_to_a_report(esc10: Path, s3: str) -> None:
    run_script("esc10-s3.sh", s3, str(esc10), "--set", "train.epochs=8")

    index = storage.read_table(f"{s3}/dataset/index.parquet")
    assert index.num_rows == 400
    assert len(set(index["id"].to_pylist())) == 400
    metrics = read_metrics(f"{s3}/run", "train-fold1")
    assert metrics["num_clips"] == 80
    # Chance is 0.1; the whole recipe has 40 epochs.
    assert metrics["accuracy"] > 0.35
    assert storage.exists(f"{s3}/run/report.html")
