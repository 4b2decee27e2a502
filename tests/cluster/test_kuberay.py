"""The manifests of `cluster/kuberay`: valid by KubeRay's schemas, and complete in themselves."""

import copy
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import __version__ as ray_version
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from ray_job import make_parser
from tests.conftest import DATA_VARIABLE
from tests.support.manifests import PROJECT, faults, kustomize, render

KUBERAY = PROJECT / "cluster" / "kuberay"
JOBS = ("prepare", "train", "ensemble")
Manifest = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _renderer() -> None:
    if kustomize() is None:
        assert DATA_VARIABLE not in os.environ, "no kustomize: run tests/install_kustomize.sh"
        pytest.skip("needs kustomize or kubectl: tests/install_kustomize.sh")


@pytest.fixture(scope="module")
def definitions() -> Path:
    """The folder of KubeRay's definitions."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"needs KubeRay's definitions in kuberay/ of {DATA_VARIABLE}")
    path = Path(folder) / "kuberay"
    assert path.is_dir(), f"{path}: not there"
    return path


def with_lines(folder: Path, overlay: str, *components: str) -> Manifest:
    """The one manifest of an overlay in which the lines of these components are put in use."""
    copied = folder / "kuberay"
    shutil.copytree(KUBERAY, copied, dirs_exist_ok=True)
    path = copied / overlay / "kustomization.yaml"
    text = path.read_text()
    for component in components:
        assert f"  # - ../components/{component}\n" in text
        text = text.replace(
            f"  # - ../components/{component}\n", f"  - ../components/{component}\n"
        )
    path.write_text(text)
    (manifest,) = render(copied / overlay)
    return manifest


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """Each overlay, as it is and with the components that its comments offer."""
    made = {}
    for overlay in ("long-lived", *JOBS):
        (made[overlay],) = render(KUBERAY / overlay)
        for variant in (("pvc",), ("kueue",), ("pvc", "kueue")):
            if overlay in JOBS or variant == ("pvc",):
                folder = tmp_path_factory.mktemp("manifests")
                made[f"{overlay} {variant}"] = with_lines(folder, overlay, *variant)
    return made


def cluster_of(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def templates(manifest: Manifest) -> Iterator[Manifest]:
    """The pods: of the head, of each group, and the one that hands in the job."""
    spec = cluster_of(manifest)
    yield spec["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])
    if manifest["kind"] == "RayJob":
        yield manifest["spec"]["submitterPodTemplate"]["spec"]


def size(quantity: str) -> int:
    """Bytes, of a quantity of memory such as 8Gi."""
    return int(quantity[:-2]) * int(1024 ** (["Ki", "Mi", "Gi", "Ti"].index(quantity[-2:]) + 1))


def test_manifests_are_valid(manifests: dict[str, Manifest], definitions: Path) -> None:
    found = {name: faults(manifest, definitions) for name, manifest in manifests.items()}
    assert len(found) == 14
    assert not any(found.values()), found


def test_misspelt_and_mistyped_fields_are_found(
    manifests: dict[str, Manifest], definitions: Path
) -> None:
    for path, key, value in (
        ((), "shutdownAfterJobFinish", True),
        (("rayClusterSpec",), "enableInTreeAutoscalling", True),
        (("rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas", "4"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec"), "toleration", []),
        (("rayClusterSpec", "authOptions"), "mode", "password"),
    ):
        manifest = copy.deepcopy(manifests["train"])
        place = manifest["spec"]
        for step in path:
            place = place[step]
        place[key] = value
        assert len(faults(manifest, definitions)) == 1, key


def test_pods_have_what_they_name(manifests: dict[str, Manifest]) -> None:
    """Volumes for mounts, one image, and secrets and claims that the folder's pages describe."""
    guide = (PROJECT / "cluster" / "README.md").read_text()
    (claim,) = render(KUBERAY / "disk")
    for name, manifest in manifests.items():
        images, sources, claims = set(), set(), set()
        for pod in templates(manifest):
            (container,) = pod["containers"]
            images.add(container["image"])
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)
            sources |= {item["secretRef"]["name"] for item in container.get("envFrom", [])}
            claims |= {
                volume["persistentVolumeClaim"]["claimName"]
                for volume in volumes.values()
                if "persistentVolumeClaim" in volume
            }
        assert len(images) == 1, name
        assert sources == {"ast-ray-storage"}
        assert claims == ({claim["metadata"]["name"]} if "pvc" in name else set()), name
    assert "create secret generic ast-ray-storage" in guide


