"""Groups by the names of files, for layouts without columns: `--group '{speaker}_*'`.

In: the names of clips, and a pattern. `{speaker}` stands for the group, `*` for any text; neither
goes over a `/`. A pattern has as many folders as it names, and may leave out the suffix. Out: the
group of each clip.
"""

import re

from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest, with_groups
from pipeline.terminal.units import counted

_PIECES = re.compile(r"(\{\w+\}|\*)")


def group_by_names(manifest: Manifest, pattern: str, layout: str) -> Manifest:
    """The manifest with a group for each clip; as it is if the pattern is empty.

    Args:
        manifest: clips whose ids are their paths below the source.
        pattern: what the user named.
        layout: the name of the source's layout.

    Raises:
        UserError: the pattern names no group, or several; or some names do not match it.
    """
    if not pattern:
        return manifest
    option = f"--group {pattern}"
    fields = re.findall(r"\{(\w+)\}", pattern)
    if len(fields) != 1:
        name = pattern if pattern.isidentifier() else "speaker"
        raise UserError(
            option,
            f"the layout {layout!r} has no columns, only names of files",
            f"write a pattern of the names with one part in braces, such as --group '{{{name}}}_*' "
            f"for anna_1.wav, or list the files in a table with columns path, labels and {name}",
        )
    names: list[str] = manifest.clips["id"].to_pylist()
    found = [_expression(pattern).search(name) for name in names]
    others = [name for name, match in zip(names, found, strict=True) if match is None]
    if others:
        raise UserError(
            option,
            f"{len(others):,} of {counted(len(names), 'name does', 'names do')} not match it, such "
            f"as {others[0]}",
            "change the pattern; * stands for any text within a name",
        )
    groups = [match[1] for match in found if match is not None]
    return with_groups(manifest, pattern, {fields[0]: groups})


def _expression(pattern: str) -> re.Pattern[str]:
    """What matches the end of a path."""
    pieces = (
        "([^/]+?)" if piece.startswith("{") else "[^/]*?" if piece == "*" else re.escape(piece)
        for piece in _PIECES.split(pattern)
        if piece
    )
    return re.compile(rf"(?:^|/){''.join(pieces)}(?:\.[^./]+)?$")
