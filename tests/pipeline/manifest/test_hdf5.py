"""HDF5 packs as PANNs and PaSST make them: listed, read back, prepared, and damaged."""

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import storage
from pipeline.audio.rejects import RejectError
from pipeline.manifest.checks import check
from pipeline.manifest.layouts.container_rows import split_of
from pipeline.manifest.layouts.hdf5_audio import read_audio
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.read import read_source
from pipeline.manifest.manifest import Clip, to_clips
from pipeline.shards.fetch import fetch_ahead, fetch_reject
from tests.support.audio import Samples, encode, encode_av, noise
from tests.support.errors import assert_notes, refused
from tests.support.preparation import preparation

RATE_HZ = 32_000
CLASSES = 'index,mid,display_name\n0,/m/a,Speech\n1,/m/b,Dog\n2,/m/c,"Rain, heavy"\n'
NUM_CLIPS = 70
"""More than are read at once."""
TARGETS = np.stack([np.arange(NUM_CLIPS) % 2 == 0, np.arange(NUM_CLIPS) % 3 == 0], axis=1)
TARGETS = np.pad(TARGETS, ((0, 0), (1, 0)))  # nobody speaks


def sounds() -> list[Samples]:
    """Of 16 bits."""
    clips = [noise(0.2, RATE_HZ, seed=number) for number in range(NUM_CLIPS)]
    return [(np.round(clip * 2**15) / 2**15).astype(np.float32) for clip in clips]


def write_panns(path: Path, **changes: Any) -> str:
    """As `pack_waveforms_to_hdf5` of PANNs writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waves = np.stack([(sound * 2**15).astype(np.int16) for sound in sounds()])
    names = [f"Yid_{i:08d}.wav".encode() for i in range(NUM_CLIPS)]
    datasets = {"audio_name": np.array(names), "waveform": waves, "target": TARGETS, **changes}
    with h5py.File(path, "w") as pack:
        for name, values in datasets.items():
            if values is not None:
                pack[name] = values
        pack.attrs["sample_rate"] = np.int32(RATE_HZ)
    return str(path)


def mp3s() -> list[bytes]:
    return [encode_av(sound, RATE_HZ, "mp3", "libmp3lame") for sound in sounds()]


def write_passt(path: Path, files: Sequence[bytes]) -> str:
    """As PaSST's `create_h5pymp3_dataset.py` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as pack:
        names = [f"Yid_{i:08d}.mp3".encode() for i in range(len(files))]
        pack["audio_name"] = np.array(names)
        pack["target"] = np.packbits(TARGETS[: len(files)], axis=-1)
        mp3 = pack.create_dataset("mp3", (len(files),), dtype=h5py.vlen_dtype(np.uint8))
        for index, data in enumerate(files):
            mp3[index] = np.frombuffer(data, np.uint8)
    return str(path)


def labels() -> list[list[str]]:
    return [["Dog"] * bool(row[1]) + ["Rain, heavy"] * bool(row[2]) for row in TARGETS]


def contents(clips: Sequence[Clip]) -> list[bytes | Exception]:
    with closing(fetch_ahead(list(clips), 4)) as fetched:
        return list(fetched)


def with_classes(folder: Path) -> SourceOptions:
    (folder / "classes.csv").write_text(CLASSES)
    return SourceOptions(class_labels=str(folder / "classes.csv"))


def test_pack_of_samples_gives_them_back(tmp_path: Path) -> None:
    source = write_panns(tmp_path / "waveforms" / "balanced_train.h5")
    manifest = read_source(source, "auto", with_classes(tmp_path))
    check(manifest, "manifest")
    assert manifest.labels == ("Speech", "Dog", "Rain, heavy")
    assert manifest.clips["id"].to_pylist()[:2] == ["Yid_00000000.wav", "Yid_00000001.wav"]
    assert manifest.clips["labels"].to_pylist() == labels()
    clips = to_clips(manifest.clips)
    assert contents(clips) == [encode(sound, RATE_HZ) for sound in sounds()]
    backwards = clips[::-1]
    assert contents(backwards) == contents(clips)[::-1]


def test_pack_of_mp3_files_gives_them_back(tmp_path: Path) -> None:
    files = mp3s()
    write_passt(tmp_path / "eval" / "0.hdf", files)
    manifest = read_source(str(tmp_path / "eval"), "auto", with_classes(tmp_path))
    assert manifest.clips["labels"].to_pylist() == labels()
    assert set(manifest.clips["split"].to_pylist()) == {"train"}  # nothing names one
    assert contents(to_clips(manifest.clips)) == files
    manifest = read_source(str(tmp_path), "hdf5")
    assert set(manifest.clips["split"].to_pylist()) == {"eval"}
    assert manifest.labels == ("1", "2")
    listing, _ = list_audio(str(tmp_path))
    assert listing["name"].to_pylist()[1] == "Yid_00000001.mp3"


def test_pack_prepares_as_its_files_do(tmp_path: Path) -> None:
    files = mp3s()[:5]
    packed = to_clips(read_source(write_passt(tmp_path / "a.hdf5", files), "auto").clips)
    plain = []
    for clip, data in zip(packed, files, strict=True):
        (tmp_path / clip.id).write_bytes(data)
        plain.append(Clip(id=clip.id, uri=str(tmp_path / clip.id), labels=("dog",)))
    tars = []
    for name, clips in (("packed", packed), ("plain", plain)):
        same_labels = [Clip(**{**vars_of(clip), "labels": ("dog",)}) for clip in clips]
        preparation(tmp_path / name, same_labels).build()
        tars.append([path.read_bytes() for path in sorted((tmp_path / name / "shards").iterdir())])
    assert tars[0] == tars[1]


