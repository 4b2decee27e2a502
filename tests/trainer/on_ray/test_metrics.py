"""Metrics of Ray as Prometheus reads them: from the port of a node, while a step runs."""

import json
import re
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import requests

from cluster.session import connect
from pipeline.dataset.prepare import prepare
from pipeline.manifest.manifest import from_clips
from pipeline.on_ray.gauges import Gauges
from pipeline.on_ray.metrics import PREPARE_METRICS
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import write_clips
from tests.support.nodes import wait_for
from tests.support.preparation import LABELS
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.steps import PROJECT, ray_folder
from trainer.on_ray.metrics import TRAIN_METRICS, values_of
from trainer.on_ray.settings import Workers
from trainer.on_ray.train import run_training
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress

ONLY_ON_GPUS = {"ast_train_mfu", "ast_train_peak_memory_bytes"}

Samples = dict[str, float]
"""Values by metric, without Ray's prefix."""


@pytest.fixture(scope="module")
def reporting_ray() -> Iterator[None]:
    """A Ray whose processes report each second; this one has loaded Ray before, and takes ten."""
    with ray_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("RAY_TMPDIR", folder)
        with connect(address="local", num_cpus=2):
            yield


def scrape(folder: str) -> Samples:
    """What the node shows of a step; it may also show one that this process ran before."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    line = re.compile(rf'^ray_(ast_\w+){{.*folder="{re.escape(folder)}".*}} (\S+)$', re.MULTILINE)
    found = line.findall(requests.get(url, timeout=30).text)
    return {name: float(value) for name, value in found}


@contextmanager
def scraping(folder: str, names: Set[str]) -> Iterator[Samples]:
    """Collects the last value of each sample of a step, until all came and are no longer shown."""
    seen: Samples = {}
    is_over = threading.Event()

    def collect() -> None:
        while not is_over.wait(0.2):
            with suppress(requests.RequestException):
                seen.update(scrape(folder))

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield seen
        # The last values of a step reach the node only with the next report.
        wait_for(lambda: seen.keys() >= names)
        wait_for(lambda: not scrape(folder))
    finally:
        is_over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("reporting_ray")
def test_run_shows_its_figures_until_it_ends(tmp_path: Path) -> None:
    data, run = make_prepared(f"{tmp_path}/data").path, f"{tmp_path}/run"
    recipe = tiny_recipe(train={"epochs": 60, "log_every_steps": 1})
    names = TRAIN_METRICS.keys() - ONLY_ON_GPUS
    with scraping(run, names) as seen:
        run_training(recipe, data, run, Workers(use_gpu=False))
    assert seen.keys() == names
    history = read_history(run)
    assert seen["ast_train_num_steps"] == history.num_steps == 360
    assert seen["ast_train_eval_map"] in {result.mAP for result in history.epochs}
    assert 0 <= seen["ast_train_data_wait_share"] <= 1
    assert seen["ast_train_clips_per_s"] > 0


def end_once_seen(monkeypatch: pytest.MonkeyPatch, seen: Samples, names: Set[str]) -> None:
    """The node shows a report for 2 s, and this process makes one in ten."""
    leave = Gauges.__exit__

    def leave_once_seen(self: Gauges, *error: Any) -> None:
        if error[0] is None:
            wait_for(lambda: seen.keys() >= names)
        leave(self, *error)

    monkeypatch.setattr(Gauges, "__exit__", leave_once_seen)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("reporting_ray")
def test_preparation_shows_its_figures_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_clips(tmp_path / "audio", 60)
    Path(clips[5].uri).write_bytes(b"")
    output = f"{tmp_path}/data"
    with scraping(output, PREPARE_METRICS.keys()) as seen:
        end_once_seen(monkeypatch, seen, PREPARE_METRICS.keys())
        prepare(
            from_clips(clips, LABELS),
            output,
            PrepareSettings(clips_per_shard=2),
            session=nullcontext(),
            max_reject_share=0.1,
        )
    assert seen.keys() == PREPARE_METRICS.keys()
    assert seen["ast_prepare_num_clips"] == 60
    assert seen["ast_prepare_rejects"] <= 1


def test_values_have_the_names_of_the_gauges() -> None:
    progress = RunProgress(
        run="run",
        step=1,
        num_steps=2,
        epoch=1,
        lr=0.1,
        num_bad_steps=0,
        last_point=None,
        last_epoch=None,
    )
    values = values_of(progress)
    assert values.keys() == TRAIN_METRICS.keys()
    assert values["ast_train_step"] == 1
    assert values["ast_train_mfu"] is None


def test_every_query_of_the_dashboard_names_metrics_that_exist() -> None:
    dashboard = json.loads((PROJECT / "cluster/grafana/dashboard.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [json.dumps(variable) for variable in dashboard["templating"]["list"]]
    named = {name for text in texts for name in re.findall(r"\bray_\w+", text)}
    existing = {f"ray_{name}" for name in (*TRAIN_METRICS, *PREPARE_METRICS)}
    assert named == existing
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert re.search(r"\bray_ast_", target["expr"]), panel["title"]