def test_memory_is_promised_and_fits(manifests: dict[str, Manifest]) -> None:
    for name, manifest in manifests.items():
        spec = cluster_of(manifest)
        for pod in templates(manifest):
            resources = pod["containers"][0]["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (shm,) = (volume for volume in pod["volumes"] if volume["name"] == "shm")
            assert shm["emptyDir"]["medium"] == "Memory"
            store = int(group["rayStartParams"]["object-store-memory"])
            shared = size(shm["emptyDir"]["sizeLimit"])
            assert store < shared < size(pod["containers"][0]["resources"]["limits"]["memory"]) / 2


def test_pods_run_without_privileges(manifests: dict[str, Manifest]) -> None:
    """As the profile `restricted` of Kubernetes' pod security standards wants it."""
    for name, manifest in manifests.items():
        for pod in templates(manifest):
            own = pod["securityContext"]
            assert own["runAsNonRoot"] is True, name
            assert own["runAsUser"] == 1000
            assert own["seccompProfile"] == {"type": "RuntimeDefault"}
            locked = pod["containers"][0]["securityContext"]
            assert locked == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        spec = cluster_of(manifest)
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == ray_version


def test_ray_sees_groups_that_grow_from_zero(manifests: dict[str, Manifest]) -> None:
    """By the code with which Ray's autoscaler reads a cluster of KubeRay."""
    cluster = copy.deepcopy(manifests["long-lived"])
    cluster["metadata"]["namespace"] = "audio"
    groups = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    seen = {name: (group["min_workers"], group["resources"]) for name, group in groups.items()}
    assert seen == {
        "headgroup": (0, {"CPU": 0, "memory": 8 * 2**30}),
        "cpu": (0, {"CPU": 7, "memory": 24 * 2**30}),
        "gpu": (0, {"CPU": 7, "GPU": 1, "memory": 24 * 2**30}),
    }


def test_jobs_run_steps_that_fit_their_workers(manifests: dict[str, Manifest]) -> None:
    for overlay in JOBS:
        for name, manifest in manifests.items():
            if name.split()[0] != overlay:
                continue
            assert manifest["metadata"]["name"] == f"ast-ray-{overlay}"
            spec = manifest["spec"]
            assert spec["shutdownAfterJobFinishes"] is True
            program, *command = shlex.split(spec["entrypoint"])
            assert (program, command[0]) == ("ast-ray", overlay)
            arguments = make_parser().parse_args(command)
            (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
            assert group["groupName"] == ("cpu" if overlay == "prepare" else "gpu")
            if overlay != "prepare":
                requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
                assert arguments.gpu
                assert arguments.cpus_per_worker < int(requests["cpu"])
                assert max(arguments.workers) <= group["maxReplicas"]


def test_ended_workers_have_time_for_a_checkpoint(manifests: dict[str, Manifest]) -> None:
    """Ray waits 30 s after SIGTERM; Kubernetes kills the pod after its own time."""
    for group in cluster_of(manifests["long-lived"])["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 30


def test_kueue_gets_jobs_of_a_fixed_size(manifests: dict[str, Manifest]) -> None:
    """It refuses a job whose cluster scales, and reserves the replicas."""
    waiting = [manifest for name, manifest in manifests.items() if "kueue" in name]
    assert len(waiting) == 6
    for manifest in waiting:
        assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "audio"}
        assert manifest["spec"]["suspend"] is True
        spec = cluster_of(manifest)
        assert spec["enableInTreeAutoscaling"] is False
        assert "autoscalerOptions" not in spec
        (group,) = spec["workerGroupSpecs"]
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_every_folder_is_used() -> None:
    """No file is left that nothing names, apart from the overlays that the guide names."""
    guide = (PROJECT / "cluster" / "README.md").read_text()
    for path in KUBERAY.rglob("kustomization.yaml"):
        text = yaml.safe_load(path.read_text())
        named = [*text.get("resources", []), *(text.get("components") or [])]
        assert all((path.parent / name).exists() for name in named), path
        if path.parent.parent == KUBERAY and path.parent.name != "base":
            assert f"cluster/kuberay/{path.parent.name}" in guide, path
