"""The sockets that processes listen on."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LISTENING = "0A"
"""The state in /proc/net/tcp."""


def listening(session: int) -> dict[str, set[str]]:
    """Addresses that processes of a session listen on for TCP, by the names of the processes."""
    addresses: dict[str, set[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == session:
                name = (folder / "cmdline").read_text().split("\0")[0].rpartition("/")[2]
                addresses.setdefault(name, set()).update(_addresses(folder))
    return addresses


def _addresses(folder: Path) -> Iterator[str]:
    sockets = set()
    for descriptor in (folder / "fd").iterdir():
        with suppress(OSError):
            sockets.add(str(descriptor.readlink()))
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                number = fields[1].partition(":")[0]
                # Words of 32 bits in the order of this machine, little-endian on all that we know.
                words = [
                    bytes.fromhex(number[at : at + 8])[::-1] for at in range(0, len(number), 8)
                ]
                yield socket.inet_ntop(family, b"".join(words))
