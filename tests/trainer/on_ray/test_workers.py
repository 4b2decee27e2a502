"""Whether workers fit into a cluster, and notes about unsuitable settings."""

from collections.abc import Callable
from typing import Any

import pytest
import ray

from tests.support.errors import assert_notes, refused
from tests.support.prepared import tiny_recipe
from trainer.on_ray.memory import model_bytes
from trainer.on_ray.settings import Workers
from trainer.on_ray.workers import fit_workers, note_workers


def nodes(*resources: dict[str, float]) -> Callable[[], list[dict[str, Any]]]:
    alive = [{"Alive": True, "Resources": amounts} for amounts in resources]
    return lambda: [*alive, {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 8.0}}]


def test_room_for_workers_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 3.0}, {"CPU": 3.0}))
    assert fit_workers(Workers(num=2, cpus=2)) == (Workers(num=2, cpus=2, use_gpu=False), 1)
    # Six CPUs, but not three times two on one node.
    with refused("", "3 workers", "2 CPUs", "no GPU", "2 nodes", "6 CPUs", remedy="--workers"):
        fit_workers(Workers(num=3, cpus=2))
    assert fit_workers(Workers(num=1, cpus=1), runs=4)[1] == 4
    assert fit_workers(Workers(num=1, cpus=1), runs=9)[1] == 6
    assert fit_workers(Workers(num=2, cpus=1), runs=9)[1] == 3


def test_gpus_are_used_if_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}))
    assert fit_workers(Workers(num=1), runs=9) == (Workers(num=1, use_gpu=True), 2)
    assert fit_workers(Workers(num=1, use_gpu=False), runs=99)[1] == 16
    with refused("", "3 workers", "1 CPUs", "a GPU", "2 GPUs", remedy="--no-gpu"):
        fit_workers(Workers(num=3))


def test_small_runs_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit on each GPU: of thirds, three."""
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 16.0, "GPU": 2.0}))
    for share, num_runs in ((0.5, 4), (1 / 3, 6), (0.3, 6), (0.6, 2), (1.0, 2), (0.1, 16)):
        workers = Workers(num=1, use_gpu=True, gpus=share)
        assert fit_workers(workers, runs=99)[1] == num_runs, share


@pytest.mark.parametrize(
    ("precision", "use_gpu", "is_noted"),
    [("bfloat16", False, True), ("float32", False, False), ("bfloat16", True, False)],
)
def test_half_precision_on_cpus_is_noted(
    caplog: pytest.LogCaptureFixture, precision: str, use_gpu: bool, is_noted: bool
) -> None:
    recipe = tiny_recipe(train={"precision": precision})
    note_workers([recipe], Workers(use_gpu=use_gpu))
    assert ("train.precision: bfloat16" in caplog.text) is is_noted


@pytest.mark.parametrize(("micro_batch_size", "is_noted"), [(3, False), (4, True), (8, False)])
def test_micro_batches_as_large_as_a_share_are_noted(
    caplog: pytest.LogCaptureFixture, micro_batch_size: int, is_noted: bool
) -> None:
    """Sizes of at least a batch are noted with the recipe."""
    recipe = tiny_recipe(train={"batch_size": 8, "micro_batch_size": micro_batch_size})
    note_workers([recipe], Workers(num=2))
    assert ("train.micro_batch_size: " in caplog.text) is is_noted


GB = 1_000_000_000.0


def test_memory_limits_the_runs_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A run of one worker takes 0.75 + 0.5 + 1 GB; one of two, which share the first, 3.75 GB.
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8.0, "memory": 5 * GB}))
    caplog.set_level("INFO", logger="trainer")
    assert fit_workers(Workers(), runs=4, model_bytes=1_000_000_000)[1] == 2
    assert_notes([record.getMessage() for record in caplog.records], ["2 of 4 runs"])
    assert fit_workers(Workers(num=2), runs=4, model_bytes=1_000_000_000)[1] == 1
    with refused("", "4 workers", "6.8 GB", "5.0 GB", "1 nodes", remedy="--workers"):
        fit_workers(Workers(num=4), model_bytes=1_000_000_000)


def test_memory_of_the_model_counts_on_cpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8.0, "GPU": 1.0, "memory": 2 * GB}))
    assert fit_workers(Workers(), model_bytes=4_000_000_000)[0].use_gpu
    with refused("", "1 workers", "5.2 GB", "2.0 GB", remedy="train.micro_batch_size"):
        fit_workers(Workers(use_gpu=False), model_bytes=4_000_000_000)


def test_memory_of_a_model_grows_with_its_batch() -> None:
    def needed(num_workers: int = 1, **train: Any) -> int:
        return model_bytes(tiny_recipe(train=train), 128, 3, num_workers)

    weights = needed(batch_size=1)
    assert needed(batch_size=8, micro_batch_size=1) == weights
    assert needed(8, batch_size=8) == weights
    assert needed(batch_size=8) > weights
    assert needed(8, batch_size=8, sharding="shard") < weights
