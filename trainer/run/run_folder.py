"""The run folder: what a run is (`run.json`), and whether it may be resumed there.

`run.json` holds the resolved settings, the versions, the seed and the fingerprint of the data; a
run is resumed only with the same data and the same settings, but for those that leave its past as
it was.
"""

import itertools
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from pipeline.shards.settings import Store
from pipeline.terminal.units import counted
from pipeline.version import VERSION
from trainer.checkpoints.paths import checkpoint_paths
from trainer.data.clips import TrainingData
from trainer.optim.schedule import until
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import num_epochs_begun

FORMAT_VERSION = 1

_PACKAGES = ("torch", "torchaudio", "timm", "ray", "numpy", "pyarrow", "webdataset")
MAY_DIFFER = {
    "loader",
    "published",
    "model.checkpoint_activations",
    "model.compile",
    "train.sharding",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.checkpoint_every_s",
    "train.tracker",
}
"""Settings that may change when a run is resumed: they change the result by rounding at most."""
_REMEDY = "restore it, or remove the run and start it again"
_BEFORE_RUN = frozenset({"writer.json", "ray"})
"""Names in a run's folder before its `run.json` is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataInfo:
    """The data that a run is trained and evaluated on. None: an older run did not write it."""

    path: str
    """The prepared data set."""
    fingerprint: str
    """Of the card."""
    labels: list[str]
    num_mels: storage.Count | None = None
    store: Store | None = None
    num_train_clips: storage.Count | None = None
    num_eval_clips: storage.Count | None = None
    eval_name: str
    """The clip set that is evaluated after each epoch."""
    eval_split: str | None = None
    eval_fold: storage.Count | None = None
    mean: storage.Number
    """Of the log-mels, for normalisation; so is `std`."""
    std: storage.Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """The document `run.json`."""

    format_version: int = FORMAT_VERSION
    recipe: str
    """Its name."""
    settings: dict[str, dict[str, Any]]
    """By section, as the run was started."""
    versions: dict[str, str] = field(default_factory=dict)
    seed: storage.Count
    num_parameters: storage.Count
    data: DataInfo
    imported_from: str | None = None
    """The checkpoint that an imported model came from."""

    def to_json(self) -> dict[str, Any]:
        """The document."""
        document = asdict(self)
        if self.imported_from is None:
            del document["imported_from"]
        return document


def describe_run(
    recipe: Recipe, dataset: PreparedDataset, data: TrainingData, num_parameters: int
) -> RunInfo:
    """The content of a run's `run.json`."""
    eval_split, eval_fold = recipe.data.evaluation
    return RunInfo(
        recipe=recipe.name,
        settings=recipe.to_json(),
        versions={"python": platform.python_version(), **_versions()},
        seed=recipe.train.seed,
        num_parameters=num_parameters,
        data=DataInfo(
            path=dataset.path,
            fingerprint=dataset.card.fingerprint,
            labels=dataset.labels,
            num_mels=dataset.num_mels,
            store=dataset.card.store,
            num_train_clips=len(data.train),
            num_eval_clips=len(data.evaluation),
            eval_name=data.evaluation.name,
            eval_split=eval_split,
            eval_fold=eval_fold,
            mean=data.mean,
            std=data.std,
        ),
    )


def run_name(run_path: str) -> str:
    """What messages call a run among others: its folder's name, and that of its seed."""
    parent, _, name = run_path.rpartition("/")
    above = parent.rpartition("/")[2]
    is_repeated = above.startswith("seed-") and name.startswith("fold-")
    return f"{above}/{name}" if is_repeated else name


def write_run(run_path: str, info: RunInfo) -> None:
    """Write `run.json`."""
    storage.write_json(_run_json(run_path), info.to_json())


def is_run(path: str) -> bool:
    """Whether a folder holds a run."""
    return storage.exists(_run_json(path))


