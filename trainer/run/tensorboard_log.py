"""TensorBoard's logs of a run, in its folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline import storage


class TensorBoardLog:
    """Writes TensorBoard's event files; for a run on S3 locally first, then up with each flush."""

    def __init__(self, run_path: str, step: int) -> None:
        """`step`: steps done so far, which is where the curves go on."""
        from torch.utils.tensorboard import SummaryWriter  # loads S3 clients where there are any

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
