"""Tasks on clusters of several nodes: which get work, and when."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.steps import PROJECT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLUSTER = """
import json, os, sys, time
from collections import Counter
import ray
from ray.cluster_utils import Cluster
from pipeline.on_ray.tasks import run_tasks


def where(item):
    while item["mark"] and not os.path.exists(item["mark"]):
        time.sleep(0.1)
    return {"node": ray.get_runtime_context().get_node_id()}


def tasks(marks):
    return run_tasks([{"mark": mark} for mark in marks], where, memory_bytes=1e8)


head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
names = {cluster.add_node(num_cpus=2, num_gpus=1)._node_id: "with a GPU"}
alone = {names[row["node"]] for row in tasks(["", ""])}
names[cluster.add_node(num_cpus=1)._node_id] = "first"
used = []
other, all_there = (f"{sys.argv[1]}-{number}" for number in range(2))
# One keeps the first node busy until another has done some; the last wait for all nodes.
for row in tasks(["", "", other, *[""] * 7, *[all_there] * 50]):
    if not used:
        names[cluster.add_node(num_cpus=1)._node_id] = "joined"
        names[cluster.add_node(num_cpus=2, num_gpus=1)._node_id] = "joined with a GPU"
        open(all_there, "w").close()
    used.append(names[row["node"]])
    if used[-1] != "first":
        open(other, "w").close()
print(json.dumps([sorted(alone), Counter(used)]))
ray.shutdown()
cluster.shutdown()
"""


def test_nodes_that_join_get_tasks_and_those_with_gpus_only_if_there_are_no_others(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    # A GPU of a node is only a number here, and must not be looked for.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(tmp_path / "mark")],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone, used = json.loads(done.stdout.splitlines()[-1])
    assert alone == ["with a GPU"]
    # Only tasks that waited when it joined: Ray Data hands out as many as the cluster has CPUs.
    assert used.pop("joined with a GPU", 0) <= 4, used
    assert used.keys() == {"first", "joined"}
    assert sum(used.values()) >= 56
