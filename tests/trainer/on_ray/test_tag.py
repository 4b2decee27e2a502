"""`tag` on Ray: the same tags, whatever dies on the way."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from cluster.session import connect
from cluster.worker_errors import unwrap
from pipeline import storage
from pipeline.errors import UserError
from pipeline.on_ray.shared_files import SharedPaths
from tests.support.audio import encode
from tests.support.nodes import own_nodes
from tests.support.preparation import bad_clips
from tests.support.sabotage import sabotaged
from tests.support.steps import own_lines, ray_folder, started
from tests.support.tagging import Trained, sound, train_on_audio, write_recording, write_sounds
from trainer.on_ray import tag as on_ray_tag
from trainer.on_ray.settings import Workers
from trainer.on_ray.tag import tag_on_ray
from trainer.tagging.assemble import RECORDINGS, REJECTS, WINDOWS, read_card
from trainer.tagging.job import Work, make_job
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.part_files import segments_folder
from trainer.tagging.settings import TagSettings
from trainer.tagging.source import deal_parts, list_recordings

pytestmark = pytest.mark.ray

NUM_CLIPS = 200
"""More than are tagged without Ray."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_audio(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Path]:
    """A recording that kills its decoder; another is decoded once there is no `note.hold`."""
    folder = tmp_path_factory.mktemp("sabotage")
    path = folder / "deadly.wav"
    path.write_bytes(encode(sound("rain", 0.5)))
    with sabotaged(folder, {str(path): "die()", trained.clips[0].uri: "held()"}):
        yield path


@contextmanager
def holding(deadly: Path) -> Iterator[None]:
    """A step that tags cannot end within the block."""
    hold = deadly.with_name("note.hold")
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory, deadly: Path) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    write_sounds(folder, NUM_CLIPS)
    bad_clips(folder)
    shutil.copy(deadly, folder)
    write_recording(folder / "long.flac", [("rain", 200.0), ("dog", 200.0)], container="FLAC")
    return folder


def command(trained: Trained, audio: Path, output: Path, *more: str) -> list[str]:
    options = ["--scores", "all", "--batch-size", "4", *(more or ("--num-cpus", "2"))]
    return ["tag", trained.run, str(audio), "--out", str(output), *options]


def tags(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in (WINDOWS, RECORDINGS, REJECTS)}


def wait_for_segments(step: "subprocess.Popen[str]", output: Path, num: int) -> None:
    deadline = time.monotonic() + 240
    while len(storage.list_files(segments_folder(str(output)))) < 2 * num:
        assert step.poll() is None, step.communicate()
        assert time.monotonic() < deadline, "no segments within 240 s"
        time.sleep(0.02)


def kill_a_worker(step: int) -> None:
    """Kill a process of the step while it tags."""
    deadline = time.monotonic() + 240
    while not (workers := workers_of(step, b"_Scorer)).submit")):
        assert time.monotonic() < deadline, "no worker within 240 s"
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)


def workers_of(step: int, words: bytes = b"_Scorer") -> list[int]:
    """Processes of a step's Ray with these words in their titles: children of its raylet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if words in path.read_bytes() and parent(parent(int(path.parent.name))) == step:
                found.append(int(path.parent.name))
    return found


def parent(process: int) -> int:
    status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(status[1])


@pytest.fixture(scope="module")
def whole(trained: Trained, audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tags as they should be."""
    output = tmp_path_factory.mktemp("tags") / "whole"
    with started(command(trained, audio, output)) as step:
        _, errors = step.communicate(timeout=600)
        assert step.returncode == 0, errors
    assert "MapWorker" not in errors, "Ray says where the arguments of its actors are"
    (warning,) = own_lines(errors)
    assert "1 recording is at 1,000 Hz, below the model's 16,000 Hz" in warning
    return output


def test_recording_that_kills_its_decoder_costs_itself_alone(whole: Path) -> None:
    card = read_card(str(whole))
    assert card is not None
    assert (
        card.num_recordings == NUM_CLIPS + 3
    )  # a cut one, one too long for `prepare`, and the long one
    assert sum(card.rejects.values()) == 6
    assert card.rejects["decode: the decoder crashed (SIGKILL)"] == 1


def test_killed_steps_and_actors_change_no_byte(
    trained: Trained, deadly: Path, audio: Path, whole: Path, tmp_path: Path
) -> None:
    resumed = tmp_path / "resumed"
    # Only the tags are compared; `whole` has a page.
    options = ("--num-cpus", "2", "--no-page")
    with holding(deadly), started(command(trained, audio, resumed, *options)) as step:
        wait_for_segments(step, resumed, 3)
        os.killpg(step.pid, signal.SIGKILL)
        step.communicate()
    assert not (resumed / WINDOWS).exists()
    with started(command(trained, audio, resumed, *options)) as step:
        with holding(deadly):
            kill_a_worker(step.pid)
        _, errors = step.communicate(timeout=600)
        assert step.returncode == 0, errors
    assert tags(resumed) == tags(whole)


@contextmanager
def killing_workers() -> Iterator[list[int]]:
    """Kill each worker of the Ray of this process as it appears; yields those that were."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            for worker in workers_of(os.getpid()):
                if worker not in killed:
                    killed.append(worker)
                    with suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def test_actor_that_always_dies_ends_the_step(
    trained: Trained, deadly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray_tag, "_MOST_RESTARTS", 1)
    choice = ModelChoice(path=trained.run)
    recordings = list_recordings(trained.clips[0].uri)
    job = make_job(load_tagger(choice), str(tmp_path), TagSettings(), batch_size=1)
    work = Work(parts=deal_parts(recordings), done={}, recordings=recordings, job=job)
    with holding(deadly), connect(address="local", num_cpus=1), killing_workers() as killed:
        tag = tag_on_ray(choice, Workers(num=1), SharedPaths())
        with pytest.raises(RayActorError) as caught:
            list(tag(work))
    assert len(killed) == 2
    assert isinstance(unwrap(caught.value), UserError)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_node_with_a_gpu_that_is_killed_changes_no_byte(
    trained: Trained, audio: Path, whole: Path, tmp_path: Path
) -> None:
    """Ray takes these nodes for ones with GPUs; the model computes on their CPUs.

    The other actor may still start when the first segment is done: a node that scores is killed.
    """
    output = tmp_path / "tags"
    with ray_folder() as short, own_nodes(short, 1) as nodes:
        for _ in range(2):
            nodes.add("--num-gpus=1", "--object-store-memory=500000000")
        nodes.wait_until_up()
        options = ("--address", nodes.address, "--gpu")
        with started(command(trained, audio, output, *options)) as step:
            wait_for_segments(step, output, 1)
            nodes.kill_one_with(b"_Scorer)).submit")
            _, errors = step.communicate(timeout=600)
            assert step.returncode == 0, errors
    assert sum("lost" in line for line in own_lines(errors)) == 1, errors
    assert tags(output) == tags(whole)
