"""The space of a search: settings of a recipe, each with its values or its range.

In: texts such as `schedule.lr=log:1e-6:1e-3`, and the recipe. Steps: parse each, and check its
values, or both ends of its range, as settings of the recipe. Out: a `Space`, which turns shares
from 0 to 1 into values.

`log:LOW:HIGH` and `uniform:LOW:HIGH` are ranges, with `:COUNT` so many values evenly spaced in
them; `A,B,C` are values. Whether a range has whole numbers only is up to the setting.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pipeline.errors import SettingError, UserError
from trainer.recipe.parse import make_recipe, parse_value, with_absolute_paths
from trainer.recipe.recipe import SECTIONS, Recipe
from trainer.run.run_folder import MAY_DIFFER

_OF_CLIPS = {"data.train_split", "data.eval_split", "data.fold", "data.unused_folds"}
"""Settings that choose the clips: scores on different clips do not compare."""
_SYNTAX = "log:LOW:HIGH or uniform:LOW:HIGH (with :COUNT for so many values), or values: A,B,C"
_NARROW = 2.0
"""Ratio of the ends of a range below which its values need more digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """A setting that takes one of some values."""

    setting: str
    """`section.key`."""
    text: str
    """As the user gave it."""
    values: tuple[Any, ...]
    is_range: bool = False
    """Whether they are evenly spaced between two ends."""
    is_log: bool = False
    """Whether they are spaced by a factor."""

    def at(self, share: float) -> Any:
        """The value at a share of the list, from 0 to below 1."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def share(self, value: Any) -> float:
        """Where a value is drawn on an axis, from 0 to 1."""
        return self.values.index(value) / (len(self.values) - 1)

    def is_edge(self, value: Any) -> bool:
        """Whether better values may lie beyond this one."""
        return self.is_range and value in (self.values[0], self.values[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A setting that takes any number of a range."""

    setting: str
    text: str
    low: float
    high: float
    is_log: bool
    is_whole: bool
    """Whether the setting is a whole number."""

    def at(self, share: float) -> Any:
        """The value at a share of the range, from 0 to 1: three digits, or a whole number."""
        value = self._at(share, widened=self.is_whole)
        if self.is_whole:
            return int(min(max(math.floor(value), self.low), self.high))
        if not self.is_log:
            digits = math.ceil(3 - math.log10(self.high - self.low))
            return min(max(round(value, digits), self.low), self.high)
        digits = 3 if self.high / self.low >= _NARROW else 6
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)

    def evenly(self, count: int) -> tuple[Any, ...]:
        """So many values with the same distance, or factor, between neighbours.

        Some may be equal if they are whole numbers.
        """
        shares = [number / (count - 1) for number in range(count)]
        if self.is_whole:
            return tuple(round(self._at(share)) for share in shares)
        short = tuple(self.at(share) for share in shares)
        are_different = len(set(short)) == count
        return short if are_different else tuple(float(self._at(share)) for share in shares)

    def is_edge(self, value: Any) -> bool:
        """Whether a value is within a tenth of the range from one of its ends."""
        return not 0.1 <= self.share(value) <= 0.9

    def share(self, value: float) -> float:
        """Where a value is on the range, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def _at(self, share: float, *, widened: bool = False) -> float:
        # A whole number stands for itself up to the next: both ends are as likely as others.
        high = self.high + 1 if widened else self.high
        if self.is_log:
            return float(self.low * (high / self.low) ** share)
        return self.low + share * (high - self.low)


Dimension = Values | Range
Space = tuple[Dimension, ...]
Choice = dict[str, Any]
"""A value for each setting of a space, by `section.key`."""


def default_space(recipe: Recipe) -> list[str]:
    """The learning rate, from a tenth to ten times the recipe's."""
    rate = recipe.schedule.lr
    return [f"schedule.lr=log:{rate / 10:.3g}:{rate * 10:.3g}"]


def parse_space(texts: Sequence[str], recipe: Recipe) -> Space:
    """The space that the texts describe.

    Raises:
        UserError: a text is not in the syntax; a setting is unknown, named twice, chooses the clips
            or changes no score; a value, or an end of a range, is not valid in the recipe.
    """
    space = tuple(_parse(text, recipe) for text in texts)
    settings = [dimension.setting for dimension in space]
    for setting in settings:
        if settings.count(setting) > 1:
            raise UserError(f"--space {setting}", "is named twice", "give its values once")
    return space


