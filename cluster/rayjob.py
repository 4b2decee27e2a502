"""Write a step as a RayJob of KubeRay, in place of sending it to a job server.

In: manifests with the cluster (a RayCluster, or a RayJob that brings one), and the step. Out: a
RayJob with that cluster, which runs `ast-ray STEP` in its image. Nothing is uploaded, and no secret
stands in it as a value.
"""

import copy
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

from cluster.packages import NO_PACKAGES, Packages
from pipeline.errors import UserError

_API = "ray.io/v1"
_DEFAULTS = {"backoffLimit": 1, "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 300}
"""Of a job that is made from a cluster; see `cluster/kuberay/components/job`."""
_LONGEST_PREFIX = 41
"""Of a generated name: KubeRay takes 47 characters, and Kubernetes adds 5."""
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY")
_NAMES_A_FILE = re.compile(r"_(FILE|PATH)$")

Manifest = dict[str, Any]


def rayjob_manifest(
    text: str,
    where: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    packages: Packages = NO_PACKAGES,
    image: str | None = None,
) -> str:
    """The RayJob of a step, as YAML; `kubectl create` gives it a name that is new each time.

    Args:
        text: YAML with one RayCluster or RayJob; other manifests beside it are ignored.
        where: What to call the text in errors.
        arguments: The command line after `ast-ray`.
        environment: Variables for the job.
        packages: Packages to install for the job; no wheels.
        image: Image of all nodes, in place of that in the text.

    Raises:
        UserError: the text has not one such manifest, lacks a part that is needed, or a secret
            would stand in the job.
    """
    if not arguments:
        raise UserError("submit", "give the command to run after --, such as: submit -- train ...")
    if packages.wheels:
        raise UserError("--pip", "a RayJob is sent no files", "build the wheel into the image")
    source = _one_manifest(text, where)
    spec = _job_spec(source, where)
    for container in _containers(spec):
        if image is not None:
            container["image"] = image
        _check_no_secrets(_values(container.get("env", [])), where)
    runtime_env = _runtime_env(spec, where)
    _check_no_secrets(runtime_env.get("env_vars", {}), where)
    _check_no_secrets(environment or {}, "--env")
    variables = {**runtime_env.get("env_vars", {}), **(environment or {})}
    runtime_env |= packages.runtime_env() | ({"env_vars": variables} if variables else {})
    is_by_shell = spec.get("submissionMode", "K8sJobMode") != "HTTPMode"
    if runtime_env:
        spec["runtimeEnvYAML"] = _dump(runtime_env)
        if is_by_shell and re.search(r"[$`\\]", json.dumps(runtime_env)):
            raise UserError(
                where,
                "KubeRay passes variables and packages through a shell, where $, ` and \\ change",
                "set submissionMode: HTTPMode in it",
            )
    quote = _twice_quoted if is_by_shell else shlex.quote
    spec["entrypoint"] = " ".join(["ast-ray", *(quote(argument) for argument in arguments)])
    metadata = {"generateName": f"ast-ray-{arguments[0]}"[: _LONGEST_PREFIX - 1] + "-"}
    kept = {
        key: source["metadata"][key] for key in ("namespace", "labels") if key in source["metadata"]
    }
    return _dump({"apiVersion": _API, "kind": "RayJob", "metadata": metadata | kept, "spec": spec})


def _one_manifest(text: str, where: str) -> Manifest:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}", "not YAML") from error
    found = [
        one
        for one in documents
        if isinstance(one, dict)
        and one.get("apiVersion") == _API
        and one.get("kind") in ("RayCluster", "RayJob")
    ]
    if len(found) != 1:
        raise UserError(
            where,
            f"has {len(found)} RayClusters and RayJobs of {_API}, not one",
            "write it with: kubectl kustomize cluster/kuberay/train",
        )
    return {"metadata": {}, **copy.deepcopy(found[0])}


def _job_spec(source: Manifest, where: str) -> Manifest:
    """The job's description, which has a cluster with a head."""
    spec: Any = source.get("spec")
    if source["kind"] == "RayCluster":
        spec = {**_DEFAULTS, "rayClusterSpec": spec}
    try:
        (head, *_) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        head["image"]
    except (KeyError, TypeError, ValueError) as error:
        part = "spec" if source["kind"] == "RayCluster" else "spec.rayClusterSpec"
        raise UserError(where, f"has no image of the head in {part}") from error
    assert isinstance(spec, dict)
    spec.pop("jobId", None)
    if source["kind"] == "RayCluster":
        spec["submitterPodTemplate"] = _submitter(spec["rayClusterSpec"])
    return spec


def _submitter(cluster: Manifest) -> Manifest:
    """The pod that hands in the job, with the image and as few rights as the head."""
    head = cluster["headGroupSpec"]["template"]["spec"]
    container = {"name": "ray-job-submitter", "image": head["containers"][0]["image"]}
    if "securityContext" in head["containers"][0]:
        container["securityContext"] = copy.deepcopy(head["containers"][0]["securityContext"])
    pod = {"restartPolicy": "Never", "containers": [container]}
    kept = ("securityContext", "imagePullSecrets")
    return {"spec": pod | {key: copy.deepcopy(head[key]) for key in kept if key in head}}


def _containers(spec: Manifest) -> Iterator[Manifest]:
    """The first container of every pod, which is Ray's."""
    cluster = spec["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster.get("workerGroupSpecs") or []]
    templates += [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    for template in templates:
        yield template["spec"]["containers"][0]


def _runtime_env(spec: Manifest, where: str) -> Manifest:
    """The runtime environment that the job has already."""
    try:
        given = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError as error:
        raise UserError(f"{where}, runtimeEnvYAML", "not YAML") from error
    if not isinstance(given, dict):
        raise UserError(f"{where}, runtimeEnvYAML", "not a mapping")
    return given


def _values(env: Sequence[Manifest]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in env if one.get("value")}


def _check_no_secrets(variables: Mapping[str, str], where: str) -> None:
    for name, value in variables.items():
        is_secret = _SECRET.search(name.upper()) and not _NAMES_A_FILE.search(name.upper())
        if is_secret or ("://" in value and urlsplit(value).password):
            raise UserError(
                where,
                f"{name} would stand in the job, where many can read it",
                "put it into a secret of Kubernetes, and name that under envFrom in the manifest",
            )


def _twice_quoted(argument: str) -> str:
    """An argument for KubeRay's default way of submission.

    The submitter's shell takes `ray job submit -- ENTRYPOINT` apart; Ray puts the arguments
    together by the rules of Windows (`subprocess.list2cmdline`), and the head's shell takes them
    apart again.

    Raises:
        UserError: no text comes out as this argument.
    """
    if not re.search(r"[ \t]", argument):
        # Ray leaves single quotes and puts a backslash before double ones, which are outside here.
        parts = ["'" + part.replace("'", "'\\''") + "'" for part in argument.split('"')]
        inner = '"'.join(parts) if shlex.quote(argument) != argument else argument
    elif "\\" in argument:
        raise UserError(
            "submit",
            f"KubeRay's shells change a backslash beside a space: {argument!r}",
            "set submissionMode: HTTPMode in the manifest",
        )
    else:
        # Ray puts double quotes around it, in which these stay special.
        inner = re.sub(r"([$`])", r"\\\1", argument)
    return shlex.quote(inner)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as such."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


def _dump(document: Any) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100))
