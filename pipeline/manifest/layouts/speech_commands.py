"""Speech Commands' layout (P. Warden), version 2: a folder per word, and lists of the test clips.

`validation_list.txt` and `testing_list.txt` name clips as `WORD/FILE.wav`; all others are for
training. The recordings in `_background_noise_` are left out.
"""

from itertools import compress

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.audio_files import AudioFiles
from pipeline.manifest.layouts.name_groups import group_by_names
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.visible import VisibleFiles
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.manifest.splits import TRAIN_SPLIT

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_NOISE = "_background_noise_"


def read(source: str, options: SourceOptions) -> Manifest:
    """List a folder in Speech Commands' layout; missing clips of the lists are noted.

    Raises:
        UserError: both lists are missing, or a clip is in both.
    """
    notes = []
    split_of: dict[str, str] = {}
    for split, name in LISTS.items():
        listed = _read_list(storage.join(source, name))
        if listed is None:
            notes.append(f"no {name}: no clip is in the split {split!r}")
        for clip in listed or ():
            if split_of.setdefault(clip, split) != split:
                raise UserError(source, f"{clip} is in both {' and '.join(LISTS.values())}")
    if len(notes) == len(LISTS):
        raise UserError(
            source,
            f"has neither {' nor '.join(LISTS.values())}",
            "name the folder into which Speech Commands was unpacked",
        )
    prefix = source.rstrip("/") + "/"
    files = VisibleFiles(source)
    names = [path.removeprefix(prefix) for path in files.paths()]
    is_audio = AudioFiles().mask(pa.array([prefix + name for name in names], pa.string()))
    wavs = [name for name in compress(names, is_audio.to_pylist()) if name.count("/") == 1]
    words = [name for name in wavs if not name.startswith(_NOISE)]
    clips = [
        Clip(
            id=name,
            uri=prefix + name,
            labels=(name.partition("/")[0],),
            split=split_of.get(name, TRAIN_SPLIT),
        )
        for name in words
    ]
    notes += files.notes() + _notes(len(wavs) - len(words), sorted(split_of.keys() - set(words)))
    manifest = from_clips(clips, sorted({clip.labels[0] for clip in clips}), notes)
    return group_by_names(manifest, options.group, "speech-commands")


def _read_list(path: str) -> list[str] | None:
    try:
        return storage.read_bytes(path).decode().split()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 text ({error.reason})") from error


def _notes(num_noises: int, missing: list[str]) -> list[str]:
    notes = []
    if num_noises:
        notes.append(f"left out {num_noises} recordings in {_NOISE}, which are not words")
    if missing:
        notes.append(f"{len(missing)} listed clips are missing, such as {missing[0]}")
    return notes
