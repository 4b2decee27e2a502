"""Weights from files, and errors for every fault."""

from pathlib import Path
from typing import Any, Never

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import storage
from tests.support.errors import refused
from trainer.checkpoints.fit import load_backbone
from trainer.checkpoints.state_files import State, encode_state, read_metadata, read_state
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings

TINY = "deit_tiny_distilled_patch16_224.fb_in1k"


def same_backbone(backbone: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt", "deit"])
def test_state_file_round_trips(tmp_path: Path, published: State, kind: str) -> None:
    path = tmp_path / f"weights.{'pth' if kind == 'deit' else kind}"
    if kind == "safetensors":
        save_file(published, path)
    else:
        torch.save({"model": published} if kind == "deit" else published, path)
    backbone = timm.create_model(TINY, num_classes=0)
    assert not same_backbone(backbone, published)
    load_backbone(backbone, read_state(str(path)), source=str(path))
    assert same_backbone(backbone, published)


def test_build_model_reads_the_weights_file_instead_of_the_hub(
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


@pytest.mark.parametrize("name", ["nothing.pt", "nothing", "nothing/best"])
def test_missing_file_or_folder_is_refused(tmp_path: Path, name: str) -> None:
    with refused(name, "no such file"):
        read_state(str(tmp_path / name))


def test_folder_as_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with refused("folder.pt", "a folder", type=storage.NoFileError, remedy=True):
        read_state(str(tmp_path / "folder.pt"))


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "weights.npz"):
        with refused(path, ".safetensors", ".pth", ".pt", ".bin"):
            read_state(str(path))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("num_bytes", [0, 5, 3000])
def test_damaged_file_is_refused(
    tmp_path: Path, published: State, suffix: str, num_bytes: int
) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(published, path) if suffix == "safetensors" else torch.save(published, path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with refused(path, "not a readable", remedy="torch.save"):
        read_state(str(path))


class Unsafe:
    """An object that a pickle may hold but a file of weights may not."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1), "optimizer": Unsafe()}, path)
    with refused(path, "not a readable", f"{__name__}.Unsafe", remedy="torch.save"):
        read_state(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": torch.zeros(1), "args": Unsafe()}, f"pickled {__name__}.Unsafe"),
        (nn.Linear(1, 1), "pickled torch.nn.modules.linear.Linear"),
        (b"<html>404</html>", "damaged"),
        (b"not found", "damaged"),
    ],
)
def test_unreadable_files_are_explained_without_torchs_advice(
    tmp_path: Path, content: object, reason: str
) -> None:
    """Torch's own messages advise to run the code in the file, and colour the terminal."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with refused(path, reason, remedy="torch.save(model.state_dict(), PATH)") as caught:
        read_state(str(path))
    message = str(caught.value)
    assert "weights_only" not in message
    assert message.isprintable()


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "model.", "net."])
def test_wrapped_state_dict_is_unwrapped(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = {f"{prefix}a.weight": torch.ones(1), f"{prefix}b.weight": torch.zeros(1)}
    torch.save({"epoch": 3, wrapper: state}, tmp_path / "weights.ckpt.pt")
    state = read_state(str(tmp_path / "weights.ckpt.pt"))
    assert {name: value.item() for name, value in state.items()} == {"a.weight": 1, "b.weight": 0}


def test_flipped_bit_is_noticed(tmp_path: Path) -> None:
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
    for position in range(start, len(data), 5):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        with refused(path, "damaged", "checksum", remedy="restore"):
            read_state(str(path))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ({1: torch.zeros(1), "weight": torch.zeros(1)}, "names: 1"),
        ({"epoch": 3, "weight": torch.zeros(1)}, "tensors: epoch"),
        ({"model": {"epoch": 3}}, "tensors: epoch"),
        ([torch.zeros(1)], "list"),
        ({}, "dict"),
    ],
)
def test_files_without_a_state_dict_are_refused(
    tmp_path: Path, content: object, value: str
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with refused("weights.pt", "state dict", value):
        read_state(str(tmp_path / "weights.pt"))
