"""A recipe from a TOML file and `--set` overrides; an unknown key gets a suggestion."""

import difflib
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline import storage
from pipeline.errors import SettingError, SettingValueError, UserError
from trainer.recipe.recipe import SECTIONS, Recipe

_NOTHING: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})


def load_recipe(
    path: str, overrides: Sequence[str] = (), *, beneath: Mapping[str, Mapping[str, Any]] = _NOTHING
) -> Recipe:
    """Read a recipe file and apply overrides of the form `section.key=value`.

    Args:
        path: the file; empty: none, which is a recipe that sets nothing.
        overrides: go over what the file sets.
        beneath: sections of keys for what neither sets, in place of the defaults.

    Raises:
        UserError: the file is not there or not TOML; a section or key is unknown; a value is of
            the wrong type or out of range.
    """
    document = _read_document(path) if path else {}
    name = path.rpartition("/")[2].removesuffix(".toml") if path else "imported"
    # First by itself, so that what is wrong with the file is not said of the overrides.
    recipe = make_recipe(name, _over(document, beneath), where=path or name)
    if overrides:
        for override in overrides:
            section, key, value = _parse_override(override)
            document.setdefault(section, {})[key] = value
        try:
            recipe = make_recipe(name, _over(document, beneath), where="--set")
        except SettingError as error:
            where = _named(overrides, error.setting)
            raise SettingError(where, error.what, error.remedy, error.setting) from error
    # Workers have other working folders.
    model, loader = recipe.model, recipe.loader
    if model.weights_file:
        model = replace(model, weights_file=storage.absolute(model.weights_file))
    if loader.cache_folder:
        loader = replace(loader, cache_folder=storage.absolute(loader.cache_folder))
    return replace(recipe, model=model, loader=loader)


def make_recipe(name: str, document: Mapping[str, Any], *, where: str) -> Recipe:
    """Settings from sections of keys, null standing for NaN; raises as `load_recipe`.

    `where` is what messages call the place the settings come from.
    """
    unknown = [section for section in document if section not in SECTIONS]
    if unknown:
        raise SettingError(
            where, f"no section [{unknown[0]}]", _near(unknown[0], SECTIONS), setting=unknown[0]
        )
    sections = {
        section: _make_section(section, kind, document.get(section, {}), where)
        for section, kind in SECTIONS.items()
    }
    return Recipe(name=name, **sections)


def _named(overrides: Sequence[str], setting: str) -> str:
    """The overrides of a setting, or else of its section; of one that is there twice the last."""
    by_key = {one.partition("=")[0].strip(): one for one in overrides}
    section = setting.partition(".")[0]
    of_section = [one for key, one in by_key.items() if key.startswith(f"{section}.")]
    chosen = [by_key[setting]] if setting in by_key else of_section or list(overrides)
    return " ".join(f"--set {one}" for one in chosen)


def _read_document(path: str) -> dict[str, Any]:
    storage.check_bucket(path)
    try:
        return tomllib.loads(storage.read_bytes(path).decode())
    except FileNotFoundError as error:
        raise UserError(path, "no such recipe (a .toml file)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(path, f"not a TOML file ({error})") from error


def _over(document: Mapping[str, Any], beneath: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document's keys, and those beneath that it does not have."""
    merged = dict(document)
    for section, keys in beneath.items():
        above = merged.get(section, {})
        # A value where a section should stand is left for the check that says so.
        merged[section] = {**keys, **above} if isinstance(above, Mapping) else above
    return merged


def _make_section(section: str, kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingError(
            where, f"{section} is a section, not a value", f"write [{section}]", setting=section
        )
    hints = get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            name = f"{section}.{key}"
            raise SettingError(where, f"no key {name}", _near(key, hints, section), setting=name)
        arguments[key] = _convert(value, hints[key], where, f"{section}.{key}")
    try:
        return kind(**arguments)
    except SettingValueError as error:
        name = f"{section}.{error.name}"
        raise SettingError(where, f"{name}: {error.what}", setting=name) from error


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    """The value as the field's type; nothing is converted but whole numbers to floats."""
    if hint is float and value is None:
        return math.nan
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(one, get_args(hint)[0], where, name) for one in value)
    expected = str if get_origin(hint) is Literal else hint
    if type(value) is expected:
        return value
    raise SettingError(where, f"{name}: must be {_describe(hint)}, got {value!r}", setting=name)


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if isinstance(hint, types.GenericAlias):
        return "a list, each of it " + _describe(get_args(hint)[0])
    return words[hint]


def _parse_override(override: str) -> tuple[str, str, Any]:
    """`section.key=value`, the value as TOML would write it, or a bare word for a text."""
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {override}", "must be section.key=value, such as train.epochs=10")
    try:
        return section, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, text.strip()


def _near(word: str, known: Mapping[str, Any], section: str = "") -> str:
    """A hint: the same key of another section, the nearest one of this, or all there are."""
    if section:
        for name, kind in SECTIONS.items():
            if word in get_type_hints(kind):
                return f"did you mean {name}.{word}?"
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"there are: {', '.join(known)}"
