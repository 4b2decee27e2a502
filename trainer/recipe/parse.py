"""A recipe from a TOML file and `--set` overrides; an unknown key gets a suggestion."""

import codecs
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
    path: str,
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Mapping[str, Any]] = _NOTHING,
) -> Recipe:
    """Read a recipe file and apply overrides of the form `section.key=value`.

    Args:
        path: the file; empty: an empty recipe.
        overrides: take precedence over the file.
        defaults: sections of values for keys that neither sets, in place of the defaults.

    Raises:
        UserError: the file is missing or not TOML; a section or key is unknown; a value has the
            wrong type or is out of range.
    """
    document = _read_document(path) if path else {}
    name = path.rpartition("/")[2].removesuffix(".toml") if path else "imported"
    # First without overrides, so that an error in the file names the file.
    recipe = make_recipe(name, _filled_in(document, defaults), where=path or name)
    if overrides:
        for override in overrides:
            section, key, value = _parse_override(override)
            document.setdefault(section, {})[key] = value
        try:
            recipe = make_recipe(name, _filled_in(document, defaults), where="--set")
        except SettingError as error:
            where = _overrides_of(error.setting, overrides)
            raise SettingError(where, error.what, error.remedy, error.setting) from error
    return with_absolute_paths(recipe)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same recipe for workers, which run in other working directories."""
    model, loader = recipe.model, recipe.loader
    if model.weights_file:
        model = replace(model, weights_file=storage.absolute(model.weights_file))
    if loader.cache_folder:
        loader = replace(loader, cache_folder=storage.absolute(loader.cache_folder))
    return replace(recipe, model=model, loader=loader)


def make_recipe(name: str, document: Mapping[str, Any], *, where: str) -> Recipe:
    """A recipe from sections of keys, with null for NaN; raises as `load_recipe`.

    `where` names the source of the settings in errors.
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


def _overrides_of(setting: str, overrides: Sequence[str]) -> str:
    """The last override of a setting; without one, those of its section, or else all."""
    by_key = {override.partition("=")[0].strip(): override for override in overrides}
    section = setting.partition(".")[0]
    of_section = [override for key, override in by_key.items() if key.startswith(f"{section}.")]
    chosen = [by_key[setting]] if setting in by_key else of_section or list(overrides)
    return " ".join(f"--set {override}" for override in chosen)


def _read_document(path: str) -> dict[str, Any]:
    storage.check_bucket(path)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(path, "no such recipe (a .toml file)") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(path, "not a TOML file (it is in UTF-16)", "save it as UTF-8")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(path, f"not a TOML file ({error})", "save it as UTF-8") from error
    # ValueError: also a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"not a TOML file ({error})") from error


def _filled_in(
    document: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The document, with keys that it lacks filled in from `defaults`."""
    merged = dict(document)
    for section, keys in defaults.items():
        above = merged.get(section, {})
        # `_make_section` rejects a value in place of a section.
        merged[section] = {**keys, **above} if isinstance(above, Mapping) else above
    return merged


def _make_section(section: str, kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingError(
            where, f"{section} is a section, not a key", f"write [{section}]", setting=section
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
    """The value, checked against the field's type; whole numbers become floats, lists tuples."""
    if hint is float and value is None:
        return math.nan
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise SettingError(where, f"{name}: must be a smaller number", setting=name) from error
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, get_args(hint)[0], where, name) for item in value)
    expected = str if get_origin(hint) is Literal else hint
    if type(value) is expected:
        return value
    raise SettingError(where, f"{name}: must be {_describe(hint)}, got {value!r}", setting=name)


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if isinstance(hint, types.GenericAlias):
        return "a list, each item " + _describe(get_args(hint)[0])
    return words[hint]


def _parse_override(override: str) -> tuple[str, str, Any]:
    """`section.key=value`, with a value in TOML; any other value is a string without quotes."""
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {override}", "must be section.key=value, such as train.epochs=10")
    return section, key, parse_value(text)


def parse_value(text: str) -> Any:
    """A value in TOML; any other text is a string without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def _near(word: str, known: Mapping[str, Any], section: str = "") -> str:
    """A hint: the same key in another section, the closest key of this one, or all of them."""
    if section:
        for name, kind in SECTIONS.items():
            if word in get_type_hints(kind):
                return f"did you mean {name}.{word}?"
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"choose from: {', '.join(known)}"
