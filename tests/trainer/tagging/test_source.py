"""Every kind of source gives the tags of its audio."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import Clip, from_clips
from tests.support.errors import assert_notes
from tests.support.tagging import train_on_audio, write_sounds
from trainer.tagging.job import Tags, tag_in_memory
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.model import Tagger
from trainer.tagging.settings import TagSettings
from trainer.tagging.source import deal_parts, list_recordings

NUM = 4


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    return load_tagger(ModelChoice(path=train_on_audio(tmp_path_factory.mktemp("trained")).run))


def tags_of(tagger: Tagger, source: Path) -> Tags:
    recordings = list_recordings(str(source))
    return tag_in_memory(tagger, recordings.clips_of(), TagSettings(), batch_size=4)


def as_folder(folder: Path, clips: list[Clip]) -> Path:
    return Path(clips[0].uri).parent


def as_manifest(folder: Path, clips: list[Clip]) -> Path:
    write_manifest(str(folder / "clips.parquet"), from_clips(clips, ("dog", "never", "rain")))
    return folder / "clips.parquet"


def as_parquet(folder: Path, clips: list[Clip]) -> Path:
    """Of rows with the audio itself, as `datasets` writes it."""
    audio = [{"bytes": Path(clip.uri).read_bytes(), "path": clip.id} for clip in clips]
    pq.write_table(pa.table({"audio": audio}), folder / "rows.parquet", row_group_size=3)
    return folder / "rows.parquet"


def as_tar(folder: Path, clips: list[Clip]) -> Path:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for clip in clips:
            tar.add(clip.uri, clip.id)
    return folder / "shard.tar"


def as_hdf5(folder: Path, clips: list[Clip]) -> Path:
    """Of the bytes of files, as PaSST packs them."""
    with h5py.File(folder / "pack.hdf5", "w") as pack:
        pack["audio_name"] = np.array([clip.id.encode() for clip in clips])
        files = pack.create_dataset("mp3", len(clips), h5py.vlen_dtype(np.dtype("uint8")))
        for number, clip in enumerate(clips):
            files[number] = np.frombuffer(Path(clip.uri).read_bytes(), np.uint8)
    return folder / "pack.hdf5"


@pytest.mark.parametrize("make", [as_folder, as_manifest, as_parquet, as_tar, as_hdf5])
def test_all_kinds_of_sources_have_the_same_tags(
    tagger: Tagger, tmp_path: Path, make: Callable[[Path, list[Clip]], Path]
) -> None:
    clips = write_sounds(tmp_path / "audio", NUM)
    expected = tags_of(tagger, tmp_path / "audio")
    tags = tags_of(tagger, make(tmp_path, clips))
    assert tags.rejects == []
    assert tags.windows["scores"].to_pylist() == expected.windows["scores"].to_pylist()
    assert tags.windows["labels"].to_pylist() == expected.windows["labels"].to_pylist()
    names = tags.recordings["recording"].to_pylist()
    assert [Path(name).stem for name in names] == sorted(Path(clip.id).stem for clip in clips)


def test_stretches_of_a_manifest_are_tagged_alone(tagger: Tagger, tmp_path: Path) -> None:
    (clip,) = write_sounds(tmp_path / "audio", 1)
    stretches = [
        Clip(id=f"at {start_s:g} s", uri=clip.uri, labels=(), start_s=start_s, end_s=start_s + 0.1)
        for start_s in (0.1, 0.15)
    ]
    write_manifest(str(tmp_path / "clips.parquet"), from_clips(stretches, ("dog",)))
    tags = tags_of(tagger, tmp_path / "clips.parquet")
    times = [(row["start_s"], row["end_s"]) for row in tags.windows.to_pylist()]
    assert times == [pytest.approx((0.1, 0.2)), pytest.approx((0.15, 0.25))]


def test_second_file_of_one_name_in_a_tar_is_noted(tmp_path: Path) -> None:
    (clip,) = write_sounds(tmp_path / "audio", 1)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for _ in range(2):
            tar.add(clip.uri, "same.wav")
    recordings = list_recordings(str(tmp_path / "shard.tar"))
    assert len(recordings) == 1
    assert_notes(recordings.notes, ("left out", "1 in 1 file"))


def test_parts_are_of_neighbours_and_hold_all(tmp_path: Path) -> None:
    write_sounds(tmp_path / "audio", 130)
    recordings = list_recordings(str(tmp_path / "audio"))
    parts = deal_parts(recordings)
    assert [part.num for part in parts] == [64, 64, 2]
    ids = [clip.id for part in parts for clip in recordings.clips_of(part)]
    assert ids == sorted(path.name for path in (tmp_path / "audio").iterdir())
