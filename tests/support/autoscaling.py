"""A Ray cluster on this machine whose nodes are started by Ray's autoscaler when they are needed.

Ray's own provider for tests starts a real raylet for each node. GPUs of a node are only a number
to Ray: workers that are given one compute on CPUs, which nothing in the project knows of.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from ray._private.parameter import RayParams
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from tests.support.patience import PATIENCE
from tests.support.ray_head import free_ports
from tests.support.steps import PROJECT, processes_in_session

START_S = 120.0
AS_IF_GPUS = """
import sys
from importlib.machinery import PathFinder


def use_cpu(torch_utils):
    import torch

    torch_utils.get_devices = lambda: [torch.device("cpu")]


def use_gloo(config):
    set_up = config._setup_torch_process_group
    config._setup_torch_process_group = lambda *, backend, **more: set_up(backend="gloo", **more)


class Finder:
    changes = {
        "ray.air._internal.torch_utils": use_cpu,
        "ray.train.torch.config": use_gloo,
    }

    def find_spec(self, name, path=None, target=None):
        change = self.changes.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if spec:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), change(module))
        return spec


sys.meta_path.insert(0, Finder())
"""
"""A `sitecustomize` of the nodes' processes."""
GB = 1_000_000_000


class Provider(FakeMultiNodeProvider):
    """Ray's provider, which takes `memory` for a custom resource that a node must not have."""

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        if node_config.get("is_broken"):
            raise RuntimeError("no such machines left")
        others = {name: value for name, value in resources.items() if name != "memory"}
        with_memory = partial(RayParams, memory=resources["memory"])
        with mock.patch("ray._private.parameter.RayParams", with_memory):
            super()._create_node_with_resources_and_labels(  # type: ignore[no-untyped-call]
                node_config, tags, count, others, labels
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """Nodes that the autoscaler may start."""

    cpus: int
    gpus: int = 0
    memory: int = 3 * GB
    max_num: int = 2
    is_broken: bool = False
    """Whether each start of one fails."""

    def config(self) -> dict[str, Any]:
        resources = {"CPU": self.cpus, "memory": self.memory, "object_store_memory": GB // 10}
        if self.gpus:
            resources["GPU"] = self.gpus
        limits = {"min_workers": 0, "max_workers": self.max_num}
        node_config = {"is_broken": self.is_broken}
        return {"resources": resources, "node_config": node_config, **limits}


@contextlib.contextmanager
def autoscaling_cluster(
    folder: str,
    node_types: Mapping[str, NodeType],
    *,
    head_cpus: int = 0,
    is_v2: bool = True,
    idle_s: float = 3600.0,
) -> Iterator[str]:
    """A cluster whose nodes but for the head are not there yet; yields its address.

    Args:
        folder: of its files; short, as sockets are in it.
        node_types: what may be started, by name.
        head_cpus: CPUs of the head.
        is_v2: the second autoscaler rather than the first.
        idle_s: how long a node without work stays.
    """
    names = (
        "port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    address = f"127.0.0.1:{ports['port']}"
    config = Path(folder, "autoscaling.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(_config(node_types, address, head_cpus, idle_s)))
    site = Path(folder, "site")
    site.mkdir()
    (site / "sitecustomize.py").write_text(AS_IF_GPUS)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        f"--num-cpus={head_cpus}", "--include-dashboard=false", "--disable-usage-stats",
        f"--autoscaling-config={config}", "--node-ip-address=127.0.0.1",
        f"--object-store-memory={GB // 10}", f"--temp-dir={folder}/ray",
        "--min-worker-port=0", "--max-worker-port=0",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with Path(folder, "head.log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env=_environment(site, is_v2=is_v2),
            cwd=PROJECT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # to find the nodes that the autoscaler starts
        )
        try:
            _wait_until_ready(address, head, Path(log.name))
            yield address
        finally:
            head.terminate()
            head.wait(60)
            for process in processes_in_session(head.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _config(
    node_types: Mapping[str, NodeType], address: str, head_cpus: int, idle_s: float
) -> dict[str, Any]:
    head = {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "test",
        "max_workers": sum(kind.max_num for kind in node_types.values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": head,
            **{name: kind.config() for name, kind in node_types.items()},
        },
        "provider": {
            "type": "external",
            "module": f"{__name__}.{Provider.__name__}",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip


def _environment(site: Path, *, is_v2: bool) -> dict[str, str]:
    without = ("RAY_", "PYTHONDONTWRITEBYTECODE", "AWS_", "CUDA_VISIBLE_DEVICES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(without)}
    path = [str(site), str(PROJECT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        **PATIENCE,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "PYTHONPATH": ":".join(path),
    }
    if is_v2:
        environment |= {
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
        }
    return environment


def _wait_until_ready(address: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert head.poll() is None, f"the head node ended:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(Exception):
            if GcsClient(address=address).get_all_node_info():
                return
        assert time.monotonic() < deadline, "the head node does not answer"
        time.sleep(0.2)
