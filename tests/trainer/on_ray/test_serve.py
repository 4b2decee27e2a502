"""`serve` on Ray: each request gets its own tags, whatever dies on the way."""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.support.audio import encode
from tests.support.serving import Answer, send
from tests.support.sockets import listening
from tests.support.steps import children_of, is_session_alive, processes_in_session, started
from tests.support.tagging import PITCHES_HZ, Trained, sound, train_on_audio
from trainer.on_ray import serve
from trainer.on_ray.settings import Workers
from trainer.serving.answer import Scores
from trainer.serving.reply import Reply
from trainer.serving.request import TagRequest
from trainer.serving.settings import ServeLimits
from trainer.tagging.job import tag_in_memory
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.settings import KeepSettings, TagSettings
from trainer.tagging.source import list_recordings
from trainer.tagging.windows import Samples

pytestmark = pytest.mark.ray

TOKEN = "0123456789abcdef"
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
START_S = 240
FLAT_BYTES = 60e6
"""Growth that is no leak: caches of the allocator, and of libraries."""


@dataclass(kw_only=True)
class Server:
    """The step, and what it has said."""

    step: "subprocess.Popen[str]"
    address: str
    run: str
    num_killed: int = 0

    def tag(self, audio: bytes, query: str = "") -> Answer:
        return send(self.address, f"tag?{query}", audio, authorization=f"Bearer {TOKEN}")

    def replicas(self) -> list[int]:
        return [one for one in processes_in_session(self.step.pid) if is_replica(one)]


def is_replica(process: int) -> bool:
    try:
        return "ServeReplica" in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_audio(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(trained, tmp_path_factory.mktemp("token"), "--replicas=2") as started_server:
        yield started_server


@contextmanager
def serving(trained: Trained, folder: Path, *more: str) -> Iterator[Server]:
    token = folder / "token"
    token.write_text(TOKEN)
    options = ["--port=0", f"--token-file={token}", "--num-cpus=2", "--max-mb=2", *more]
    with started(["serve", trained.run, "--address=local", *options]) as step:
        assert step.stdout is not None
        reader = threading.Timer(START_S, step.kill)
        reader.start()
        line = step.stdout.readline()
        reader.cancel()
        assert line.startswith("serving run-0 at http://127.0.0.1:"), step.communicate()
        yield Server(step=step, address=line.split()[3], run=trained.run)


def test_real_audio_gets_the_scores_of_tag(server: Server, esc10: Path) -> None:
    tagger = load_tagger(ModelChoice(path=server.run))
    for path in sorted((esc10 / "audio").iterdir())[::80]:
        clips = list_recordings(str(path)).clips_of()
        keep = KeepSettings(top=3)
        tags = tag_in_memory(tagger, clips, TagSettings(keep=keep), batch_size=16)
        expected = tags.windows.to_pylist()
        found = server.tag(path.read_bytes(), "top=3").document
        assert found["file_rate_hz"] == tags.recordings["file_rate_hz"][0].as_py()
        assert len(found["windows"]) == len(expected) > 5
        for one, other in zip(found["windows"], expected, strict=True):
            assert (one["start_s"], one["end_s"]) == (other["start_s"], other["end_s"])
            assert one["labels"] == other["labels"]
            np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-6)


def test_refusals_are_one_line_on_ray_too(server: Server) -> None:
    assert send(server.address, "tag", b"x").status == 401
    assert server.tag(b"hello").status == 422
    assert server.tag(encode(sound("dog", 2.0))[:9_000]).error == "cut short or damaged"
    assert server.tag(bytes(2_000_001)).status == 413
    assert server.tag(encode(sound("dog", 601.0, rate_hz=1_600), 1_600)).status == 413
    assert server.tag(b"x", "window=1").status == 400
    assert send(server.address, "health", method="GET").document == {"status": "ok"}


def durations_s(longest_s: float) -> list[float]:
    """Fifty different ones of whole samples, longest and shortest mixed."""
    num_samples = round(longest_s * 16_000) // 50
    return [num_samples * (1 + 37 * number % 50) / 16_000 for number in range(50)]


def assert_own_answers(answers: list[Answer], durations_s: list[float]) -> None:
    assert {answer.status for answer in answers} == {200}
    assert [answer.document["duration_s"] for answer in answers] == durations_s


