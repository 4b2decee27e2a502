"""Weights from the hub, from files and from transformers' names; every way they can be wrong."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from trainer.checkpoints.state_files import (
    create_from_hub,
    encode_state,
    from_transformers_state,
    load_backbone,
    load_exactly,
    read_metadata,
    read_state,
)
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings

TINY = "deit_tiny_distilled_patch16_224"

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    """A whole state dict as timm and DeiT publish it: backbone and two image classifiers."""
    torch.manual_seed(7)
    return timm.create_model(TINY, pretrained=False).state_dict()


def same_backbone(backbone: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


# Files


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


def test_file_of_another_model(tmp_path: Path, published: State) -> None:
    wrong = {name: value for name, value in published.items() if name != "cls_token"}
    wrong["pos_embed"] = torch.zeros(1, 578, 192)
    wrong["extra.weight"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(wrong, path)
    settings = ModelSettings(backbone=TINY, weights_file=str(path), num_frames=64)
    with pytest.raises(UserError) as caught:
        build_model(settings, num_classes=2, num_mels=64)
    assert str(caught.value) == (
        f"{path}: the weights do not fit the model: missing: cls_token; "
        "unexpected: extra.weight; "
        "of another shape: pos_embed [1, 578, 192] instead of [1, 198, 192]"
    )


def test_long_lists_of_names_are_cut() -> None:
    with pytest.raises(UserError, match=r"missing: 0\.bias, 0\.weight, 1\.bias, .* and 2 more$"):
        load_exactly(nn.Sequential(*(nn.Linear(1, 1) for _ in range(3))), {}, source="x")


def test_nothing_is_loaded_in_part() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(UserError, match="missing: bias"):
        load_exactly(module, {"weight": torch.zeros(2, 2)}, source="x")
    assert torch.equal(module.weight, before)


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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, torch.nan]), "norm.bias: holds NaN or infinite numbers; take"),
        (torch.tensor([1.0, -torch.inf]), "norm.bias: holds NaN or infinite numbers; take"),
        (torch.tensor([1e300], dtype=torch.float64), "norm.bias: holds NaN or infinite"),
        (torch.tensor([1, 2], dtype=torch.int8), "norm.bias: must be of floats, got int8; save"),
    ],
)
def test_values_that_no_model_computes_with(published: State, value: Tensor, message: str) -> None:
    state = {**published, "norm.bias": value, "head.weight": torch.tensor([torch.nan])}
    with pytest.raises(UserError, match=rf"^file\.pth: {message}"):
        load_backbone(timm.create_model(TINY, num_classes=0), state, source="file.pth")


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


# The hub: timm's own download, against a server on this machine


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: the file's hash and commit in the header, then its bytes."""

    files: dict[str, bytes] = {}  # noqa: RUF012  (set for each server in a subclass)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(data or b"")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub with an empty cache; the test puts files, by path, into the dict it gives."""

    class HubOfOneTest(Hub):
        files: dict[str, bytes] = {}  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubOfOneTest)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    download = functools.partial(
        huggingface_hub.hf_hub_download, endpoint=endpoint, local_files_only=False
    )
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield HubOfOneTest.files
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_are_fetched_from_the_hub(hub: dict[str, bytes], published: State) -> None:
    hub[f"/timm/{TINY}.fb_in1k/resolve/main/model.safetensors"] = save(published)
    assert same_backbone(create_from_hub(TINY), published)
    settings = ModelSettings(backbone=TINY, num_frames=64)
    hub.clear()  # what follows comes from the cache
    model = build_model(settings, num_classes=2, num_mels=64)
    assert torch.equal(model.get_parameter("norm.bias"), published["norm.bias"])
    name = "blocks.3.mlp.fc1.weight"
    assert torch.equal(model.get_parameter(name), published[name])


def test_the_hub_does_not_have_them(hub: dict[str, bytes]) -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelSettings(backbone=TINY), num_classes=2, num_mels=64)
    message = str(caught.value)
    assert message.startswith(
        f"model.pretrained: could not fetch the weights timm/{TINY}.fb_in1k: "
    )
    assert "give model.weights_file a copy" in message
    assert "set model.pretrained=false" in message
    assert "\n" not in message


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"^model\.pretrained: could not fetch .* timm/{TINY}"):
        build_model(ModelSettings(backbone=TINY), num_classes=2, num_mels=64)


def test_a_backbone_without_published_weights() -> None:
    name = "vit_small_patch16_18x2_224"
    fetching = pytest.raises(UserError, match=rf"^model\.pretrained: could not fetch .* {name}: ")
    with torch.device("meta"), fetching:
        create_from_hub(name)


# Names of transformers (its models are compared in test_model.py)

PREFIX = "audio_spectrogram_transformer"


def projections(styles: list[str], value: float = 0.0) -> State:
    return {
        f"{PREFIX}.{name}.{leaf}": torch.full((2, 2) if leaf == "weight" else (2,), value + index)
        for index, name in enumerate(styles)
        for leaf in ("weight", "bias")
    }


ON_DISK = [f"encoder.layer.11.attention.attention.{name}" for name in ("value", "query", "key")]
IN_MEMORY = [f"layers.11.attention.{name}_proj" for name in "vqk"]


@pytest.mark.parametrize("styles", [ON_DISK, IN_MEMORY])
def test_query_key_and_value_become_one_in_this_order(styles: list[str]) -> None:
    given = projections(styles)
    names = json.dumps(list(given))
    ours = from_transformers_state(given)
    assert sorted(ours) == ["blocks.11.attn.qkv.bias", "blocks.11.attn.qkv.weight"]
    assert ours["blocks.11.attn.qkv.bias"].tolist() == [1, 1, 2, 2, 0, 0]
    assert ours["blocks.11.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 0, 0]
    assert json.dumps(list(given)) == names


def test_a_projection_is_missing() -> None:
    given = projections(ON_DISK)
    del given[f"{PREFIX}.encoder.layer.11.attention.attention.key.bias"]
    with pytest.raises(UserError, match=r"missing: blocks\.11\.attn\.k\.bias"):
        from_transformers_state(given)


def test_both_styles_at_once() -> None:
    with pytest.raises(UserError, match="the same weight is there twice"):
        from_transformers_state(projections(ON_DISK) | projections(IN_MEMORY))


@pytest.mark.parametrize(
    "name",
    [
        "wav2vec2.encoder.layers.0.attention.q_proj.weight",
        f"{PREFIX}.layers.0.attention.r_proj.weight",
        f"{PREFIX}.layers.0.attention.q_proj.scale",
        f"{PREFIX}.layers.x.attention.q_proj.weight",
        f"{PREFIX}.embeddings.mask_token",
    ],
)
def test_a_name_of_another_model(name: str) -> None:
    given = projections(IN_MEMORY) | {name: torch.zeros(1)}
    with pytest.raises(UserError, match=f"unexpected: {name}$"):
        from_transformers_state(given)
