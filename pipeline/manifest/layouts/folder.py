"""A folder per class: `dog/1.wav`, `rain/2.flac`; or per split and class: `train/dog/1.wav`.

Top-level folders named train, validation, test (or val, valid, dev, eval, evaluation) are splits,
if there are no others; all others are classes. Deeper folders belong to their class.
"""

from collections import Counter
from itertools import compress
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.audio_files import AudioFiles
from pipeline.manifest.layouts.listing import no_files_error
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Clip, Manifest, from_clips

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "eval",
    "evaluation": "eval",
}
"""Names that folders of splits may have, in lower case."""


def read(source: str, options: SourceOptions) -> Manifest:
    """List a folder per class; files that are not audio or in no class folder are noted.

    Raises:
        UserError: there is no such folder, it is empty, or all its audio is in no class folder.
    """
    prefix = source.rstrip("/") + "/"
    relative = [path.removeprefix(prefix) for path in storage.list_files(source)]
    if not relative:
        raise no_files_error(source)
    is_audio = AudioFiles().mask(pa.array(prefix + name for name in relative))
    audio = list(compress(relative, is_audio.to_pylist()))
    tops = {name.split("/")[0] for name in audio if "/" in name}
    depth = 1 if tops and all(top.lower() in SPLITS for top in tops) else 0
    clips = []
    for name in audio:
        folders = name.split("/")[:-1]
        if len(folders) > depth:
            split = SPLITS[folders[0].lower()] if depth else options.split
            label = folders[depth]
            clips.append(Clip(id=name, uri=prefix + name, labels=(label,), split=split))
    if audio and not clips:
        raise UserError(
            source,
            f"{len(audio):,} audio files are in no class folder",
            "move them into a folder per class, or list them in a table with columns path "
            "and labels",
        )
    vocabulary = sorted({label for clip in clips for label in clip.labels})
    return from_clips(clips, vocabulary, _notes(relative, audio, len(clips)))


def _notes(relative: list[str], audio: list[str], num_clips: int) -> list[str]:
    notes = []
    others = Counter(PurePosixPath(name).suffix.lower() or name for name in relative)
    for name in audio:
        others[PurePosixPath(name).suffix.lower()] -= 1
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted((+others).items())[:5])
    if kinds:
        notes.append(f"left out {len(relative) - len(audio)} files that are not audio: {kinds}")
    if len(audio) > num_clips:
        notes.append(f"left out {len(audio) - num_clips} audio files that are in no class folder")
    return notes
