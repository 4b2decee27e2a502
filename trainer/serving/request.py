"""A request: the audio, and from the query what its tags shall be."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pipeline.audio.settings import Channel
from pipeline.errors import SettingValueError, UserError
from trainer.serving.refusal import RefusedError
from trainer.serving.settings import ServedModel
from trainer.tagging.settings import KeepSettings, TagSettings, WindowSettings

_MOST_TAGS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TagRequest:
    """What a replica is asked."""

    audio: bytes
    """A whole file."""
    settings: TagSettings
    spectrogram: bool = False
    """Whether the answer shall hold a picture of the recording."""


def parse_query(
    parameters: Iterable[tuple[str, str]], model: ServedModel, defaults: TagSettings
) -> tuple[TagSettings, bool]:
    """Settings of the tags, and whether a spectrogram is asked for.

    Args:
        parameters: names and values, in order.
        model: limits the length of windows.
        defaults: what the server was started with.

    Raises:
        RefusedError: a parameter is unknown, repeated or out of range.
    """
    values: dict[str, Any] = {}
    for name, text in parameters:
        if name not in _PARAMETERS:
            raise RefusedError(400, _unknown(name))
        if name in values:
            raise RefusedError(400, f"{name}: given twice")
        values[name] = _parse(name, text)
    if values.get("window", 0) > model.window_s + 1e-9:
        raise RefusedError(
            400,
            f"window: at most {model.window_s:g} s, got {values['window']:g} "
            "(`serve --window` takes longer ones)",
        )
    windows = defaults.windows
    try:
        return (
            TagSettings(
                windows=WindowSettings(
                    length_s=values.get("window", windows.length_s),
                    # Half of a window that is given, not of the server's.
                    hop_s=values.get("hop", None if "window" in values else windows.hop_s),
                ),
                keep=KeepSettings(top=values.get("top"), threshold=values.get("threshold")),
                channel=values.get("channel", defaults.channel),
            ),
            values.get("spectrogram", False),
        )
    except SettingValueError as error:
        name = {"length_s": "window", "hop_s": "hop"}[error.name]
        raise RefusedError(400, f"{name}: {error.what}") from error
    except UserError as error:
        raise RefusedError(400, f"{error.where.removeprefix('--')}: {error.what}") from error


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _PARAMETERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_PARAMETERS)}"
    return f"unknown parameter {name[:40]!r}; {hint}"


def _parse(name: str, text: str) -> Any:
    parse, form = _PARAMETERS[name]
    try:
        return parse(text)
    except ValueError as error:
        raise RefusedError(400, f"{name}: must be {form}, got {text[:40]!r}") from error


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError
    value = int(text)
    if not 1 <= value <= _MOST_TAGS:
        raise ValueError
    return value


def _channel(text: str) -> str:
    if text not in get_args(Channel):
        raise ValueError
    return text


def _flag(text: str) -> bool:
    flags = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in flags:
        raise ValueError
    return flags[text.lower()]


_PARAMETERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "top": (_count, f"a whole number from 1 to {_MOST_TAGS}"),
    "threshold": (_share, "a number from 0 to 1"),
    "window": (_number, "a number of seconds"),
    "hop": (_number, "a number of seconds"),
    "channel": (_channel, " or ".join(get_args(Channel))),
    "spectrogram": (_flag, "true or false"),
}