def vars_of(clip: Clip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in Clip.__dataclass_fields__}


def test_pack_is_read_from_a_bucket(s3: str, tmp_path: Path) -> None:
    files = mp3s()[:3]
    local = write_passt(tmp_path / "a.h5", files)
    storage.write_bytes(f"{s3}/packs/a.h5", Path(local).read_bytes())
    manifest = read_source(f"{s3}/packs", "auto")
    assert contents(to_clips(manifest.clips)) == files


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"waveform": None}, ["no audio", "audio_name, target"]),
        ({"target": TARGETS[:3]}, ["target", "(3, 3)"]),
        ({"target": np.full(TARGETS.shape, 0.5)}, ["target", "0 and 1"]),
        ({"audio_name": np.array([b"x"])}, ["audio_name", "(1,)"]),
        ({"audio_name": np.array([b"\xff"] * NUM_CLIPS)}, ["utf-8"]),
        ({"mp3": np.zeros(NUM_CLIPS)}, ["several", "mp3, waveform"]),
        ({"target": TARGETS.astype(np.uint8)}, ["bytes", "bits", "--class-labels"]),
    ],
)
def test_unusable_packs_are_refused(
    tmp_path: Path, changes: dict[str, Any], values: list[str]
) -> None:
    source = write_panns(tmp_path / "a.h5", **changes)
    with refused(source, "no clip in 1", *values):
        read_source(source, "auto")


@pytest.mark.parametrize(
    "target",
    [
        TARGETS.astype(np.uint8),  # of one byte a class, which could be bits, too
        TARGETS.astype(np.float32),
        np.packbits(TARGETS, axis=-1),
        np.packbits(TARGETS, axis=-1) & 0xE0,
    ],
)
@pytest.mark.parametrize("name", ["a.h5", "b.HDF5"])
def test_number_of_classes_tells_the_form_of_target(
    tmp_path: Path, target: np.ndarray[Any, Any], name: str
) -> None:
    source = write_panns(tmp_path / name, target=target)
    manifest = read_source(source, "auto", with_classes(tmp_path))
    assert manifest.clips["labels"].to_pylist() == labels()
    assert len(contents(to_clips(manifest.clips)[:2])) == 2


@pytest.mark.parametrize(
    "target",
    [np.pad(TARGETS, ((0, 0), (0, 1))), TARGETS[:, :2], np.full((NUM_CLIPS, 1), 255, "u1")],
)
def test_target_of_other_classes_is_refused(tmp_path: Path, target: np.ndarray[Any, Any]) -> None:
    source = write_panns(tmp_path / "a.h5", target=target)
    with refused(source, "no clip in 1", "label CSV 3"):
        read_source(source, "auto", with_classes(tmp_path))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("balanced_train.h5", "balanced"),
        ("unbalanced_train/unbalanced_train_part07.h5", "unbalanced"),
        ("eval.h5", "eval"),
        ("balanced_train_segments_mp3.hdf", "balanced"),
        ("unbalanced_train_segments_mp3.hdf", "unbalanced"),
        ("eval_segments_mp3.hdf", "eval"),
    ],
)
def test_names_that_the_authors_give_imply_the_split(name: str, split: str) -> None:
    assert split_of(name) == split


def test_errors_of_the_storage_are_not_damage(tmp_path: Path) -> None:
    class Unreachable(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            raise error

    pack = Path(write_panns(tmp_path / "a.h5")).read_bytes()
    for error in (PermissionError(13, "denied"), ConnectionError("reset"), TimeoutError()):
        with pytest.raises(type(error)):
            read_audio(Unreachable(pack), [0])


def test_samples_without_their_rate_are_refused(tmp_path: Path) -> None:
    source = write_panns(tmp_path / "a.h5")
    with h5py.File(source, "a") as pack:
        del pack.attrs["sample_rate"]
    with refused(source, "sample_rate", "Hz"):
        read_source(source, "auto")


def test_damaged_packs_are_noted_and_their_clips_rejected(tmp_path: Path) -> None:
    source = Path(write_panns(tmp_path / "packs" / "a.h5"))
    clips = to_clips(read_source(str(source), "auto").clips)
    write_panns(tmp_path / "packs" / "b.h5")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    manifest = read_source(str(tmp_path / "packs"), "auto")
    assert manifest.clips.num_rows == NUM_CLIPS
    damage = ["not an HDF5 file of audio", "truncated", "a.h5"]
    assert_notes(manifest.notes, damage, ["no label"])
    for damaged in (whole[: len(whole) // 2], b"", b"no pack at all"):
        source.write_bytes(damaged)
        for error in contents(clips[:3]):
            assert isinstance(error, Exception)
            reject = fetch_reject(error, str(source))
            assert reject.reason == "its HDF5 file is damaged"
    source.write_bytes(whole)
    beyond = Clip(**{**vars_of(clips[0]), "row_group": 9})
    (error,) = contents([beyond])
    assert isinstance(error, Exception)
    assert isinstance(fetch_reject(error, str(source)), RejectError)
