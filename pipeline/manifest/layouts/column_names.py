"""Names of a table's columns: ours in any case, and what to suggest for one that is missing."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence

_SYNONYMS = {
    "path": (
        *("file", "filename", "filepath", "audio", "audiopath", "audiofile", "wav", "wavpath"),
        *("wavfile", "fname", "uri", "url", "sound", "clip", "recording"),
    ),
    "labels": (
        *("label", "class", "classname", "classes", "category", "categories", "tag", "tags"),
        *("target", "targets", "classlabel", "species", "primarylabel", "event", "word", "genre"),
    ),
}
"""Other names of our columns, without case and signs; the first that a table has counts."""


def in_our_case(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns, those called as one of `names` but for the case renamed to it."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return [
        name
        if name in names or by_lower.get(name.lower()) in columns
        else by_lower.get(name.lower(), name)
        for name in columns
    ]


def how_to_name(missing: Sequence[str], columns: Sequence[str], options: Mapping[str, str]) -> str:
    """Which columns a table has, and the options that name near ones in place of those missing.

    Args:
        missing: columns that the table lacks.
        columns: those it has.
        options: the option that asks for a column, which stands in braces: `--column
            path=audio/{fname}.wav`; columns without an option are not suggested.
    """
    known = f"it has {', '.join(columns) or 'none'}"
    asked = [name for name in missing if name in options]
    if not asked:
        return known
    near = {name: _nearest(name, options[name], columns) for name in asked}
    right = " ".join(_filled(options[name], name, near[name] or "NAME") for name in asked)
    if None in near.values():
        return f"{known}; name the right one with {right}"
    return f"{known}; did you mean {right}?"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The nearest of the names that are known, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from: {', '.join(known)}"


def _nearest(name: str, option: str, columns: Sequence[str]) -> str | None:
    """The column that is spelled most like `name`, or else that is called like ours."""
    by_lower = {_bare(column): column for column in reversed(columns) if column}
    close = difflib.get_close_matches(_bare(name), list(by_lower), n=1, cutoff=0.7)
    role = re.sub(r"^--column (\w+)=.*$", r"\1", option)
    synonyms = [other for other in _SYNONYMS.get(role, ()) if other in by_lower]
    return next((by_lower[other] for other in (*close, *synonyms)), None)


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _filled(option: str, name: str, other: str) -> str:
    """The option with another column, as a shell takes it."""
    flag, _, value = option.partition(" ")
    role, sign, pattern = value.partition("=") if flag == "--column" else ("", "", value)
    text = other if pattern == f"{{{name}}}" else pattern.replace(f"{{{name}}}", f"{{{other}}}")
    return f"{flag} {shlex.quote(f'{role}{sign}{text}')}"
