"""The checks of errors fail for every other error."""

from typing import Any

import pytest

from pipeline.errors import PassingError, SettingError, SettingValueError, UserError
from tests.support.errors import assert_error_line, assert_names, refused

ERROR = UserError("/data/a.csv", "line 12 has 3 cells", "give --column path=NAME")


@pytest.mark.parametrize(
    ("error", "where", "values", "options"),
    [
        (ERROR, "/data/a.csv", ["line 12", 3], {"remedy": "--column"}),
        (ERROR, "a.csv", ["--column path=NAME"], {"remedy": True}),
        (UserError("", "3 runs", ""), "", [3], {}),
        (PassingError("s3://b", "503"), "s3://b", [503], {"type": PassingError}),
        (SettingError("x", "lr", "", "a.lr"), "x", [], {"type": SettingError, "setting": "a.lr"}),
        (SettingValueError("lr", "got -1"), "lr", ["got -1"], {"type": SettingValueError}),
    ],
)
def test_refused_accepts_the_expected_error(
    error: Exception, where: str, values: list[object], options: dict[str, Any]
) -> None:
    with refused(where, *values, **options):
        raise error


@pytest.mark.parametrize(
    ("error", "where", "values", "options"),
    [
        (ERROR, "b.csv", [], {}),
        (ERROR, "", [], {}),
        (ERROR, "a.csv", [1], {}),
        (ERROR, "a.csv", ["cell"], {}),
        (ERROR, "a.csv", [], {"remedy": "--labels"}),
        (UserError("a.csv", "damaged"), "a.csv", [], {"remedy": True}),
        (UserError("a.csv", "damaged, see --help"), "a.csv", [], {"remedy": "--help"}),
        (PassingError("a.csv", "503"), "a.csv", [503], {}),
        (SettingError("x", "lr", "", "a.lr"), "x", [], {"type": SettingError, "setting": "b.lr"}),
        (SettingValueError("lr", "got -1"), "rate", ["got -1"], {"type": SettingValueError}),
    ],
)
def test_refused_fails_for_another_error(
    error: Exception, where: str, values: list[object], options: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError), refused(where, *values, **options):
        raise error


def test_refused_fails_without_an_error() -> None:
    with pytest.raises(pytest.fail.Exception), refused("a.csv"):
        pass


def test_names_are_whole_words_and_numbers() -> None:
    assert_names("line 12: /data/a.csv, [5, 2]", 12, "/data/a.csv", "a.csv", [5, 2])
    for value in (1, "lin", "data/a.cs", [5]):
        with pytest.raises(AssertionError):
            assert_names("line 12: /data/a.csv, [5, 2]", value)


def test_error_line_has_place_and_values() -> None:
    stderr = "note: odd\nray_job.py: error: /data/a.csv: 3 cells; see --help\n"
    assert_error_line(stderr, "a.csv", 3, "--help")
    assert_error_line(stderr, "", 3)
    for where, value in (("b.csv", 3), ("a.csv", 4), ("--help", 3)):
        with pytest.raises(AssertionError):
            assert_error_line(stderr, where, value)
    with pytest.raises(AssertionError):
        assert_error_line(stderr + stderr, "a.csv")
    with pytest.raises(AssertionError):
        assert_error_line("note: odd\n", "")
