"""What several test files need: an S3 server, real audio, a Ray session, small waveforms."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from cluster.ray_noise import skip_lines_of_workers
from pipeline.terminal import log
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.patience import PATIENCE

# The program does this first, but some tests import Ray before they call it.
skip_lines_of_workers()

os.environ.update(PATIENCE)

# Time limits of single examples depend on the machine's load more than on the code.
settings.register_profile("ast-ray", deadline=None)
settings.load_profile("ast-ray")

# A shell starts what it puts into the background with SIGINT ignored, and that is inherited: the
# processes whose Ctrl-C is tested would never see it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA_VARIABLE = "AST_RAY_TEST_DATA"
"""Names a folder with real audio: `esc10/` in ESC-50's layout, `audioset/` with its CSVs,
`audio-faults/`."""


WITH_RAY = {
    "test_asha",
    "test_coming_and_going",
    "test_doors",
    "test_elastic",
    "test_from_zero",
    "test_losses",
    "test_jobs",
    "test_nodes",
    "test_own_disks",
    "test_prepare",
    "test_train",
    "test_tune",
    "test_rehearsal",
    "test_stories",
    "test_submit",
}
"""Files whose tests start Ray; in others those do that ask for `session` or are marked."""


LONG = (
    "test_slurm", "test_coming_and_going", "test_elastic", "test_from_zero", "test_losses",
    "test_faults", "test_own_disks", "test_nodes", "test_stories", "test_train", "test_tune",
    "test_rehearsal", "test_prepare",
    "test_own_data", "test_tag_bucket",
    "test_events", "test_mutations", "test_storage_sweep", "test_fuzz_decode", "test_gpu_script",
)  # fmt: skip
"""Files that take minutes: those that mostly wait, then those that compute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let processes side by side take the longest files first, so that they end together."""
    num_tests = Counter(item.path for item in items)
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: (ranks.get(item.path.stem, len(LONG)), -num_tests[item.path]))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that `make test` runs in processes apart from the rest; give them time."""
    if item.path.stem in WITH_RAY or "session" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.ray)
    # What takes seconds takes minutes on a busy machine.
    if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(900))


_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ray uses the GPUs that it finds, and these tests know what CPUs give."""
    visible = "" if item.get_closest_marker("ray") else _GPUS
    if visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Restore the log level and handlers that a step has set."""
    yield
    for name in log.PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real audio; tests that need it are skipped where there is none."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"needs real audio: set {DATA_VARIABLE} to a folder that holds esc10/")
    path = Path(folder)
    assert (path / "esc10" / "meta" / "esc50.csv").is_file(), f"{path}: no esc10/ there"
    return path


@pytest.fixture(scope="session")
def esc10(real_data: Path) -> Path:
    """ESC-10: 400 clips, 10 classes, 5 folds, OGG 44.1 kHz, in ESC-50's layout."""
    return real_data / "esc10"


@pytest.fixture(scope="session")
def audio_faults(real_data: Path) -> Path:
    """Small audio files that some decoder gets wrong, or refuses though others play them."""
    folder = real_data / "audio-faults"
    assert folder.is_dir(), f"{folder}: not there"
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a local S3 server in another process."""
    with _s3_server({}) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def strict_s3_endpoint() -> Iterator[str]:
    """The address of an S3 server that rejects every key."""
    with _s3_server({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as endpoint:
        yield endpoint


S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Listens on a port that is free, says which, and ends with the process that started it."""


@contextmanager
def _s3_server(variables: dict[str, str]) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", S3_SERVER],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, "the S3 server ended at once"
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Pytest's own, which would miss the program's messages: they do not reach the root logger."""
    with pytest.MonkeyPatch.context() as patch:
        for name in log.PACKAGES:
            logger = logging.getLogger(name)
            patch.setattr(logger, "propagate", False)
            patch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
        yield caplog


@pytest.fixture(scope="module")
def session(s3_endpoint: str) -> Iterator[None]:
    """A Ray of 2 CPUs whose workers know the S3 server."""
    from cluster.session import connect  # not at the top: most tests do without Ray

    with pytest.MonkeyPatch.context() as patch:
        # Workers that may not keep compiled modules compile all of them at every start.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        with connect(address="local", num_cpus=2):
            yield


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh, empty bucket, `s3://...`, with the AWS variables of this process set to reach it."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    forget_clients()
    bucket = f"s3://test-{time.time_ns()}"
    make_bucket(bucket)
    yield bucket
    forget_clients()


@pytest.fixture
def proxy(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy between this process and the bucket `s3`; at first it passes everything on."""
    with faulty_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()
        yield proxy


def make_bucket(bucket: str) -> None:
    """Create a bucket, `s3://name`, with the AWS variables of this process."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket.removeprefix("s3://"))
    client.close()


def s3_environment(endpoint: str) -> dict[str, str]:
    """The usual AWS variables for a local server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def forget_clients() -> None:
    """Drop cached connections: they keep the endpoint and credentials they were made with."""
    from pipeline.storage.stores import connect

    connect.cache_clear()
