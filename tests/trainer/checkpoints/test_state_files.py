"""Weights from files; every way they can be wrong."""

from pathlib import Path
from typing import Any, Never

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from trainer.checkpoints.fit import load_backbone
from trainer.checkpoints.state_files import State, encode_state, read_metadata, read_state
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings

TINY = "deit_tiny_distilled_patch16_224"


def same_backbone(backbone: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt", "deit"])
def test_file_round_trip(tmp_path: Path, published: State, kind: str) -> None:
    path = tmp_path / f"weights.{'pth' if kind == 'deit' else kind}"
    if kind == "safetensors":
        save_file(published, path)
    else:
        torch.save({"model": published} if kind == "deit" else published, path)
    backbone = timm.create_model(TINY, num_classes=0)
    assert not same_backbone(backbone, published)
    load_backbone(backbone, read_state(str(path)), source=str(path))
    assert same_backbone(backbone, published)


def test_build_model_reads_the_file_and_not_the_hub(
    tmp_path: Path, published: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*args: Any, **kwargs: Any) -> Never:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_hub)
    save_file(published, tmp_path / "weights.safetensors")
    path = str(tmp_path / "weights.safetensors")
    settings = ModelSettings(backbone=TINY, weights_file=path, num_frames=64)
    model = build_model(settings, num_classes=2, num_mels=64)
    assert torch.equal(model.cls_token, published["cls_token"])
    assert torch.equal(model.get_parameter("norm.bias"), published["norm.bias"])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.pt: no such file"):
        read_state(str(tmp_path / "nothing.pt"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match=r"folder\.pt: Is a directory"):
        read_state(str(tmp_path / "folder.pt"))


def test_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.npz: a file of weights ends in \.safetensors"):
        read_state(str(tmp_path / "weights.npz"))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("num_bytes", [0, 5, 3000])
def test_damaged_file(tmp_path: Path, published: State, suffix: str, num_bytes: int) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(published, path) if suffix == "safetensors" else torch.save(published, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(
        UserError, match=f"weights.{suffix}: not a readable file of tensors"
    ) as info:
        read_state(str(path))
    assert "\n" not in str(info.value)


class Unsafe:
    """What a pickle may hold and a file of weights may not."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1), "optimizer": Unsafe()}, path)
    with pytest.raises(UserError, match=r"weights\.pt: not a readable file of tensors"):
        read_state(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": torch.zeros(1), "args": Unsafe()}, "it holds a pickled "),
        (nn.Linear(1, 1), "it holds a pickled torch.nn.modules.linear.Linear, and no code of a"),
        (b"<html>404</html>", "damaged, or not saved by torch.save"),
        (b"not found", "damaged, or not saved by torch.save"),
    ],
)
def test_what_is_unreadable_is_told_in_our_words(
    tmp_path: Path, content: object, reason: str
) -> None:
    """Those of torch advise to run the code in the file, and colour it for a terminal."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError) as caught:
        read_state(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable file of tensors ({reason}")
    assert "torch.save(model.state_dict(), PATH)" in message
    assert "weights_only" not in message
    assert message.isprintable()


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "model.", "net."])
def test_what_a_state_dict_is_wrapped_in(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = {f"{prefix}a.weight": torch.ones(1), f"{prefix}b.weight": torch.zeros(1)}
    torch.save({"epoch": 3, wrapper: state}, tmp_path / "weights.ckpt.pt")
    found = read_state(str(tmp_path / "weights.ckpt.pt"))
    assert {name: value.item() for name, value in found.items()} == {"a.weight": 1, "b.weight": 0}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    state = {
        "float": torch.tensor(2.0),
        "half": torch.tensor([[1.0, 3.0]]).bfloat16(),
        "empty": torch.zeros(0, 2),
        "whole": torch.arange(3),
    }
    path = tmp_path / "weights.safetensors"
    data = encode_state(state, {"key": "value"})
    path.write_bytes(data)
    assert all(torch.equal(value, state[name]) for name, value in read_state(str(path)).items())
    assert read_metadata(str(path))["key"] == "value"
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(
            UserError, match=r"weights\.safetensors: damaged .* restore it from a copy"
        ):
            read_state(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.zeros(1), "weight": torch.zeros(1)}, "not names: 1$"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "not tensors: epoch"),
        ({"model": {"epoch": 3}}, "not tensors: epoch"),
        ([torch.zeros(1)], "found list"),
        ({}, "expected a state dict"),
    ],
)
def test_a_file_that_is_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        read_state(str(tmp_path / "weights.pt"))
