"""Changed documents end no step with a traceback, and make none wait: one line, or all is well.

Each step runs in this process, without Ray, on a small data set, two runs and their ensemble, of
which one file is changed.
"""

import copy
import io
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import ray_job
from pipeline.dataset.prepared import open_dataset
from tests.support.prepared import tiny_recipe, write_recipe
from tests.support.special_files import IN_PLACE
from tests.support.without_ray import do_without_ray
from trainer.commands import evaluate as evaluate_step
from trainer.commands import train as train_step
from trainer.on_ray import train as ray_train
from trainer.recipe.parse import load_recipe
from trainer.training.loop import train
from trainer.training.world import World

NUM_PLACES = 5
"""Keys changed in each document."""
NUM_VALUES = 4
"""Values that each gets."""
NUM_FLIPS = 10
"""Changed bits, each in a copy of its own."""
MAX_S = 60

CLIPS = ["--set", "data.eval_split=train", "--set", "data.fold=1"]
PREPARE = ["prepare", "clips.parquet", "--out", "data", "--max-reject-share", "0.9"]
STEPS = {
    "report": ["report", "run0", "run1", "--out", "report.html"],
    "report of an ensemble": ["report", "ensemble", "--out", "report.html"],
    "ensemble": ["ensemble", "--runs", "run0", "run1", "--out", "ensemble"],
    "export": ["export", "square", "--out", "exported-again"],
    "import of a run": ["import", "run0", "--data", "data", "--out", "imported", *CLIPS],
    "import": ["import", "exported", "--data", "data", "--out", "imported", *CLIPS],
    "train": ["train", "tiny0.toml", "--data", "data", "--out", "run0"],
    "evaluate": ["evaluate", "run0", "--split", "train", "--fold", "1"],
    "verify": ["verify", "data"],
    "prepare": PREPARE,
    "prepare --plan": [*PREPARE, "--plan"],
    "prepare anew": ["prepare", "clips.parquet", "--out", "other", "--max-reject-share", "0.9"],
}
PATHS = {"audio", "clips.parquet", "data", "other", "tiny0.toml", "run0", "run1", "square"}
PATHS |= {"ensemble", "exported", "exported-again", "imported", "report.html"}
READERS = {
    "clips.parquet": ["prepare", "prepare --plan", "prepare anew"],
    "data/card.json": ["train", "verify", "prepare", "report", "evaluate"],
    "data/index.parquet": ["train", "verify", "prepare", "report"],
    "data/rejects.parquet": ["verify", "prepare"],
    "data/prepare_summary.json": ["report", "prepare"],
    "data/_work/plan.json": ["verify", "prepare", "prepare --plan"],
    "data/_work/plan/00000.parquet": ["verify", "prepare"],
    "data/_work/parts/train-00000.parquet": ["verify", "prepare"],
    "tiny0.toml": ["train"],
    "run0/run.json": ["report", "ensemble", "import of a run", "train", "evaluate"],
    "square/run.json": ["export"],
    "run0/history.json": ["report", "ensemble", "train"],
    "run0/predictions/train-fold1.json": ["report", "train"],
    "run0/predictions/train-fold1.parquet": ["report", "ensemble"],
    "ensemble/ensemble.json": ["report of an ensemble", "ensemble"],
    "exported/config.json": ["import"],
    "exported/preprocessor_config.json": ["import"],
    "exported/ast.safetensors": ["import"],
    "run0/checkpoints/step-00000004.pt": ["import of a run"],
    "square/checkpoints/step-00000002.pt": ["export"],
}
RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "without its last bytes": lambda data: data[:-3],
    "zeros": lambda data: bytes(len(data)),
    "not UTF-8": lambda data: data[:20] + b"\xff\xfe" + data[20:],
    "deep": lambda data: b"[" * 100_000,
    "deep objects": lambda data: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a list": lambda data: b"[]",
    "null": lambda data: b"null",
    "an empty object": lambda data: b"{}",
    "NaN": lambda data: b"NaN",
}
VALUES = ["null", '"text"', '"7"', "-1", "-1.5", "0", f"1{'0' * 30}", "1e400", "NaN", "[]", "{}"]
VALUES += ["true", "[[[[[1]]]]]", '"\\ud800"', "[null]", '"\\u0000"']


