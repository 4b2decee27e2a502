"""`tag` of a bucket into the bucket: whatever is killed on the way, the tags are the same."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline import storage
from tests.conftest import s3_environment
from tests.support.field_recordings import write_recordings
from tests.support.nodes import own_nodes, wait_for
from tests.support.steps import own_lines, ray_folder, started
from tests.support.tagging import train_on_audio
from trainer.tagging.assemble import RECORDINGS, REJECTS, WINDOWS, read_card
from trainer.tagging.part_files import done_segments

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2400)]

NUM_RECORDINGS, NUM_BROKEN = 640, 8
NOISE = ("Traceback", "state-dump", ".cc", "(raylet", "core_worker", "Fatal", "    @", "*** ")


def assert_quiet(stderr: str) -> None:
    print(stderr)
    for sign in NOISE:
        assert sign not in stderr


def tags(output: str) -> dict[str, bytes]:
    names = (WINDOWS, RECORDINGS, REJECTS)
    return {name: storage.read_bytes(storage.join(output, name)) for name in names}


def num_done(output: str) -> int:
    return sum(map(len, done_segments(output).values()))


def command(model: str, bucket: str, name: str, where: str = "--num-cpus=2") -> list[str]:
    """Many windows, so that each of the steps that are killed has much left to do."""
    options = ["--hop=0.16", "--no-page", where]
    return ["tag", model, f"{bucket}/audio", f"--out={bucket}/{name}", *options]


def wait_for_segment(output: str, rng: random.Random, step: "subprocess.Popen[str]") -> None:
    """Until another segment is done than before, and then a moment."""
    before = num_done(output)

    def goes_on() -> bool:
        assert step.poll() is None, step.communicate()
        return num_done(output) > before

    wait_for(goes_on, 600)
    time.sleep(rng.uniform(0, 1))


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("SEED") or random.randrange(1000))
    print(f"SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_on_audio(tmp_path_factory.mktemp("trained")).run


def test_killed_steps_and_nodes_change_no_byte(
    model: str, s3: str, s3_endpoint: str, esc10: Path, rng: random.Random
) -> None:
    files = sorted((esc10 / "audio").glob("*.ogg"))
    write_recordings(f"{s3}/audio", files, NUM_RECORDINGS, NUM_BROKEN)
    stderr = tag(model, s3, "whole")
    assert own_lines(stderr) == []
    whole = tags(f"{s3}/whole")
    card = read_card(f"{s3}/whole")
    assert card is not None
    assert sum(card.rejects.values()) == NUM_BROKEN
    assert NUM_RECORDINGS - NUM_BROKEN <= card.num_recordings < NUM_RECORDINGS

    for _ in range(2):
        with started(command(model, s3, "killed")) as step:
            wait_for_segment(f"{s3}/killed", rng, step)
            os.killpg(step.pid, signal.SIGKILL)
            step.communicate()
        assert not storage.exists(f"{s3}/killed/tags.json"), "too early"
    assert own_lines(tag(model, s3, "killed")) == []
    assert tags(f"{s3}/killed") == whole

    with (
        ray_folder() as short,
        own_nodes(short, 3, s3_environment(s3_endpoint)) as nodes,
        started(command(model, s3, "lost", f"--address={nodes.address}")) as step,
    ):
        wait_for_segment(f"{s3}/lost", rng, step)
        nodes.kill_one_with(b"_Scorer)).submit")
        _, stderr = step.communicate(timeout=600)
        assert step.returncode == 0, stderr
    assert_quiet(stderr)
    assert len(re.findall(r"^warning: node \S+ is lost", stderr, re.MULTILINE)) == 1, stderr
    assert tags(f"{s3}/lost") == whole


def tag(model: str, bucket: str, name: str) -> str:
    """Tag on a Ray of two CPUs to the end; returns what is shown."""
    with started(command(model, bucket, name)) as step:
        _, stderr = step.communicate(timeout=600)
        assert step.returncode == 0, stderr
    assert_quiet(stderr)
    return stderr
