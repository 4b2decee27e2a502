"""TensorBoard's logs of a run, in its folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline import storage


class TensorBoardLog:
    """Writes TensorBoard's event files; for a run on S3 to a local folder that `flush` uploads."""

    def __init__(self, run_path: str, step: int) -> None:
        """`step`: steps done so far, where the curves resume."""
        from torch.utils.tensorboard import SummaryWriter  # it imports S3 clients

        self._target = storage.join(run_path, "tensorboard")
        self._remote = storage.is_remote(run_path)
        self._folder = tempfile.mkdtemp(prefix="tensorboard-") if self._remote else self._target
        # Hides points after the step that a restart resumes from.
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Add a point to each curve; skips values that are None."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write out all points; for a run on S3, upload the files."""
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