class EndlessError(Exception):
    """A step took too long."""


class StartedError(Exception):
    """A step went on to train or evaluate."""


@pytest.fixture(scope="module", autouse=True)
def _without_ray() -> Iterator[None]:
    def start(*_: object, **__: object) -> None:
        raise StartedError

    with pytest.MonkeyPatch.context() as patch:
        do_without_ray(patch)
        for step in (train_step, evaluate_step):
            patch.setattr(step, "session", lambda _, **__: nullcontext())
        for name in ("run_training", "run_evaluation"):
            patch.setattr(ray_train, name, start)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the steps run; `whole`, beside it, is what it is restored from."""
    work = tmp_path_factory.mktemp("mutations") / "work"
    rng = np.random.default_rng(0)
    for label in ("rain", "dog"):
        (work / "audio" / label).mkdir(parents=True)
        for number in range(8):
            noise = rng.normal(0, 0.1, 16_000).astype(np.float32)
            soundfile.write(work / "audio" / label / f"{number}.wav", noise, 16_000)
    (work / "audio" / "dog" / "bad.wav").write_bytes(b"RIFF nothing")
    do(work, ["manifest", "audio", "--folds", "2", "--out", "clips.parquet"])
    do(work, STEPS["prepare"])
    square = {
        f"{kind}_{axis}": 16 for kind in ("patch", "stride") for axis in ("frequency", "time")
    }
    recipes = {
        "run0": tiny_recipe(train={"epochs": 2}, data={"fold": 1}),
        "run1": tiny_recipe(train={"epochs": 2, "seed": 1}, data={"fold": 1}),
        "square": tiny_recipe(train={"epochs": 1}, data={"fold": 1}, model=square),
    }
    for name, recipe in recipes.items():
        path = write_recipe(work / f"tiny{name[3:]}.toml", recipe)
        dataset = open_dataset(str(work / "data"))
        train(load_recipe(str(path)), dataset, str(work / name), world=World())
    do(work, STEPS["ensemble"])
    do(work, ["export", "square", "--out", "exported"])
    shutil.copytree(work, work.with_name("whole"))
    return work


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def end(_: int, frame: FrameType | None) -> None:
        raise EndlessError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(work: Path, command: list[str]) -> int | str | None:
    """The exit status of a step in the folder."""
    step, *words = command
    arguments = [step, *(str(work / word) if word in PATHS else word for word in words)]
    with within(MAX_S):
        try:
            return ray_job.main(arguments)
        except StartedError:
            return 0
        except SystemExit as error:
            return error.code


def do(work: Path, command: list[str]) -> None:
    assert run(work, command) == 0


def changed_texts(text: str, generator: random.Random) -> Iterator[tuple[str, str]]:
    """A JSON document with a key removed or another value in its place."""
    document = json.loads(text)
    places = [*_places(document)]
    for place in generator.sample(places, min(NUM_PLACES, len(places))):
        name = ".".join(map(str, place))
        for value in generator.sample(VALUES, NUM_VALUES):
            changed = copy.deepcopy(document)
            _parent(changed, place)[place[-1]] = "@@@"
            yield f"{name} = {value[:20]}", json.dumps(changed).replace('"@@@"', value)
        changed = copy.deepcopy(document)
        del _parent(changed, place)[place[-1]]
        yield f"without {name}", json.dumps(changed)
    if isinstance(document, dict):
        yield "another version", json.dumps(document | {"format_version": 99})


def _parent(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def _places(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: list[Any] = []
    if isinstance(document, dict):
        keys = [*document]
    elif isinstance(document, list):
        keys = [*range(min(2, len(document)))]
    for key in keys:
        yield (*before, key)
        yield from _places(document[key], (*before, key))


def changed_tables(data: bytes, generator: random.Random) -> Iterator[tuple[str, bytes]]:
    """A Parquet file with other columns, cells, rows, metadata or bytes."""
    table = pq.read_table(io.BytesIO(data))
    num_rows = table.num_rows
    for number, field in enumerate(table.schema):
        name = field.name
        yield f"without {name}", _encoded(table.drop_columns([name]))
        yield f"{name} twice", _encoded(table.append_column(name, table[name]))
        others = {
            "nulls": pa.nulls(num_rows, field.type),
            "null": pa.nulls(num_rows),
            "text": pa.array(["x"] * num_rows),
            "negative": pa.array([-5] * num_rows),
            "NaN": pa.array([float("nan")] * num_rows),
            "bytes": pa.array([b"\xff\xfe"] * num_rows),
            "lists": pa.array([[[1]]] * num_rows),
            "structs": pa.array([{"a": 1}] * num_rows),
            "codes": pa.array(["x"] * num_rows).dictionary_encode(),
        }
        if pa.types.is_list(field.type):
            others["lists of null"] = pa.array([[None]] * num_rows, field.type)
            others["empty lists"] = pa.array([[]] * num_rows, field.type)
        for kind in generator.sample(sorted(others), NUM_VALUES):
            yield f"{name}: {kind}", _encoded(table.set_column(number, name, others[kind]))
    yield "no rows", _encoded(table.slice(0, 0))
    yield "half of the rows", _encoded(table.slice(0, num_rows // 2))
    yield "rows twice", _encoded(pa.concat_tables([table, table]))
    metadata = table.schema.metadata or {}
    yield "no metadata", _encoded(table.replace_schema_metadata(None))
    for key, value in metadata.items():
        texts = [(name, change(value)) for name, change in RAW.items()]
        if value.startswith(b"{"):
            texts += [
                (name, text.encode()) for name, text in changed_texts(value.decode(), generator)
            ]
        for name, text in texts:
            yield (
                f"{key!r} {name}",
                _encoded(table.replace_schema_metadata({**metadata, key: text})),
            )


def flipped(data: bytes, generator: random.Random) -> Iterator[tuple[str, bytes]]:
    """The content with a changed bit."""
    for _ in range(NUM_FLIPS):
        changed = bytearray(data)
        position = generator.randrange(len(data))
        changed[position] ^= 1 << generator.randrange(8)
        yield f"flipped at {position}", bytes(changed)


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def changes(name: str, data: bytes) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What is done to a file, once it is removed."""
    generator = random.Random(name)
    contents = [(kind, change(data)) for kind, change in RAW.items()]
    if name.endswith(".json"):
        texts = changed_texts(data.decode(), generator)
        contents += [(kind, text.encode()) for kind, text in texts]
    elif name.endswith(".parquet"):
        contents += changed_tables(data, generator)
    contents += flipped(data, generator)
    for kind, content in contents:
        yield kind, lambda path, content=content: path.write_bytes(content)  # type: ignore[misc]
    yield "missing", lambda path: None
    yield from IN_PLACE.items()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READERS)
def test_changed_document_ends_no_step_with_a_traceback(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = folder.with_name("whole")
    assert (whole / name).is_file()
    for kind, change in changes(name, (whole / name).read_bytes()):
        for step in READERS[name]:
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            (folder / name).unlink()
            change(folder / name)
            capfd.readouterr()
            try:
                status = run(folder, STEPS[step])
            except Exception as error:
                error.add_note(f"`{step}` with {name}: {kind}")
                raise
            lines = capfd.readouterr().err.splitlines()
            errors = [line for line in lines if "error: " in line]
            assert status in (0, 1, 2, 3), (step, kind)  # 2: no argument, as links go in a circle
            assert len(errors) == (status in (1, 2)), (step, kind, errors)
