"""A folder per class: `dog/1.wav`, `rain/2.flac`; or per split and class: `train/dog/1.wav`.

Top-level folders named train, validation, test (or val, valid, dev, eval, evaluation) are splits,
if there are no others; all others are classes. Deeper folders belong to their class.
"""

from collections import Counter
from dataclasses import replace
from itertools import compress
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.audio_files import AudioFiles
from pipeline.manifest.layouts.listing import no_files_error
from pipeline.manifest.layouts.name_groups import group_by_names
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.visible import VisibleFiles
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.manifest.splits import SPLITS, is_fold_name
from pipeline.manifest.warnings.labels import some
from pipeline.terminal.units import counted


def read(source: str, options: SourceOptions) -> Manifest:
    """List a folder per class; files that are not audio or in no class folder are noted.

    Raises:
        UserError: there is no such folder, it is empty, or its audio is in no folders of classes.
    """
    prefix = source.rstrip("/") + "/"
    files = VisibleFiles(source)
    relative = [path.removeprefix(prefix) for path in files.paths()]
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
    _check_classes(source, [clip.id for clip in clips], vocabulary, depth)
    manifest = from_clips(clips, vocabulary, [*files.notes(), *_notes(relative, audio, len(clips))])
    manifest = group_by_names(manifest, options.group, "folder")
    return replace(manifest, warnings=_warn_of_inner_classes([clip.id for clip in clips], depth))


def _check_classes(source: str, names: list[str], classes: list[str], depth: int) -> None:
    """Refuse folders that are no classes: one around all others, or folds."""
    table = "list the files in a table with columns path and labels"
    if len(classes) == 1 and all(name.count("/") > depth + 1 for name in names):
        inside = storage.join(source, *names[0].split("/")[: depth + 1])
        raise UserError(
            source,
            f"all {len(names):,} audio files are in folders within {classes[0]!r}, which would be "
            "their only class",
            f"name the folder that holds a folder per class, such as {inside}, or {table}",
        )
    if classes and all(map(is_fold_name, classes)):
        raise UserError(
            source, f"its folders are folds, not classes: {', '.join(classes[:3])}", table
        )


def _warn_of_inner_classes(names: list[str], depth: int) -> tuple[str, ...]:
    """A warning if the folders of classes have the same folders within, and no file beside them."""
    if any(name.count("/") < depth + 2 for name in names):
        return ()
    pairs = {tuple(name.split("/")[depth : depth + 2]) for name in names}
    classes_of = Counter(inside for _, inside in pairs)
    common = sorted(inside for inside, count in classes_of.items() if count > 1)
    if not common:
        return ()
    classes = sorted({name for name, _ in pairs})
    return (
        f"the outer folders are the classes ({some(classes)}), and all files are in folders within "
        f"them, some of the same name ({some(common)}); if those are the classes, list the files "
        "in a table with columns path and labels",
    )


def _notes(relative: list[str], audio: list[str], num_clips: int) -> list[str]:
    notes = []
    others = Counter(PurePosixPath(name).suffix.lower() or name for name in relative)
    for name in audio:
        others[PurePosixPath(name).suffix.lower()] -= 1
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted((+others).items())[:5])
    if kinds:
        others_are = counted(len(relative) - len(audio), "file that is", "files that are")
        notes.append(f"left out {others_are} not audio: {kinds}")
    if len(audio) > num_clips:
        notes.append(f"left out {len(audio) - num_clips} audio files that are in no class folder")
    return notes
