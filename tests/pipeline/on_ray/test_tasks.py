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
import ray
from ray.cluster_utils import Cluster
from pipeline.on_ray.tasks import run_tasks


def where(item):
    while item["waits"] and not os.path.exists(item["mark"]):
        time.sleep(0.1)
    return {"node": ray.get_runtime_context().get_node_id()}


def tasks(num, waiting=()):
    items = [{"waits": number in waiting, "mark": sys.argv[1]} for number in range(num)]
    return run_tasks(items, where, memory_bytes=1e8)


head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
names = {cluster.add_node(num_cpus=2, num_gpus=1)._node_id: "with a GPU"}
alone = {names[row["node"]] for row in tasks(2)}
names[cluster.add_node(num_cpus=1)._node_id] = "first"
used = []
# One keeps the first node busy until another has done some.
for row in tasks(12, waiting=[2]):
    if not used:
        names[cluster.add_node(num_cpus=1)._node_id] = "joined"
        names[cluster.add_node(num_cpus=2, num_gpus=1)._node_id] = "joined with a GPU"
    used.append(names[row["node"]])
    if used[-1] != "first":
        open(sys.argv[1], "w").close()
print(json.dumps([sorted(alone), sorted(set(used)), len(used)]))
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
    alone, used, num = json.loads(done.stdout.splitlines()[-1])
    assert alone == ["with a GPU"]
    assert used == ["first", "joined"]
    assert num == 12
