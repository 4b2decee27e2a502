"""Settings of an export."""

from dataclasses import dataclass
from typing import Literal

ExportFormat = Literal["transformers", "onnx"]

UNKNOWN_LICENCE = "unknown"
"""The Hugging Face hub's name for a licence that is not stated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxSettings:
    """What a model in ONNX contains."""

    with_fbank: bool = False
    """Whether its input is a waveform, and the fbank part of it."""
    int8: bool = False
    """Whether to write a quantised copy, too."""
