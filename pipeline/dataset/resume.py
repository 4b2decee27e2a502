"""What an earlier run of `prepare` left, and what of it may stand."""

import re
from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.parts import part_path, work_folder
from pipeline.shards.plan import Plan, ShardSpec, differences
from pipeline.shards.settings import PrepareSettings

_UNFINISHED_TAR = re.compile(r"\.[A-Za-z0-9_-]+-\d{5,}\.tar\.\d+\.[0-9a-f]{8}")
_NAMED = 5
"""Ids that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damaged:
    """What `verify` found fault with: `prepare` makes it again."""

    shards: list[str]
    """Shards to be built again; index, ledger and card are made again in any case."""


def check_place(output: str) -> None:
    """Refuse to write a data set among other things.

    Raises:
        UserError: a file is there, or a folder with files and nothing that `prepare` writes first
            or last.
    """
    if storage.exists(output):
        raise UserError(output, "is a file", "give the folder of a data set as --out")
    ours = any(
        storage.exists(storage.join(output, name)) for name in ("card.json", "prepare_summary.json")
    )
    if not ours and not storage.holds_files(work_folder(output)) and storage.holds_files(output):
        raise UserError(output, "is not empty and holds no data set", "give another --out")


def read_damaged(work: str) -> Damaged | None:
    """The note of the last `verify`; None if it found nothing.

    Raises:
        UserError: the note itself is damaged.
    """
    path = _damaged_path(work)
    try:
        return storage.read_document(path, Damaged, "run `verify` again, which writes it again")
    except FileNotFoundError:
        return None


def write_damaged(work: str, damaged: Damaged) -> None:
    """Leave a note for `prepare`."""
    storage.write_json(_damaged_path(work), asdict(damaged))


def clear_damaged(work: str) -> None:
    """Remove the note: all it named is mended."""
    storage.remove(_damaged_path(work))


def discard_parts(specs: list[ShardSpec], output: str) -> None:
    """Remove the part files of shards that will be built again."""
    present = set(storage.list_files(storage.join(work_folder(output), "parts")))
    for spec in specs:
        if part_path(output, spec.name) in present:
            storage.remove(part_path(output, spec.name))


def remove_unfinished(output: str) -> None:
    """Remove what processes that were killed left of shards: on S3 nothing, locally a tar each."""
    if not storage.is_remote(output):
        for path in storage.list_files(storage.join(output, "shards")):
            if _UNFINISHED_TAR.fullmatch(path.rpartition("/")[2]):
                storage.remove(path)


def check_carries_on(
    before: Plan, manifest: Manifest, settings: PrepareSettings, output: str
) -> None:
    """Refuse to mix what does not belong together: a data set may only get new clips.

    Raises:
        UserError: settings or the vocabulary differ from those of the plan that is there, or clips
            of it were removed or changed.
    """
    found = differences(before, manifest, settings)
    told = list(found.settings)
    for what, ids in (("removed", found.removed_ids), ("changed", found.changed_ids)):
        if ids:
            more = ", ..." if len(ids) > _NAMED else ""
            told.append(f"{len(ids)} clips were {what} ({', '.join(ids[:_NAMED])}{more})")
    if told:
        raise UserError(
            output,
            f"holds shards of another manifest or other settings: {'; '.join(told)}. Only "
            "new clips can be added",
            "give another --out, or remove it",
        )


def _damaged_path(work: str) -> str:
    return storage.join(work, "damaged.json")
