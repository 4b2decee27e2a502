"""What an earlier run of `prepare` left, and whether this one can resume it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline import storage
from pipeline.errors import UserError
from pipeline.shards.parts import part_path, work_folder
from pipeline.shards.plan import Plan, ShardSpec, setting_differences
from pipeline.shards.settings import BYTES_PER_MB, PrepareSettings

_OPTIONS = ("channel", "clips_per_shard", "max_duration_s", "max_file_bytes", "store", "strict")
"""Settings that an option of `prepare` sets."""


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


def discard_parts(specs: Sequence[ShardSpec], output: str) -> None:
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


def check_settings(before: Plan, settings: PrepareSettings, output: str) -> None:
    """Refuse settings that would give other numbers: a data set never mixes two.

    Raises:
        UserError: names each setting with its old and its new value.
    """
    differences = setting_differences(before, settings)
    if differences:
        changes = "; ".join(f"{name} was {old}, now {new}" for name, old, new in differences)
        remedy = "give another --out"
        if options := [_option(name, old) for name, old, _ in differences if name in _OPTIONS]:
            remedy = f"repeat it with {' '.join(options)}, or {remedy}"
        raise UserError(
            output, f"was prepared with other settings, which concern every clip: {changes}", remedy
        )


def _option(name: str, value: object) -> str:
    """An option of `prepare` that gives a setting its value."""
    if name == "strict":
        return "--strict" if value else "no --strict"
    if name == "max_file_bytes":
        assert isinstance(value, int)
        return f"--max-file-mb {value // BYTES_PER_MB}"
    return f"--{name.replace('_', '-')} {value}"


def _damaged_path(work: str) -> str:
    return storage.join(work, "damaged.json")