def with_choice(recipe: Recipe, choice: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with these settings.

    Raises:
        SettingError: a setting is unknown, or its value has the wrong type, is out of range, or
            conflicts with another setting; `where` names their source.
    """
    document = recipe.to_json()
    for setting, value in choice.items():
        section, _, key = setting.partition(".")
        document.setdefault(section, {})[key] = value
    return with_absolute_paths(make_recipe(recipe.name, document, where=where))


def _parse(text: str, recipe: Recipe) -> Dimension:
    where = f"--space {text}"
    setting, equals, spec = (part.strip() for part in text.partition("="))
    section, dot, key = setting.partition(".")
    if not (equals and dot and section and key and spec):
        raise UserError(where, f"must be section.key={_SYNTAX}")
    if section not in SECTIONS or key not in get_type_hints(SECTIONS[section]):
        with_choice(recipe, {setting: 0}, where)  # refuses it, and names the near one
    _refuse_useless(setting, where)
    kind, colon, ends = spec.partition(":")
    if colon and kind in ("log", "uniform"):
        return _parse_range(setting, text, ends.split(":"), recipe, is_log=kind == "log")
    if colon and kind.isalpha() and _type_of(setting) in (int, float):
        raise UserError(where, f"no range is called {kind!r}", f"write {_SYNTAX.split(' (')[0]}")
    values = [_checked(recipe, setting, value, where) for value in _split(spec)]
    for value in values:
        if values.count(value) > 1:
            raise UserError(where, f"{value!r} stands there twice", "name each value once")
    if len(values) < 2:
        remedy = f"a setting that all runs share goes into --set {text}"
        raise UserError(where, f"needs two or more values, or {_SYNTAX.split(', or')[0]}", remedy)
    return Values(setting=setting, text=spec, values=tuple(values))


def _refuse_useless(setting: str, where: str) -> None:
    section = setting.partition(".")[0]
    if setting in _OF_CLIPS:
        raise UserError(
            where, f"{setting} chooses the clips, and scores on other clips do not compare"
        )
    if MAY_DIFFER & {section, setting}:
        raise UserError(where, f"{setting} changes no score", "set it with --set")


def _parse_range(
    setting: str, text: str, parts: Sequence[str], recipe: Recipe, *, is_log: bool
) -> Dimension:
    where, spec = f"--space {text}", text.partition("=")[2].strip()
    hint = _type_of(setting)
    if hint not in (int, float):
        raise UserError(where, f"{setting} is no number, so it has no range", "name values: A,B,C")
    if len(parts) not in (2, 3):
        raise UserError(where, f"must be section.key={_SYNTAX}")
    low, high = (_checked(recipe, setting, parse_value(part), where) for part in parts[:2])
    if not low < high or (is_log and low <= 0):
        least = "above 0, and " if is_log else ""
        raise UserError(where, f"its low end must be {least}below the high one, got {low}, {high}")
    chosen = Range(
        setting=setting, text=spec, low=low, high=high, is_log=is_log, is_whole=hint is int
    )
    if len(parts) == 2:
        return chosen
    count = parse_value(parts[2])
    if type(count) is not int or not 2 <= count <= 1000:
        raise UserError(where, f"COUNT must be a whole number from 2 to 1000, got {parts[2]}")
    values = chosen.evenly(count)
    if num_same := count - len(set(values)):
        what = f"{num_same} of {count} values are equal, as {setting} takes whole numbers"
        raise UserError(where, what, "lower COUNT")
    return Values(setting=setting, text=spec, values=values, is_range=True, is_log=is_log)


def _checked(recipe: Recipe, setting: str, value: Any, where: str) -> Any:
    """The value as the setting holds it, in plain JSON; refused as a `--set` of it."""
    section, _, key = setting.partition(".")
    made = with_choice(recipe, {setting: value}, where)
    if _type_of(setting) is float and not math.isfinite(getattr(getattr(made, section), key)):
        raise SettingError(where, f"{setting}: must be a finite number", setting=setting)
    return made.to_json()[section][key]


def _type_of(setting: str) -> Any:
    section, _, key = setting.partition(".")
    return get_type_hints(SECTIONS[section])[key]


def _split(spec: str) -> list[Any]:
    """Values between commas, in TOML or as strings without quotes."""
    try:
        return list(tomllib.loads(f"values = [{spec}]")["values"])
    except (ValueError, RecursionError):
        # Not at commas inside brackets or quotes.
        parts = re.findall(r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[^,])+""", spec)
        return [parse_value(part) for part in parts]
