"""What the query of a request may say."""

import pytest

from trainer.serving.refusal import RefusedError
from trainer.serving.request import parse_query
from trainer.serving.settings import ServedModel
from trainer.tagging.settings import KeepSettings, TagSettings, WindowSettings

MODEL = ServedModel(name="m", labels=("a", "b"), window_s=10.24, hop_s=5.0)
DEFAULTS = TagSettings(windows=WindowSettings(length_s=10.24, hop_s=5.0), channel="left")


def settings(query: str) -> TagSettings:
    pairs = [(name, value) for name, _, value in (one.partition("=") for one in query.split("&"))]
    return parse_query(pairs, MODEL, DEFAULTS)[0]


def test_without_parameters_the_server_decides() -> None:
    assert parse_query([], MODEL, DEFAULTS) == (DEFAULTS, False)


def test_parameters_are_settings_of_tag() -> None:
    assert settings("top=3&threshold=0.25&window=2&hop=1.5&channel=right") == TagSettings(
        windows=WindowSettings(length_s=2.0, hop_s=1.5),
        keep=KeepSettings(top=3, threshold=0.25),
        channel="right",
    )


def test_another_window_has_a_hop_of_its_half() -> None:
    assert settings("window=2").windows == WindowSettings(length_s=2.0)
    assert settings("hop=2").windows == WindowSettings(length_s=10.24, hop_s=2.0)


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("1", True), ("false", False)])
def test_a_spectrogram_is_drawn_on_request(text: str, expected: bool) -> None:
    assert parse_query([("spectrogram", text)], MODEL, DEFAULTS) == (DEFAULTS, expected)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("top=0", ["top", "'0'"]),
        ("top=1e3", ["top", "'1e3'"]),
        ("top=²", ["top"]),
        ("top=" + "9" * 5000, ["top"]),
        ("threshold=1.1", ["threshold", "'1.1'"]),
        ("threshold=nan", ["threshold", "'nan'"]),
        ("window=inf", ["window", "'inf'"]),
        ("window=10.3", ["window", "10.24", "10.3"]),
        ("window=0.01", ["window", "0.05"]),
        ("hop=-1", ["hop", "-1"]),
        ("hop=0.04", ["hop", "0.05"]),
        ("channel=middle", ["channel", "mean", "'middle'"]),
        ("spectrogram=yes", ["spectrogram", "'yes'"]),
        ("spectrogram=", ["spectrogram"]),
        ("treshold=0.5", ["'treshold'", "threshold?"]),
        ("x=1", ["'x'", "threshold"]),
        ("top=1&top=2", ["top", "twice"]),
    ],
)
def test_a_wrong_parameter_is_named(query: str, words: list[str]) -> None:
    with pytest.raises(RefusedError) as refusal:
        settings(query)
    assert refusal.value.status == 400
    assert len(refusal.value.reason) < 200
    for word in words:
        assert word in refusal.value.reason
