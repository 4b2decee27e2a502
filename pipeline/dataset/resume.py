"""What an earlier run of `prepare` left, and whether this one can resume it."""

from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.parts import part_path, work_folder
from pipeline.shards.plan import Plan, ShardSpec, differences
from pipeline.shards.settings import PrepareSettings

_MAX_IDS_SHOWN = 5
"""Ids in a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damaged:
    """What `verify` found damaged, for `prepare` to rebuild."""

    shards: list[str]
    """Names of shards; index, ledger and card are rewritten in any case."""


def check_output(output: str) -> None:
    """Refuse to write a data set among other files.

    Raises:
        UserError: the output is a file, or a folder with files but none of those that `prepare`
            writes first or last.
    """
    if storage.exists(output):
        raise UserError(output, "is a file", "give the folder of a data set as --out")
    is_dataset = any(
        storage.exists(storage.join(output, name)) for name in ("card.json", "prepare_summary.json")
    )
    if (
        not is_dataset
        and not storage.holds_files(work_folder(output))
        and storage.holds_files(output)
    ):
        raise UserError(output, "is not empty and holds no data set", "give another --out")


def read_damaged(work: str) -> Damaged | None:
    """The note of the last `verify`; None if it found nothing.

    Raises:
        UserError: the note itself is damaged.
    """
    path = _damaged_path(work)
    try:
        return storage.read_document(path, Damaged, "run `verify` again to rewrite it")
    except FileNotFoundError:
        return None


def write_damaged(work: str, damaged: Damaged) -> None:
    """Leave a note for `prepare`."""
    storage.write_json(_damaged_path(work), asdict(damaged))


def clear_damaged(work: str) -> None:
    """Remove the note, once all it names is rebuilt."""
    storage.remove(_damaged_path(work))


def discard_parts(specs: list[ShardSpec], output: str) -> None:
    """Remove the part files of shards that will be rebuilt."""
    present = set(storage.list_files(storage.join(work_folder(output), "parts")))
    for spec in specs:
        if part_path(output, spec.name) in present:
            storage.remove(part_path(output, spec.name))


def remove_unfinished(output: str) -> None:
    """Remove partial tars that killed processes left; in a bucket there are none."""
    if not storage.is_remote(output):
        for path in storage.list_files(storage.join(output, "shards")):
            if storage.UNFINISHED.fullmatch(path.rpartition("/")[2]):
                storage.remove(path)


def check_resumable(
    before: Plan, manifest: Manifest, settings: PrepareSettings, output: str
) -> None:
    """Refuse to mix different data: a data set may only get new clips.

    Raises:
        UserError: settings or the vocabulary differ from those of the earlier plan, or clips of it
            were removed or changed.
    """
    changes = differences(before, manifest, settings)
    reasons = list(changes.settings)
    for change, ids in (("removed", changes.removed_ids), ("changed", changes.changed_ids)):
        if ids:
            shown = ", ".join(ids[:_MAX_IDS_SHOWN]) + (", ..." if len(ids) > _MAX_IDS_SHOWN else "")
            reasons.append(f"{len(ids)} clips were {change} ({shown})")
    if reasons:
        raise UserError(
            output,
            f"holds shards of another manifest or other settings: {'; '.join(reasons)}. Only "
            "new clips can be added",
            "give another --out, or remove it",
        )


def _damaged_path(work: str) -> str:
    return storage.join(work, "damaged.json")
