"""Whether all nodes of a cluster see the same files, found out before work starts.

In: local paths that a step reads and folders that it writes. Steps: write a token into each folder;
look at it, and at what is read, from every live node; remove it. A node that joins later looks
before it works.
"""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.errors import UserError

_ANSWER_S = 120.0
"""For a node to answer; starting a process on a busy one takes a while."""
_START_BYTES = 65_536
_REMEDY = "give a path in a bucket, such as s3://bucket/key, or on a disk that all nodes share"


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPaths:
    """Paths that every node must see alike; those in buckets are."""

    read: tuple[str, ...] = ()
    """Files. Those that the node lacks on which the step was started are not looked at."""
    written: tuple[str, ...] = ()
    """Folders."""

    def local(self) -> "SharedPaths":
        """Those that are not in buckets."""
        read, written = (
            tuple(path for path in paths if not storage.is_remote(path))
            for paths in (self.read, self.written)
        )
        return SharedPaths(read=read, written=written)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """What is looked at, and the path that the user gave for it."""

    path: str
    given: str


def check_shared(paths: SharedPaths) -> None:
    """Refuse local paths that the live nodes of the connected cluster do not see alike.

    Raises:
        UserError: names the path and the nodes.
    """
    local = paths.local()
    if not (local.read or local.written):
        return
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    nodes.pop(ray.get_runtime_context().get_node_id(), None)
    with _tokens(local.written) as tokens:
        places = [*tokens, *(_Place(path=path, given=path) for path in local.read)]
        here = {place: seen for place in places if (seen := _look(place.path)) is not None}
        looks = _look_from(list(nodes), [place.path for place in here])
    for number, (place, expected) in enumerate(here.items()):
        blind = [nodes[node] for node, seen in looks.items() if seen[number] != expected]
        if blind:
            raise UserError(
                place.given,
                f"{len(blind)} of {len(nodes) + 1} nodes do not see the files there that this one "
                f"sees: {', '.join(sorted(set(blind)))}",
                _REMEDY,
            )


def seen_here(paths: SharedPaths) -> tuple[str, ...]:
    """The local paths that exist on this node, and so must on each that works with them."""
    local = paths.local()
    return tuple(path for path in (*local.read, *local.written) if Path(path).exists())


def check_here(paths: Sequence[str]) -> None:
    """Refuse to work on a node that lacks paths, as one may that joined after `check_shared`.

    Raises:
        UserError: names the path and the node.
    """
    for path in paths:
        if not Path(path).exists():
            address = ray.util.get_node_ip_address()
            raise UserError(path, f"is not there on the node {address}", _REMEDY)


@contextmanager
def _tokens(folders: Sequence[str]) -> Iterator[list[_Place]]:
    """A file of random bytes in each folder; a folder that cannot be written is left out."""
    places = []
    created: list[Path] = []
    try:
        for folder in folders:
            token = Path(folder, f".{secrets.token_hex(8)}.token")
            # The step says itself why it cannot write.
            with suppress(OSError):
                missing = [
                    path for path in (token.parent, *token.parent.parents) if not path.exists()
                ]
                token.parent.mkdir(parents=True, exist_ok=True)
                created += missing
                places.append(_Place(path=str(token), given=folder))
                token.write_bytes(secrets.token_bytes(16))
        yield places
    finally:
        for place in places:
            Path(place.path).unlink(missing_ok=True)
        for path in created:
            with suppress(OSError):
                path.rmdir()


def _look_from(node_ids: Sequence[str], paths: Sequence[str]) -> dict[str, list[str | None]]:
    """What each node sees of the paths; nodes that leave meanwhile are left out."""
    look = ray.remote(num_cpus=0, max_retries=1)(_look_all)
    answers = {
        node: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(paths)
        for node in node_ids
    }
    seen = {}
    for node, answer in answers.items():
        try:
            seen[node] = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.GetTimeoutError as error:
            raise UserError(
                node, f"the node does not answer within {_ANSWER_S:.0f} s", "look at its state"
            ) from error
        except ray.exceptions.RayError:
            continue
    return seen


def _look_all(paths: Sequence[str]) -> list[str | None]:
    return [_look(path) for path in paths]


def _look(path: str) -> str | None:
    """The size and the start of a file, as a digest; None if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return f"{size} {hashlib.sha256(file.read(_START_BYTES)).hexdigest()}"
    except OSError:
        return None
