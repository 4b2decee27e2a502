"""Whether workers fit into a cluster, and notes about unsuitable settings."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray

from pipeline.on_ray import autoscaler
from pipeline.on_ray.autoscaler import Growth, NodeType
from pipeline.on_ray.nodes import Need, Nodes, NoSuchNodeError
from tests.support.errors import assert_notes, refused
from tests.support.prepared import tiny_recipe
from trainer.commands.options import add_worker_options, workers
from trainer.on_ray import workers as on_ray_workers
from trainer.on_ray.memory import model_bytes
from trainer.on_ray.settings import Workers
from trainer.on_ray.workers import fit_workers, fixed_workers, note_workers


def nodes(*resources: dict[str, float]) -> Callable[[], list[dict[str, Any]]]:
    alive = [{"Alive": True, "NodeID": "", "Resources": amounts} for amounts in resources]
    return lambda: [*alive, {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 8.0}}]


def test_room_for_workers_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 3.0}, {"CPU": 3.0}))
    assert fit_workers(Workers(num=2, cpus=2)) == (Workers(num=2, cpus=2, use_gpu=False), 1)
    # Six CPUs, but not three times two on one node.
    with refused("", "3 workers", "2 CPUs", "2 nodes", "6 CPUs", remedy="--workers"):
        fit_workers(Workers(num=3, cpus=2))
    assert fit_workers(Workers(num=1, cpus=1), runs=4)[1] == 4
    assert fit_workers(Workers(num=1, cpus=1), runs=9)[1] == 6
    assert fit_workers(Workers(num=2, cpus=1), runs=9)[1] == 3


def test_gpus_are_used_if_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}))
    assert fit_workers(Workers(num=1), runs=9) == (Workers(num=1, use_gpu=True), 2)
    assert fit_workers(Workers(num=1, use_gpu=False), runs=99)[1] == 16
    with refused("", "3 workers", "1 CPU", "a GPU", "2 GPUs", remedy="--no-gpu"):
        fit_workers(Workers(num=3))


def test_small_runs_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit on each GPU: of thirds, three."""
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 16.0, "GPU": 2.0}))
    for share, num_runs in ((0.5, 4), (1 / 3, 6), (0.3, 6), (0.6, 2), (1.0, 2), (0.1, 16)):
        workers = Workers(num=1, use_gpu=True, gpus=share)
        assert fit_workers(workers, runs=99)[1] == num_runs, share


def test_elastic_workers_need_room_for_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 3.0, "memory": 2 * GB}))
    elastic = Workers(num=8, least=2)
    assert fit_workers(elastic, runs=3) == (replace(elastic, use_gpu=False), 1)
    assert fixed_workers(elastic) == Workers(num=3)
    assert fixed_workers(Workers(num=8)) == Workers(num=8)
    with refused("", "4 workers", remedy="--workers"):
        fit_workers(Workers(num=8, least=4))


def test_options_take_a_number_of_workers_or_two() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_worker_options(parser)
    for given, expected in (([], Workers()), (["--workers=3"], Workers(num=3))):
        assert workers(parser.parse_args(given)) == expected
    assert workers(parser.parse_args(["--workers", "2:8"])) == Workers(num=8, least=2)
    for wrong in ("8:2", "0:2", "2:", ":2", "x"):
        with pytest.raises(argparse.ArgumentError, match="--workers"):
            parser.parse_args(["--workers", wrong])


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


def test_settings_without_effect_for_any_number_of_workers_are_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One worker has the whole batch of eight clips, each of eight has one."""
    recipe = tiny_recipe(train={"batch_size": 8, "micro_batch_size": 2, "sharding": "shard"})
    note_workers([recipe], Workers(num=8, least=1))
    assert not caplog.text


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
    with refused("", "4 workers", "6.8 GB", "5.0 GB", "1 node", remedy="--workers"):
        fit_workers(Workers(num=4), model_bytes=1_000_000_000)


def test_memory_of_the_model_counts_on_cpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8.0, "GPU": 1.0, "memory": 2 * GB}))
    assert fit_workers(Workers(), model_bytes=4_000_000_000)[0].use_gpu
    with refused("", "1 worker", "5.2 GB", "2.0 GB", remedy="train.micro_batch_size"):
        fit_workers(Workers(use_gpu=False), model_bytes=4_000_000_000)


def test_memory_of_a_model_grows_with_its_batch() -> None:
    def needed(num_workers: int = 1, **train: Any) -> int:
        return model_bytes(tiny_recipe(train=train), 128, 3, num_workers)

    weights = needed(batch_size=1)
    assert needed(batch_size=8, micro_batch_size=1) == weights
    assert needed(8, batch_size=8) == weights
    assert needed(batch_size=8) > weights
    assert needed(8, batch_size=8, sharding="shard") < weights


GPU_TYPE = NodeType(name="gpus", resources={"CPU": 4.0, "GPU": 2.0}, max_num=2)


def grow(monkeypatch: pytest.MonkeyPatch, growth: Growth) -> list[tuple[Need, float]]:
    """A cluster whose head has no CPUs and that may grow; returns what is waited for."""
    waited: list[tuple[Need, float]] = []
    head = {"node:__internal_head__": 1.0, "memory": 8 * GB}
    monkeypatch.setattr(ray, "nodes", nodes(head))
    monkeypatch.setattr(autoscaler, "growth", lambda alive: growth)
    monkeypatch.setattr(
        on_ray_workers,
        "wait_for_nodes",
        lambda need, nodes, *, wait_s: waited.append((need, wait_s)),
    )
    return waited


def test_runs_are_counted_on_what_the_cluster_can_grow_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer")
    waited = grow(monkeypatch, Growth(node_types=(GPU_TYPE,), max_nodes=2))
    fitted = Workers(num=2, use_gpu=True, wait_s=7)
    # Nobody asked for GPUs: that none is there yet must not mean CPUs.
    assert fit_workers(Workers(num=2, wait_s=7), runs=9) == (fitted, 2)
    assert_notes([record.getMessage() for record in caplog.records], ["GPU"])
    [(need, wait_s)] = waited
    assert (need.num, need.each, wait_s) == (2, {"CPU": 1.0, "GPU": 1.0}, 7)
    with refused("", "5 workers", "a GPU", "gpus", remedy="--no-gpu"):
        fit_workers(Workers(num=5))
    assert fit_workers(Workers(num=1, use_gpu=False), runs=99)[1] == 8


def test_gpus_are_asked_for_where_the_node_types_are_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer")
    grow(monkeypatch, Growth(node_types=None))
    assert fit_workers(Workers(num=2), runs=9) == (Workers(num=2, use_gpu=True), 9)

    def wait_for_cpus_alone(need: Need, nodes: Nodes, *, wait_s: float) -> None:
        if need.each.get("GPU"):
            raise NoSuchNodeError("", "no node has GPUs")

    monkeypatch.setattr(on_ray_workers, "wait_for_nodes", wait_for_cpus_alone)
    assert fit_workers(Workers(num=2), runs=9) == (Workers(num=2, use_gpu=False), 9)
    assert_notes([record.getMessage() for record in caplog.records], ["CPUs are used"])
    with pytest.raises(NoSuchNodeError):
        fit_workers(Workers(num=2, use_gpu=True))
