"""A run while its nodes come and go: it shrinks, grows, obeys notices, and loses no step."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.runs import assert_losses_of_one_worker, newest
from tests.support.steps import PROJECT, ray_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Two workers from the start; more steps than the events below take.
RECIPE = tiny_recipe(
    schedule={"lr": 1e-5}, train={"epochs": 2000, "log_every_steps": 4, "checkpoint_every_s": 1}
)

STORY = '''
import os, re, signal, subprocess, sys, threading, time
from pathlib import Path
import ray_job
from ray.cluster_utils import Cluster
from tests.support.steps import children_of
from trainer.on_ray import train

train._RESIZE_EVERY_S = 2.0
run, *command = sys.argv[1:]
head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
first, second = (cluster.add_node(num_cpus=1) for _ in range(2))


def newest():
    return max((int(path.stem[5:]) for path in Path(run).glob("checkpoints/step-*.pt")), default=0)


def go_on(is_so):
    """Wait until it is so, and for some steps after that."""
    while not is_so():
        time.sleep(0.1)
    enough = newest() + 7
    while newest() < enough:
        time.sleep(0.1)


def workers():
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title = (path / "cmdline").read_text()
            environment = (path / "environ").read_text()
        except OSError:
            continue
        if title.startswith("ray::RayTrainWorker") and os.environ["STORY"] in environment:
            found.append(int(path.name))
    return found


def story():
    go_on(lambda: len(workers()) == 2)
    raylet = second.all_processes["raylet"][0].process.pid
    lost = set(workers()) & set(children_of(raylet))
    assert lost
    # They end with their node: Ray leaves them a second, in which they may leave with a checkpoint.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for worker in lost:
            os.kill(worker, number)
        if number == signal.SIGSTOP:
            cluster.remove_node(second, allow_graceful=False)
    go_on(lambda: len(workers()) == 1)
    start = [sys.executable, "-m", "tests.support.patient_ray", "start", "--block", "--num-cpus=1"]
    node = subprocess.Popen([*start, f"--address={cluster.address}"], stdout=subprocess.DEVNULL)
    go_on(lambda: len(workers()) == 2)
    before = workers()
    os.kill(before[1], signal.SIGTERM)
    go_on(lambda: len(workers()) == 2 and workers() != before)
    os.kill(os.getpid(), signal.SIGTERM)
    ended.wait()
    node.terminate()
    node.wait()


ended = threading.Event()
teller = threading.Thread(target=story, daemon=True)
teller.start()
status = ray_job.main([*command, "--address", cluster.address])
ended.set()
teller.join(60)
cluster.shutdown()
sys.exit(status)
'''


def test_run_goes_on_with_the_nodes_that_there_are(tmp_path: Path) -> None:
    dataset = make_prepared(f"{tmp_path}/data")
    recipe, run = write_recipe(tmp_path / "tiny.toml", RECIPE), str(tmp_path / "run")
    command = ["train", str(recipe), f"--data={dataset.path}", f"--out={run}", "--workers=1:2"]
    with ray_folder() as folder:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            [sys.executable, "-c", STORY, run, *command],
            cwd=PROJECT,
            env={**environment, "STORY": f"story={tmp_path}"},
            capture_output=True,
            text=True,
            timeout=1400,
            check=False,
        )
    assert done.returncode == 143, done.stderr
    for sign in ("Traceback", "state-dump", ".cc:", "(raylet", "core_worker"):
        assert sign not in done.stdout + done.stderr
    steps = []
    for reason in (
        r"node \S+ is lost with 1 of 2 workers",
        "room for 2 workers, not 1",
        "told to end by SIGTERM",
    ):
        # A node that joins on the same machine sends once more what the others have sent.
        lines = re.findall(rf"warning: .*(?:{reason}).*; restarting from step \d+", done.stderr)
        found = {int(line.rpartition(" ")[2]) for line in lines}
        assert len(found) == 1, done.stderr
        steps.append(found.pop())
    stopped = re.findall(r"error: .*stopped; its newest checkpoint is of step (\d+)", done.stderr)
    assert len(stopped) == 1, done.stderr
    assert sorted(steps) == steps
    assert newest(run).progress.step == int(stopped[0])
    assert_losses_of_one_worker(run, dataset.path, str(tmp_path / "fixed"))