@pytest.mark.usefixtures("session")
def test_requests_share_batches(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(serve.Replica):
        """The others are decoded while the first batch is held; it notes the sizes of batches."""

        def __init__(self, setup: serve.ReplicaSetup) -> None:
            self._sizes: list[int] = []
            super().__init__(setup)

        async def _score(self, windows: list[Samples]) -> list[Scores]:
            self._sizes.append(len(windows))
            await asyncio.sleep(10 if len(self._sizes) == 1 else 0)
            return await super()._score(windows)

        async def sizes(self) -> list[int]:
            return self._sizes

    requests = [
        TagRequest(audio=encode(sound(label, (30 + number) / 100)), settings=TagSettings())
        for number, label in enumerate(list(PITCHES_HZ) * 4)
    ]

    async def ask(model: serve.Replicas) -> tuple[list[Reply], list[Reply], list[int]]:
        together = await asyncio.gather(*map(model.tag, requests))
        alone = [await model.tag(request) for request in requests]
        return together, alone, await model._handle.sizes.remote()

    monkeypatch.setattr(serve, "Replica", Slow)
    with serve.replicas(
        ModelChoice(path=trained.run),
        Workers(num=1, cpus=1),
        ServeLimits(),
        batch_size=4,
        name="slow",
        keeps_running=True,
    ) as model:
        together, alone, sizes = asyncio.run(ask(model))
    assert sizes[-12:] == [1] * 12
    assert sum(sizes) == 24
    assert max(sizes) == 4
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        shared, own = json.loads(one.body), json.loads(other.body)
        assert shared["duration_s"] == own["duration_s"] == (30 + number) / 100
        assert shared["max_labels"] == own["max_labels"]
        assert shared["max_scores"] == pytest.approx(own["max_scores"], abs=1e-6)


def test_fifty_requests_at_once_get_their_own_answers(server: Server) -> None:
    lengths_s = durations_s(3.0)
    with ThreadPoolExecutor(50) as pool:
        contents = [encode(sound("rain", length_s)) for length_s in lengths_s]
        assert_own_answers(list(pool.map(server.tag, contents)), lengths_s)


def test_nothing_listens_beyond_this_machine(server: Server) -> None:
    seen = listening(server.step.pid)
    assert any(name.startswith("ray::ServeReplica") for name in seen)
    assert {name: addresses - LOOPBACK for name, addresses in seen.items()} == {
        name: set() for name in seen
    }


def cpu_s(process: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_request_is_lost_with_a_replica(server: Server) -> None:
    first, _ = server.replicas()
    lengths_s = durations_s(300.0)
    silence = [
        encode(np.zeros(round(length_s * 16_000)), container="FLAC") for length_s in lengths_s
    ]
    with ThreadPoolExecutor(50) as pool:
        used_s = cpu_s(first)
        answers = pool.map(server.tag, silence)
        # Serve itself hands on those that no replica has taken; this one computes some.
        deadline = time.monotonic() + 120
        while cpu_s(first) < used_s + 1:
            assert time.monotonic() < deadline, "the first replica has nothing to do"
            time.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        server.num_killed += 1
        assert_own_answers(list(answers), lengths_s)
    deadline = time.monotonic() + 120
    while len(server.replicas()) < 2:
        assert time.monotonic() < deadline, "the lost replica does not start again"
        time.sleep(0.1)


@pytest.mark.slow
def test_memory_stays_flat_over_2000_requests(server: Server) -> None:
    audio = [encode(sound("rain", length_s)) for length_s in durations_s(3.0)[:10]]
    send_all = partial(_send_all, server)
    deadline = time.monotonic() + 300
    # A replica starts its decoder with the first clip, after it has loaded the model.
    while not all(children_of(replica) for replica in server.replicas()):
        assert time.monotonic() < deadline, "a replica answers no request"
        send_all(audio * 40)
    send_all(audio * 40)
    before = _bytes_by_process(server)
    send_all(audio * 200)
    after = _bytes_by_process(server)
    assert after.keys() == before.keys()
    growth = {process: after[process] - before[process] for process in before}
    assert max(growth.values()) < FLAT_BYTES, growth


def _send_all(server: Server, contents: list[bytes]) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert {answer.status for answer in pool.map(server.tag, contents)} == {200}


def _bytes_by_process(server: Server) -> dict[int, float]:
    """Own memory of the step, its replicas and their decoders; the lowest of several looks."""
    looks = []
    for _ in range(5):
        looks.append({one: _own_bytes(one) for one in [server.step.pid, *server.replicas()]})
        time.sleep(0.2)
    return {one: statistics.median(look[one] for look in looks) for one in looks[0]}


def _own_bytes(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return 1024.0 * int(line.split()[1])


FAIL_ONCE = """
import os, sys
from importlib.machinery import PathFinder


def fail_once(module):
    score = module.Tagger.score

    def score_or_fail(tagger, windows):
        if not os.path.exists({note!r}):
            open({note!r}, "x").close()
            raise module.GpuError("host", "the GPU failed: unspecified launch failure")
        return score(tagger, windows)

    module.Tagger.score = score_or_fail
    from trainer.tagging.gpu_faults import GpuError
    module.GpuError = GpuError


class Finder:
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "trainer.tagging.model" else None
        if spec:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), fail_once(module))
        return spec


sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_replica_whose_gpu_fails_is_replaced(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note"
    (tmp_path / "sitecustomize.py").write_text(FAIL_ONCE.format(note=str(note)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with serving(trained, tmp_path) as server:
        (before,) = server.replicas()
        assert server.tag(encode(sound("dog", 0.5))).status == 200
        assert note.exists()
        assert server.replicas() != [before]


def test_ctrl_c_ends_it_and_all_its_processes(server: Server) -> None:
    """The last test, as it ends the server of all."""
    server.step.send_signal(signal.SIGINT)
    stdout, stderr = server.step.communicate(timeout=120)
    assert server.step.returncode == 130
    assert stdout == ""
    *warnings, last = stderr.splitlines()
    assert last == "interrupted; it no longer answers requests"
    lost = "warning: a replica is lost; its requests go to another, and it starts again"
    assert warnings == [lost] * server.num_killed
    deadline = time.monotonic() + 60
    while is_session_alive(server.step.pid):
        assert time.monotonic() < deadline, "processes outlive the step by 60 s"
        time.sleep(0.1)
