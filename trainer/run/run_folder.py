"""The run folder: what a run is (`run.json`) and how it went (`history.json`).

`run.json` holds the resolved settings, the versions, the seed and the fingerprint of the data; a
run is carried on only with the same settings and data.
"""

import platform
import sys
from importlib import metadata
from typing import Any

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from pipeline.version import VERSION
from trainer.checkpoints.checkpoint import Progress, checkpoint_paths
from trainer.data.clips import TrainingData
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe

FORMAT_VERSION = 1

_PACKAGES = ("torch", "torchaudio", "timm", "ray", "numpy", "pyarrow", "webdataset")
_MAY_DIFFER = {
    "loader",
    "published",
    "model.checkpoint_activations",
    "model.compile",
    "train.sharding",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.checkpoint_every_s",
}
"""What may change between the starts of a run: it changes the result by rounding errors at most."""
_KINDS = {
    "run.json": "a run",
    "ensemble.json": "an ensemble",
    "cross_validation.json": "a cross-validation",
    "card.json": "a prepared data set",
    "ast.safetensors": "an exported model",
}
"""What a folder is of, by a file in it."""
_BEFORE_RUN = frozenset({"writer.json", "ray"})
"""What stands in a run's folder before its `run.json`, at the top."""
_RUN_KEYS = {"recipe", "settings", "seed", "num_parameters", "data"}
_DATA_KEYS = {"path", "fingerprint", "labels", "eval_name", "mean", "std"}
_EPOCH_KEYS = {"epoch", "step", "mAP", "accuracy"}


def describe_run(
    recipe: Recipe, dataset: PreparedDataset, data: TrainingData, num_parameters: int
) -> dict[str, Any]:
    """The content of `run.json`."""
    eval_split, eval_fold = recipe.data.evaluation
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "settings": recipe.to_json(),
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": recipe.train.seed,
        "num_parameters": num_parameters,
        "data": {
            "path": dataset.path,
            "fingerprint": dataset.card.fingerprint,
            "labels": dataset.labels,
            "num_mels": dataset.num_mels,
            "num_train_clips": len(data.train),
            "num_eval_clips": len(data.evaluation),
            "eval_name": data.evaluation.name,
            "eval_split": eval_split,
            "eval_fold": eval_fold,
            "mean": data.mean,
            "std": data.std,
        },
    }


def read_run(run_path: str) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        UserError: the folder holds no run, a damaged one, or one of another format version.
    """
    storage.check_bucket(run_path)
    path = storage.join(run_path, "run.json")
    try:
        run = storage.read_json_object(path)
    except FileNotFoundError as error:
        raise UserError(run_path, "no run there (no run.json)") from error
    if "format_version" not in run:
        raise _damaged_run(path)
    if run["format_version"] != FORMAT_VERSION:
        raise UserError(
            run_path,
            f"the run has format version {run['format_version']}, this program reads "
            f"{FORMAT_VERSION}",
        )
    data = run.get("data")
    if not (
        run.keys() >= _RUN_KEYS
        and isinstance(run["settings"], dict)
        and isinstance(data, dict)
        and data.keys() >= _DATA_KEYS
    ):
        raise _damaged_run(path)
    return run


def _damaged_run(path: str) -> UserError:
    return UserError(
        path,
        "damaged, and nothing else says what the run is of",
        "put it back, or remove the run and start it again",
    )


def read_recipe(run: dict[str, Any]) -> Recipe:
    """The settings a run was started with."""
    return make_recipe(run["recipe"], run["settings"], where="run.json")


def check_same_run(run_path: str, recipe: Recipe, dataset: PreparedDataset) -> bool:
    """Whether a run is there to be carried on; False if the folder is free.

    Raises:
        UserError: a run with other settings or other data is there, or what is left of one; or
            anything else.
    """
    check_folder(run_path, "run.json")
    if not storage.exists(storage.join(run_path, "run.json")):
        if checkpoint_paths(run_path):
            raise UserError(
                run_path,
                "has checkpoints of a run, but no run.json to say what it is of",
                "put it back, or give another --out",
            )
        check_empty(run_path, but=_BEFORE_RUN)
        return False
    run = read_run(run_path)
    remedy = "give another --out, or remove that one"
    if run["data"]["fingerprint"] != dataset.card.fingerprint:
        raise UserError(run_path, "the run was trained on other data", remedy)
    # A setting that came later had its default before.
    before, now = read_recipe(run).to_json(), recipe.to_json()
    for section in now:
        for key, value in now[section].items():
            old = before[section][key]
            if old != value and not _MAY_DIFFER & {section, f"{section}.{key}"}:
                raise UserError(
                    run_path,
                    f"the run was started with {section}.{key} = {old!r}, not {value!r}",
                    remedy,
                )
    return True


def check_folder(path: str, own: str) -> None:
    """Refuse to write among the files of something else; `own` is the file that marks one's own.

    Raises:
        UserError: says what is there.
    """
    storage.check_bucket(path)
    for name, kind in _KINDS.items():
        if name != own and storage.exists(storage.join(path, name)):
            raise UserError(path, f"{kind} is there ({name})", "give another --out")


def check_empty(folder: str, but: frozenset[str] = frozenset()) -> None:
    """Refuse a folder that holds anything but hidden files and these names at its top.

    Raises:
        UserError: names a file of it.
    """
    for batch in storage.iter_files(folder):
        for path in batch["path"].to_pylist():
            name = path.removeprefix(folder).lstrip("/")
            top = name.partition("/")[0]
            if top not in but and not top.startswith("."):
                raise UserError(folder, f"not empty, {name} is there already", "give another --out")


def write_history(run_path: str, progress: Progress, *, finished: bool) -> None:
    """Write the curves so far."""
    document = {"steps": progress.steps, "epochs": progress.epochs, "finished": finished}
    storage.write_json(storage.join(run_path, "history.json"), document)


def read_history(run_path: str) -> dict[str, Any]:
    """The curves of a run; empty ones before its first epoch is through.

    Raises:
        UserError: the file is damaged.
    """
    path = storage.join(run_path, "history.json")
    try:
        history: dict[str, Any] = storage.read_json(path)
        is_whole = isinstance(history["finished"], bool) and all(
            isinstance(history[name], list)
            and all(_is_point(entry, keys) for entry in history[name])
            for name, keys in (("epochs", _EPOCH_KEYS), ("steps", {"step", "epoch"}))
        )
    except FileNotFoundError:
        return {"steps": [], "epochs": [], "finished": False}
    except (ValueError, TypeError, LookupError):
        is_whole = False
    if not is_whole:
        raise UserError(path, "damaged", "the command that trained the run writes it again")
    return history


def _is_point(entry: object, keys: set[str]) -> bool:
    """Whether an entry of the history has these keys, and numbers or nothing wherever it has any.

    Where it stands, which is its step and its epoch, is a whole number.
    """
    return (
        isinstance(entry, dict)
        and entry.keys() >= keys
        and all(value is None or isinstance(value, int | float) for value in entry.values())
        and isinstance(entry["step"], int)
        and isinstance(entry["epoch"], int)
    )


def is_finished(run_path: str) -> bool:
    """Whether a run has nothing left to do, such as writing its damaged history again."""
    try:
        return bool(read_history(run_path)["finished"])
    except UserError as error:
        print(error, file=sys.stderr)
        return False


def _versions() -> dict[str, str]:
    versions = {"ast-ray": VERSION}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # A machine for training alone may have no Ray.
            versions[name] = "not installed"
    return versions
