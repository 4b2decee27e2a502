"""The run folder: what a run is (`run.json`), how it went (`history.json`), TensorBoard's logs.

`run.json` holds the resolved settings, the versions, the seed and the fingerprint of the data; a
run is carried on only with the same settings and data.
"""

import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pipeline import storage
from pipeline.dataset import PreparedDataset
from pipeline.errors import UserError
from trainer.checkpoint import Progress
from trainer.clips import TrainingData
from trainer.recipe import Recipe, make_recipe

FORMAT_VERSION = 1

_PACKAGES = ("ast-ray", "torch", "torchaudio", "timm", "ray", "numpy", "pyarrow", "webdataset")
_MAY_DIFFER = {"loader", "published", "train.sharding"}
"""What may change between the starts of a run: it does not change the result."""


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
            "fingerprint": dataset.card["fingerprint"],
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
    try:
        run = storage.read_json_object(storage.join(run_path, "run.json"))
    except FileNotFoundError as error:
        raise UserError(f"{run_path}: no run there (no run.json)") from error
    if run.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{run_path}: the run has format version {run.get('format_version')}, "
            f"this program reads {FORMAT_VERSION}"
        )
    return run


def read_recipe(run: dict[str, Any]) -> Recipe:
    """The settings a run was started with."""
    return make_recipe(run["recipe"], run["settings"], where="run.json")


def check_same_run(run_path: str, recipe: Recipe, dataset: PreparedDataset) -> bool:
    """Whether a run is there to be carried on; False if the folder is free.

    Raises:
        UserError: a run with other settings or other data is there.
    """
    storage.check_bucket(run_path)
    if not storage.exists(storage.join(run_path, "run.json")):
        return False
    run = read_run(run_path)
    remedy = "give another --out, or remove that one"
    if run["data"]["fingerprint"] != dataset.card["fingerprint"]:
        raise UserError(f"{run_path}: the run was trained on other data; {remedy}")
    # A setting that came later had its default before.
    before, now = read_recipe(run).to_json(), recipe.to_json()
    for section in now:
        for key, value in now[section].items():
            old = before[section][key]
            if old != value and not _MAY_DIFFER & {section, f"{section}.{key}"}:
                raise UserError(
                    f"{run_path}: the run was started with {section}.{key} = {old!r}, "
                    f"not {value!r}; {remedy}"
                )
    return True


def write_history(run_path: str, progress: Progress, *, finished: bool) -> None:
    """Write the curves so far."""
    document = {"steps": progress.steps, "epochs": progress.epochs, "finished": finished}
    storage.write_json(storage.join(run_path, "history.json"), document)


def read_history(run_path: str) -> dict[str, Any]:
    """The curves of a run; empty ones before its first epoch is through."""
    try:
        history: dict[str, Any] = storage.read_json(storage.join(run_path, "history.json"))
    except FileNotFoundError:
        return {"steps": [], "epochs": [], "finished": False}
    return history


def is_finished(run_path: str) -> bool:
    """Whether a run has nothing left to do."""
    return bool(read_history(run_path)["finished"])


class TensorBoardLog:
    """Writes TensorBoard's event files; for a run on S3 locally first, then up with each flush."""

    def __init__(self, run_path: str, step: int) -> None:
        """`step`: steps done so far, which is where the curves go on."""
        self._target = storage.join(run_path, "tensorboard")
        self._remote = storage.is_remote(run_path)
        self._folder = tempfile.mkdtemp(prefix="tensorboard-") if self._remote else self._target
        # Points past the step that a restart goes back to are hidden from the curves.
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Add a point to each of several curves; values that are None are left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was added readable where the run is."""
        self._writer.flush()
        if self._remote:
            for path in sorted(Path(self._folder).iterdir()):
                storage.write_bytes(storage.join(self._target, path.name), path.read_bytes())

    def close(self) -> None:
        """Flush, and end the writer's thread."""
        self.flush()
        self._writer.close()
        if self._remote:
            shutil.rmtree(self._folder)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # A machine for training alone may have no Ray, and a checkout may not be installed.
            versions[name] = "not installed"
    return versions