def read_run(run_path: str) -> RunInfo:
    """Read `run.json`.

    Raises:
        UserError: the folder holds no run, a damaged one, or one of another format version.
    """
    storage.check_bucket(run_path)
    path = _run_json(run_path)
    try:
        version = storage.read_document(path, _Version, _REMEDY).format_version
        if version == FORMAT_VERSION:
            return storage.read_document(path, RunInfo, _REMEDY)
    except FileNotFoundError as error:
        if kind := storage.held_kind(run_path):
            raise UserError(run_path, f"holds {kind}, not a run", "name a run's folder") from error
        raise UserError(
            run_path, "no run there (no run.json)", "name the folder that a run was written to"
        ) from error
    raise UserError(
        run_path,
        f"the run has format version {version}, this program reads {FORMAT_VERSION}",
        "use the version of ast-ray that wrote it",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Version:
    format_version: int


def read_recipe(run_path: str, run: RunInfo) -> Recipe:
    """The settings a run was started with.

    Those that a run of another version of the program lacks are newer, and had their defaults.

    Raises:
        UserError: a setting is unknown or invalid, or is missing though this version wrote it.
    """
    path = _run_json(run_path)
    recipe = make_recipe(run.recipe, run.settings, where=path)
    if run.versions.get("ast-ray") == VERSION:
        for section, keys in recipe.to_json().items():
            if missing := [key for key in keys if key not in run.settings.get(section, {})]:
                raise UserError(path, f"damaged: settings.{section}.{missing[0]} missing", _REMEDY)
    return recipe


def first_difference(labels: Sequence[str], expected: Sequence[str]) -> str:
    """The first class that differs between two vocabularies; empty if none does."""
    pairs = itertools.zip_longest(labels, expected)
    for number, (label, other) in enumerate(pairs, start=1):
        if label != other:
            here, there = ("missing" if name is None else repr(name) for name in (label, other))
            numbers = f" ({counted(len(labels), 'class', 'classes')}, not {len(expected)})"
            is_as_long = len(labels) == len(expected)
            return f"class {number} is {here}, not {there}{'' if is_as_long else numbers}"
    return ""


def held_out(run_path: str, run: RunInfo) -> tuple[str, int]:
    """Split and fold that a run is evaluated on; fold 0: the whole split.

    Raises:
        UserError: an older run's settings cannot be read.
    """
    data = run.data
    if data.eval_split is None or data.eval_fold is None:
        return read_recipe(run_path, run).data.evaluation
    return data.eval_split, data.eval_fold


def _run_json(run_path: str) -> str:
    return storage.join(run_path, "run.json")


def check_same_run(
    run_path: str, recipe: Recipe, dataset: PreparedDataset, *, may_go_on: bool = False
) -> bool:
    """Whether the folder holds a run to resume; False if it is empty.

    Args:
        run_path: the folder.
        recipe: the settings to resume with.
        dataset: the data set to resume with.
        may_go_on: whether the recipe may have more epochs than the run was started with.

    Raises:
        UserError: the folder holds a run with other settings or other data, the remains of one, or
            other files.
    """
    check_folder(run_path, "run.json")
    if not storage.exists(_run_json(run_path)):
        if checkpoint_paths(run_path):
            raise UserError(
                run_path,
                "has checkpoints, but no run.json with their settings",
                "restore it, or give another --out",
            )
        check_empty(run_path, but=_BEFORE_RUN)
        return False
    check_same_data(run_path, dataset)
    run = read_run(run_path)
    before = read_recipe(run_path, run)
    goes_on = may_go_on and recipe.train.epochs > before.train.epochs and not run.imported_from
    num_past = num_epochs_begun(run_path) if goes_on else 0
    _refuse_changes(run_path, _continued(before, recipe, num_past), recipe, num_past)
    return True


def check_same_data(run_path: str, dataset: PreparedDataset) -> None:
    """Refuse to go on with a run on other data, or on data that was corrected since.

    Raises:
        UserError: the run in the folder has other data, or is damaged.
    """
    if not storage.exists(_run_json(run_path)):
        return
    data = read_run(run_path).data
    if data.fingerprint == dataset.card.fingerprint:
        return
    remedy = "give another --out, or remove this run"
    if data.path != dataset.path:
        raise UserError(run_path, "the run was trained on other data", remedy)
    raise UserError(
        run_path,
        f"the run was trained on {data.path} before it was corrected or prepared anew",
        f"prepare it from its earlier manifest, {remedy}",
    )


def _continued(before: Recipe, now: Recipe, num_past: int) -> Recipe:
    """The settings a run was started with, with its new epochs and its new schedule after them.

    `num_past`: the epochs it has begun, which must not change; 0: nothing may change.
    """
    if not num_past:
        return before
    is_same = until(before.schedule, num_past) == until(now.schedule, num_past)
    return replace(
        before,
        train=replace(before.train, epochs=now.train.epochs),
        schedule=now.schedule if is_same else before.schedule,
    )


def _refuse_changes(run_path: str, before: Recipe, now: Recipe, num_past: int) -> None:
    old, new = before.to_json(), now.to_json()
    for section, keys in new.items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            if old[section][key] == value or MAY_DIFFER & {section, name}:
                continue
            remedy = "give another --out, or remove this run"
            if num_past and name == "schedule.decay_after_epochs":
                remedy = (
                    f"epochs 1 to {num_past} are trained: leave what is below {num_past} as it "
                    "was, or give another --out"
                )
            what = f"the run was started with {name} = {old[section][key]!r}, not {value!r}"
            raise UserError(run_path, what, remedy)


def check_folder(path: str, own: str) -> None:
    """Refuse a folder that holds another kind of result; `own` is the file that marks this kind.

    Raises:
        UserError: names what the folder holds.
    """
    storage.check_bucket(path)
    if kind := storage.held_kind(path, but=own):
        raise UserError(path, f"holds {kind}", "give another --out")


def check_empty(folder: str, but: frozenset[str] = frozenset()) -> None:
    """Refuse a folder that holds anything but hidden files and the names in `but`.

    Raises:
        UserError: names a file in it.
    """
    for batch in storage.iter_files(folder):
        for path in batch["path"].to_pylist():
            name = path.removeprefix(folder).lstrip("/")
            top = name.partition("/")[0]
            if top not in but and not top.startswith("."):
                raise UserError(folder, f"not empty: it holds {name}", "give another --out")


def _versions() -> dict[str, str]:
    versions = {"ast-ray": VERSION}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Training alone needs no Ray.
            versions[name] = "not installed"
    return versions
