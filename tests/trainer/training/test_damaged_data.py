"""A data set that changed after `prepare`: each step refuses it, in one line."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ray_job
from pipeline.dataset.prepared import open_dataset
from tests.support.errors import assert_error_line
from tests.support.prepared import make_prepared, tiny_recipe, to_version_2, write_recipe
from tests.support.special_files import IN_PLACE
from trainer.commands import evaluate as evaluate_step
from trainer.commands import train as train_step
from trainer.on_ray import train as ray_train
from trainer.training.loop import train
from trainer.training.world import World

TAR = "shards/train-00000.tar"
RECIPE = tiny_recipe(train={"epochs": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "data"
    make_prepared(str(folder))
    return folder


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "tiny.toml", RECIPE))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that would start Ray fail."""

    def session(*_: object, **__: object) -> None:
        raise AssertionError("Ray would be started")

    for step in (train_step, evaluate_step):
        monkeypatch.setattr(step, "session", session)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` trains in this process."""
    monkeypatch.setattr(train_step, "session", lambda _, **__: nullcontext())
    monkeypatch.setattr(
        ray_train,
        "run_training",
        lambda recipe, data, out, _: train(recipe, open_dataset(data), out, world=World()),
    )


def change_index(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "index.parquet"
    pq.write_table(change(pq.read_table(path)), path, compression="zstd")


def shift_offsets(index: pa.Table) -> pa.Table:
    number = index.column_names.index("offset_bytes")
    shifted = pa.array(index["offset_bytes"].to_numpy() + 2)
    return index.set_column(number, "offset_bytes", shifted)


def swap_labels(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["labels"][:2] = card["labels"][1::-1]
    (folder / "card.json").write_text(json.dumps(card))


def put(kind: str, path: Path) -> None:
    path.unlink()
    IN_PLACE[kind](path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


CARD, INDEX = "card.json", "index.parquet"
CHECKSUM = "checksum"
DAMAGES: dict[str, tuple[Callable[[Path], object], str, tuple[object, ...]]] = {
    "offsets shifted": (lambda f: change_index(f, shift_offsets), INDEX, (CHECKSUM, "verify")),
    "rows doubled": (
        lambda f: change_index(f, lambda index: pa.concat_tables([index, index])),
        INDEX,
        (CHECKSUM, "verify"),
    ),
    "rows halved": (
        lambda f: change_index(f, lambda index: index.slice(0, index.num_rows // 2)),
        INDEX,
        (CHECKSUM, "verify"),
    ),
    "rows reordered": (
        lambda f: change_index(f, lambda index: index.sort_by([("id", "descending")])),
        INDEX,
        (CHECKSUM, "verify"),
    ),
    "labels swapped in the card": (swap_labels, CARD, (CHECKSUM, "verify")),
    "card missing": (lambda f: (f / CARD).unlink(), "data", (CARD, "prepare")),
    "card cut": (lambda f: cut(f / CARD), CARD, ("not valid JSON",)),
    "card empty": (lambda f: (f / CARD).write_bytes(b""), CARD, ("not valid JSON",)),
    "card of another kind": (lambda f: (f / CARD).write_text("[1]"), CARD, ("damaged",)),
    "card a pipe": (lambda f: put("pipe", f / CARD), CARD, ("regular", "verify")),
    "card a folder": (lambda f: put("folder", f / CARD), CARD, ("folder", "verify")),
    "index missing": (lambda f: (f / INDEX).unlink(), INDEX, ("missing", "verify")),
    "index cut": (lambda f: cut(f / INDEX), INDEX, (CHECKSUM, "verify")),
    "index empty": (lambda f: (f / INDEX).write_bytes(b""), INDEX, (CHECKSUM, "verify")),
    "index a pipe": (lambda f: put("pipe", f / INDEX), INDEX, ("regular", "verify")),
    "index a folder": (lambda f: put("folder", f / INDEX), INDEX, ("folder", "verify")),
}


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_card_or_index_is_refused_before_ray_starts(
    damage: str, data: Path, recipe_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    do, where, values = DAMAGES[damage]
    do(data)
    out = ["--out", str(tmp_path / "out")]
    for command in (
        ["train", recipe_file, "--data", str(data), *out],
        ["ensemble", recipe_file, "--data", str(data), *out, "--seeds", "0", "1"],
        ["cross-validate", recipe_file, "--data", str(data), *out],
    ):
        assert ray_job.main(command) == 1
        assert_error_line(capfd.readouterr().err, where, *values)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    row = pq.read_table(path.parent.parent / INDEX).to_pylist()[7]
    content = bytearray(path.read_bytes())
    content[row["offset_bytes"] + row["size_bytes"] // 2] ^= 1
    path.write_bytes(content)


def swap_clips(path: Path) -> None:
    """Two clips of the same length change places."""
    rows = pq.read_table(path.parent.parent / INDEX).to_pylist()
    by_size: dict[int, int] = {}
    for row in rows:
        start, size = row["offset_bytes"], row["size_bytes"]
        if (other := by_size.setdefault(size, start)) != start:
            content = path.read_bytes()
            first, second = content[other : other + size], content[start : start + size]
            changed = bytearray(content)
            changed[other : other + size], changed[start : start + size] = second, first
            path.write_bytes(changed)
            return
    raise AssertionError("no two clips have one length")


TAR_DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[object, ...]]] = {
    "zeroed": (zero, ("clip", CHECKSUM, "verify")),
    "a bit flipped": (flip_a_bit, ("clip 'train/07'", CHECKSUM, "verify")),
    "two clips swapped": (swap_clips, ("clip", CHECKSUM, "verify")),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:40_000]), ("too short", "verify")),
    "missing": (lambda path: path.unlink(), ("missing", "verify")),
    "a pipe": (lambda path: put("pipe", path), ("regular", "verify")),
    "a socket": (lambda path: put("socket", path), ("regular", "verify")),
    "a folder": (lambda path: put("folder", path), ("folder", "verify")),
    "a link to itself": (lambda path: put("link to itself", path), ("missing", "verify")),
}


@pytest.mark.parametrize("damage", TAR_DAMAGES)
def test_changed_shard_ends_training_with_one_line(
    damage: str,
    data: Path,
    recipe_file: str,
    tmp_path: Path,
    without_ray: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    do, values = TAR_DAMAGES[damage]
    do(data / TAR)
    command = ["train", recipe_file, "--data", str(data), "--out", str(tmp_path / "run")]
    assert ray_job.main(command) == 1
    assert_error_line(capfd.readouterr().err, TAR, *values)


def test_data_set_without_checksums_is_trained_on_and_says_so_once(
    data: Path,
    recipe_file: str,
    tmp_path: Path,
    without_ray: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    to_version_2(str(data))
    command = ["train", recipe_file, "--data", str(data), "--out", str(tmp_path / "run")]
    assert ray_job.main(command) == 0
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if str(data) in line and "checksums" in line]) == 1
