"""The command `ray`, and clusters in a process, with more time for a node to start.

Ray gives it 30 s, which take a minute and more where the cores are busy.
"""

import time
from typing import Any

from ray._private import services
from ray.scripts import scripts

START_S = 120.0


def be_patient() -> None:
    """Let nodes that this process starts have `START_S`."""
    get_node = services.get_node

    def wait_for_node(*where: Any) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return get_node(*where)  # type: ignore[no-untyped-call]
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise

    services.get_node = wait_for_node


if __name__ == "__main__":
    be_patient()
    scripts.main()
