"""Whether a package that a test needs should be there, so that its absence is a failure."""

import os
import subprocess
from contextlib import suppress


def should_have(package: str) -> bool:
    """Whether set-up could have installed a package of Debian: in CI, and for root with apt."""
    if os.environ.get("CI") == "true":
        return True
    with suppress(FileNotFoundError):
        shown = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
        return os.geteuid() == 0 and shown.returncode == 0
    return False
