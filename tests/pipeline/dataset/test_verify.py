"""`verify` names all damage, and `prepare` then repairs that and nothing else."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ray_job
from pipeline import storage
from pipeline.dataset.card import fingerprint
from pipeline.dataset.prepare_summary import read_summary
from pipeline.dataset.verify import document_faults
from pipeline.errors import UserError
from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import Manifest, from_clips
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import Part, read_part
from pipeline.shards.plan import ShardSpec
from tests.support.audio import write_clips
from tests.support.errors import assert_names, refused
from tests.support.preparation import LABELS, bad_clips, files
from tests.support.special_files import IN_PLACE, REPLACED
from tests.support.without_ray import do_without_ray, prepare, tars, verify

TAR = "shards/train-00001.tar"
PART = "_work/parts/train-00001.parquet"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """14 good clips and 1 reject: 3 shards of training clips, 1 of evaluation clips."""
    folder = tmp_path_factory.mktemp("audio")
    clips = write_clips(folder, 10) + write_clips(folder, 4, split="eval")
    return from_clips([*clips, bad_clips(folder)["decode: the file is empty"]], LABELS)


@pytest.fixture(scope="module")
def whole(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, undamaged; nobody writes to it."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    prepare(manifest, folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_intact_data_set_has_no_fault(copy: Path, manifest: Manifest) -> None:
    assert verify(copy) == []
    assert prepare(manifest, copy) is None
    # A published data set may lack what only `prepare` needs.
    shutil.rmtree(copy / "_work")
    assert verify(copy) == []


def test_ids_that_repeat_are_told_from_equal_hashes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hash(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
        return np.zeros(len(ids), np.uint64)

    monkeypatch.setattr("pipeline.dataset.verify.text_hashes", no_hash)
    assert document_faults(str(copy)) == []
    monkeypatch.undo()
    table = pq.read_table(copy / "index.parquet")
    ids = pa.array(["train/0", *table["id"].to_pylist()[:-1]])
    data = storage.encode_table(table.set_column(0, "id", ids))
    (copy / "index.parquet").write_bytes(data)
    card = storage.read_json(f"{copy}/card.json")
    card["index_sha256"] = hashlib.sha256(data).hexdigest()
    storage.write_json(f"{copy}/card.json", {**card, "fingerprint": fingerprint(card)})
    (fault,) = document_faults(str(copy))
    assert (fault.path, fault.what) == ("index.parquet", "has duplicate ids")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"shards": 1}'])
def test_damaged_note_is_an_explained_error(copy: Path, manifest: Manifest, content: bytes) -> None:
    (copy / "_work" / "damaged.json").write_bytes(content)
    with refused(copy / "_work" / "damaged.json", "damaged", remedy="`verify`"):
        prepare(manifest, copy)
    verify(copy)
    assert prepare(manifest, copy) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"num_clips": -1}'])
def test_damaged_summary_is_written_again(copy: Path, manifest: Manifest, content: bytes) -> None:
    (copy / "prepare_summary.json").write_bytes(content)
    summary = prepare(manifest, copy)
    assert summary is not None
    assert summary.num_shards_built == 0
    assert read_summary(str(copy)) == summary
    assert prepare(manifest, copy) is None


def test_faults_are_listed_if_the_note_cannot_be_written(copy: Path) -> None:
    (copy / TAR).unlink()
    (copy / "_work/damaged.json").mkdir()  # blocks the note, like a read-only disk
    assert [fault.path for fault in verify(copy)] == ["_work/damaged.json", TAR]


def test_note_that_cannot_be_removed_is_a_fault(copy: Path) -> None:
    (copy / "_work/damaged.json").mkdir()
    assert [fault.path for fault in verify(copy)] == ["_work/damaged.json"]


def test_missing_data_set_is_an_explained_error(tmp_path: Path) -> None:
    with refused(tmp_path / "none", "card.json", remedy="prepare"):
        verify(tmp_path / "none")


# --- damage ------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, num_bytes: int = 700) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def change_numbers(folder: Path) -> None:
    row = next(row for row in index(folder) if row["shard"] == TAR)
    flip(folder / TAR, row["offset_bytes"] + 77)


def change_json(folder: Path) -> None:
    replace(folder / TAR, b'"fold": 1', b'"fold": 2')


def swap(folder: Path) -> None:
    first, second = folder / TAR, folder / "shards/train-00002.tar"
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def change_label(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    labels = pa.array([["never"]] * table.num_rows, table["labels"].type)
    column = table.column_names.index("labels")
    pq.write_table(table.set_column(column, "labels", labels), folder / "index.parquet")


def change_card(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "num_clips": 15}))


def index(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "index.parquet").to_pylist())


CHECKSUM = "does not match the card's checksum"
UNCHECKED = ("shards", "were not checked")
DAMAGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]], int]] = {
    "numbers": (change_numbers, [(TAR, "clip train/"), (TAR, CHECKSUM)], 1),
    "JSON": (change_json, [(TAR, "clip train/"), (TAR, CHECKSUM)], 1),
    "header": (
        lambda f: flip(f / TAR, 3),
        [(TAR, CHECKSUM), (TAR, "is not a complete tar (bad")],
        1,
    ),
    "tar cut": (
        lambda f: cut(f / TAR, 20_000),
        [(TAR, "has "), (TAR, "is not a complete tar (unexpected end of data)")],
        1,
    ),
    "tar cut in its padding": (lambda f: cut(f / TAR), [(TAR, "has ")], 1),
    "tar empty": (
        lambda f: (f / TAR).write_bytes(b""),
        [(TAR, "has 0 bytes, "), (TAR, "is not a complete tar (empty")],
        1,
    ),
    "tar missing": (lambda f: (f / TAR).unlink(), [(TAR, "is missing")], 1),
    "tars swapped": (
        swap,
        [
            (TAR, CHECKSUM),
            (TAR, "its members differ from the index: "),
            ("shards/train-00002.tar", CHECKSUM),
            ("shards/train-00002.tar", "its members differ from the index: "),
        ],
        2,
    ),
    "index changed": (change_label, [("index.parquet", CHECKSUM), UNCHECKED], 0),
    "index cut": (lambda f: cut(f / "index.parquet"), [("index.parquet", CHECKSUM), UNCHECKED], 0),
    "index missing": (
        lambda f: (f / "index.parquet").unlink(),
        [("index.parquet", "is missing"), UNCHECKED],
        0,
    ),
    "ledger changed": (
        lambda f: flip(f / "rejects.parquet", 9),
        [("rejects.parquet", CHECKSUM)],
        0,
    ),
    "ledger missing": (
        lambda f: (f / "rejects.parquet").unlink(),
        [("rejects.parquet", "is missing")],
        0,
    ),
    "card changed": (
        change_card,
        [("card.json", "does not match its own checksum"), UNCHECKED],
        0,
    ),
    "card cut": (lambda f: cut(f / "card.json"), [("card.json", "is not JSON ("), UNCHECKED], 0),
    "card no card": (
        lambda f: (f / "card.json").write_text("[]"),
        [("card.json", "is not a card"), UNCHECKED],
        0,
    ),
    "card too deep": (
        lambda f: (f / "card.json").write_text(100_000 * "["),
        [("card.json", "is not JSON ("), UNCHECKED],
        0,
    ),
    "part changed": (lambda f: replace(f / PART, b"train-", b"train+"), [(PART, "is damaged")], 1),
    "part cut": (lambda f: cut(f / PART), [(PART, "is damaged")], 1),
    "part swapped": (
        lambda f: shutil.copy(f / "_work/parts/train-00002.parquet", f / PART),
        [(PART, "belongs to another tar")],
        1,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repaired_to_the_same_bytes(
    damage: str, copy: Path, whole: Path, manifest: Manifest
) -> None:
    do, expected, num_shards = DAMAGES[damage]
    do(copy)
    faults = verify(copy)
    assert len(faults) == len(expected), faults
    for fault, (path, what) in zip(faults, expected, strict=True):
        assert fault.path == path
        assert fault.what.startswith(what)
    before = tars(copy)
    summary = prepare(manifest, copy)
    assert summary is not None
    assert summary.num_shards_built == num_shards
    assert files(copy) == files(whole)
    rebuilt = {name for name, written in tars(copy).items() if before.get(name) != written}
    assert rebuilt == {fault.shard for fault in faults if fault.shard}
    assert len(rebuilt) == num_shards
    assert verify(copy) == []
    assert prepare(manifest, copy) is None


@pytest.mark.parametrize(
    "damage",
    [
        "tar cut",
        "tar missing",
        "index missing",
        "ledger missing",
        "card changed",
        "card cut",
        "card no card",
        "card too deep",
    ],
)
def test_prepare_alone_notices_damage_visible_in_a_listing(
    damage: str, copy: Path, whole: Path, manifest: Manifest
) -> None:
    do, _, num_shards = DAMAGES[damage]
    do(copy)
    summary = prepare(manifest, copy)
    assert summary is not None
    assert summary.num_shards_built == num_shards
    assert files(copy) == files(whole)


NAMES = ["card.json", "index.parquet", "rejects.parquet", TAR, PART, "_work/plan.json"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_a_fault(name: str, kind: str, copy: Path) -> None:
    (copy / name).unlink()
    IN_PLACE[kind](copy / name)
    assert name in {fault.path for fault in verify(copy)}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("name", ["card.json", "index.parquet", "rejects.parquet", TAR])
def test_prepare_puts_a_file_in_place_of_what_is_none(
    name: str, kind: str, copy: Path, whole: Path, manifest: Manifest
) -> None:
    (copy / name).unlink()
    REPLACED[kind](copy / name)
    summary = prepare(manifest, copy)
    assert summary is not None
    assert summary.num_shards_built == (name == TAR)
    assert files(copy) == files(whole)
    assert not (copy / name).is_symlink()
    assert prepare(manifest, copy) is None


@pytest.mark.parametrize("name", ["card.json", "index.parquet", "rejects.parquet", TAR])
def test_folder_in_place_of_a_file_is_left_to_the_user(
    name: str, copy: Path, manifest: Manifest
) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    # The old card is removed before all else, and what else is written is written anew.
    kind = storage.NoFileError if name == "card.json" else UserError
    with refused(copy / name, type=kind, remedy="remove"):
        prepare(manifest, copy)


@pytest.mark.parametrize("kind", REPLACED)
def test_summary_and_note_that_are_no_files_are_replaced(
    kind: str, copy: Path, manifest: Manifest
) -> None:
    (copy / "prepare_summary.json").unlink()
    REPLACED[kind](copy / "prepare_summary.json")
    REPLACED[kind](copy / "_work/damaged.json")
    assert verify(copy) == []
    assert not (copy / "_work/damaged.json").is_symlink()
    prepare(manifest, copy)
    assert read_summary(str(copy)) or kind.startswith("link")
    assert prepare(manifest, copy) is None


@settings(max_examples=40)
@given(data=st.data())
def test_any_changed_byte_is_named_and_repaired(
    data: st.DataObject,
    whole: Path,
    manifest: Manifest,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    copy = Path(shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "out"))
    name = data.draw(st.sampled_from(sorted(files(whole))))
    content = bytearray((whole / name).read_bytes())
    # Most of a tar is numbers: half of the examples are near its beginning.
    last = data.draw(st.sampled_from([min(1500, len(content) - 1), len(content) - 1]))
    position = data.draw(st.integers(0, last))
    content[position] ^= data.draw(st.integers(1, 255))
    (copy / name).write_bytes(content)
    faults = verify(copy)
    assert name in {fault.path for fault in faults}
    before = tars(copy)
    assert prepare(manifest, copy) is not None
    assert files(copy) == files(whole)
    changed = {name for name, written in tars(copy).items() if before[name] != written}
    assert changed == {fault.shard for fault in faults if fault.shard}
    assert verify(copy) == []


def test_interrupted_repair_resumes(
    copy: Path, whole: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap(copy)
    verify(copy)
    built: list[str] = []
    with monkeypatch.context() as patch:

        def stop_at_the_second(spec: ShardSpec, job: BuildJob) -> Part:
            if built:
                raise KeyboardInterrupt
            built.append(spec.name)
            return build_shard(spec, job)

        patch.setattr("pipeline.shards.build.build_shard", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(manifest, copy)
    assert prepare(manifest, copy) is not None
    assert files(copy) == files(whole)
    assert verify(copy) == []


def test_damaged_part_is_never_read_as_another(copy: Path) -> None:
    content, whole = (copy / PART).read_bytes(), read_part(str(copy / PART))
    num_refused = 0
    for position in range(4, len(content), 17):
        flip(copy / PART, position)
        try:
            assert read_part(str(copy / PART)) == whole
        except (pa.ArrowException, ValueError, OSError):
            num_refused += 1
        (copy / PART).write_bytes(content)
    assert num_refused > len(content) / 17 / 2


# --- the command line --------------------------------------------------------------------------


def check_commands(
    output: str, whole: Path, manifest: Manifest, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Copy a data set, then verify, damage, verify, repair and verify it."""
    for path in whole.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{output}/{path.relative_to(whole)}", path.read_bytes())
    write_manifest(str(folder / "m.parquet"), manifest)

    assert ray_job.main(["verify", output]) == 0
    assert output in capfd.readouterr().out
    storage.write_bytes(f"{output}/{TAR}", (whole / "shards/train-00002.tar").read_bytes())
    assert ray_job.main(["verify", output]) == 3
    table = capfd.readouterr().out
    assert TAR in table
    assert_names(table, "members", "`prepare`")
    assert ray_job.main(["verify", output, "--json-logs"]) == 3
    captured = capfd.readouterr()
    printed = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["event"] for row in printed] == ["fault", "fault", "summary"]
    assert printed[0]["path"] == printed[1]["path"] == TAR
    assert printed[-1]["num_faults"] == 2
    progress = [json.loads(line) for line in captured.err.splitlines()]
    assert progress[-1]["unit"] == "shards"
    assert (progress[-1]["done"], progress[-1]["total"]) == (4, 4)

    command = ["prepare", str(folder / "m.parquet"), "--out", output, "--clips-per-shard", "4"]
    assert ray_job.main([*command, "--json-logs"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["event"], summary["num_shards_built"]) == ("summary", 1)
    for name, content in files(whole).items():
        assert storage.read_bytes(f"{output}/{name}") == content
    assert ray_job.main(["verify", output]) == 0


def test_commands_verify_and_repair_a_folder(
    whole: Path,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    do_without_ray(monkeypatch)
    check_commands(f"{tmp_path}/out", whole, manifest, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_commands_verify_and_repair_a_bucket_on_ray(
    whole: Path,
    manifest: Manifest,
    s3: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    check_commands(f"{s3}/out", whole, manifest, tmp_path, capfd)
