"""`submit --kuberay`: a step as a RayJob with the cluster of a manifest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

import pytest
import yaml

import ray_job
from cluster.packages import Packages
from cluster.rayjob import _twice_quoted, rayjob_manifest
from tests.conftest import DATA_VARIABLE
from tests.support.errors import assert_error_line, refused
from tests.support.manifests import PROJECT, faults

BASE = (PROJECT / "cluster" / "kuberay" / "base" / "cluster.yaml").read_text()
STEP = ["evaluate", "s3://lab/run", "--gpu"]
Manifest = dict[str, Any]


def made(text: str, *arguments: str, **options: Any) -> Manifest:
    return dict(yaml.safe_load(rayjob_manifest(text, "own.yaml", arguments or STEP, **options)))


def with_head(**changes: Any) -> str:
    """The cluster of `base` with other fields in the head's container."""
    cluster = yaml.safe_load(BASE)
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(changes)
    return str(yaml.safe_dump(cluster))


def test_job_has_the_cluster_and_the_step() -> None:
    job = made(f"apiVersion: v1\nkind: Secret\n---\n{BASE}")
    cluster = yaml.safe_load(BASE)["spec"]
    assert job["spec"]["rayClusterSpec"] == cluster
    assert job["spec"]["entrypoint"] == "ast-ray evaluate s3://lab/run --gpu"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["metadata"] == {"generateName": "ast-ray-evaluate-"}
    assert "runtimeEnvYAML" not in job["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    submitter = job["spec"]["submitterPodTemplate"]["spec"]
    assert submitter["securityContext"] == head["securityContext"]
    assert submitter["containers"][0]["image"] == head["containers"][0]["image"]


def test_job_of_a_job_keeps_its_settings() -> None:
    first = made(BASE)
    first["metadata"] = {"name": "nightly", "namespace": "audio", "labels": {"queue": "a"}}
    first["spec"] |= {"backoffLimit": 7, "jobId": "old", "runtimeEnvYAML": "env_vars: {A: '1'}"}
    job = made(yaml.safe_dump(first), environment={"B": "2"}, image="other:2")
    assert job["metadata"] == {
        "generateName": "ast-ray-evaluate-", "namespace": "audio", "labels": {"queue": "a"},
    }  # fmt: skip
    assert job["spec"]["backoffLimit"] == 7
    assert "jobId" not in job["spec"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"A": "1", "B": "2"}}
    assert yaml.safe_dump(job).count("image: other:2") == 4
    assert yaml.safe_dump(job).count("image:") == 4


def test_jobs_are_valid() -> None:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"needs KubeRay's definitions in kuberay/ of {DATA_VARIABLE}")
    packages = Packages(lines=("librosa==0.11.0",))
    job = made(BASE, environment={"A": "1"}, packages=packages, image="other:2")
    assert faults(job, Path(folder) / "kuberay") == []


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "my_password", "API_KEY"]
)
def test_secrets_do_not_stand_in_a_job(name: str) -> None:
    with refused("--env", name, remedy="envFrom"):
        made(BASE, environment={name: "geheim"})
    with refused("own.yaml", name, remedy="envFrom"):
        made(with_head(env=[{"name": name, "value": "geheim"}]))
    by_name = [{"name": name, "valueFrom": {"secretKeyRef": {"name": "mine", "key": "key"}}}]
    made(with_head(env=by_name))


def test_addresses_with_a_password_are_secrets_and_paths_of_tokens_are_none() -> None:
    with refused("--env", "AWS_ENDPOINT_URL"):
        made(BASE, environment={"AWS_ENDPOINT_URL": "http://lab:geheim@minio:9000"})
    made(BASE, environment={"AWS_ENDPOINT_URL": "http://minio:9000", "HF_TOKEN_PATH": "/data/t"})


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("a: [1", "own.yaml, line 1", "YAML"),
        ("", "own.yaml", 0),
        (f"{BASE}\n---\n{BASE}", "own.yaml", 2),
        (BASE.replace("ray.io/v1", "ray.io/v1alpha1"), "own.yaml", 0),
        ("apiVersion: ray.io/v1\nkind: RayJob\nspec: {entrypoint: x}", "own.yaml", "image"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\n", "own.yaml", "image"),
    ],
)
def test_manifests_without_one_cluster_are_refused(text: str, where: str, value: object) -> None:
    with refused(where, value):
        made(text)


ARGUMENTS = [
    "plain", "two words", "it's", 'say"x"', 'say "x" y', "$HOME", "a $HOME b", "*", "`id`",
    "a `id` b", ";ls", "a;b c", "", "[1,2]", "x=['a']", "back\\slash", "a\nb", "a'b\"c", "a' b\"c",
]  # fmt: skip


def test_arguments_survive_the_shells_on_the_way() -> None:
    """Of KubeRay's submitter, of Ray's command line, and of the head."""
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]

    def taken_apart(shell: str, words: str) -> list[str]:
        command = [shell, "-c", f'"$0" -c "$1" {words}', show[0], show[2]]
        return list(json.loads(subprocess.check_output(command, text=True)))

    first = taken_apart("bash", " ".join(_twice_quoted(argument) for argument in ARGUMENTS))
    assert taken_apart("sh", list2cmdline(first)) == ARGUMENTS
    with refused("submit", "HTTPMode"):
        _twice_quoted("a\\ b")


def test_job_by_http_needs_one_shell_less() -> None:
    job = made(BASE)
    job["spec"]["submissionMode"] = "HTTPMode"
    again = made(yaml.safe_dump(job), "train", "x's", environment={"A": "$B"})
    assert again["spec"]["entrypoint"] == "ast-ray train 'x'\"'\"'s'"
    with refused("own.yaml", "HTTPMode"):
        made(BASE, environment={"A": "$B"})


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["--address", "http://head:8265"], "--address"),
        (["--no-wait"], "--no-wait"),
        (["--working-dir", "."], "--working-dir"),
        (["--forward-credentials"], "--forward-credentials"),
        (["--working-dir-exclude", "x"], "--working-dir-exclude"),
        (["--pip", "own.whl"], "--pip"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(
    options: list[str],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(BASE)
    Path("own.whl").touch()
    assert ray_job.main(["submit", "--kuberay", "own.yaml", *options, "--", *STEP]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert_error_line(err, where)


def test_command_prints_the_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    Path("own.yaml").write_text(BASE)
    Path("own.toml").touch()
    command = ["submit", "--kuberay", "own.yaml", "--env", "A=1", "--image", "other:2", "--", *STEP]
    assert ray_job.main(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "geheim" not in out
    assert yaml.safe_load(out)["spec"]["entrypoint"] == "ast-ray evaluate s3://lab/run --gpu"
    train = ["train", "own.toml", "--data", "s3://lab/data", "--out", "s3://lab/run"]
    assert ray_job.main(["submit", "--kuberay", "own.yaml", "--", *train]) == 1
    assert_error_line(capsys.readouterr().err, "own.toml", "RayJob")
