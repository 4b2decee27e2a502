"""Weights from the hub: timm's own download, against a server on this machine."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from tests.support.errors import refused
from tests.trainer.checkpoints.test_state_files import TINY, same_backbone
from trainer.checkpoints.state_files import State
from trainer.checkpoints.timm_hub import ambiguous_weights, create_from_hub
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings


class Hub(http.server.BaseHTTPRequestHandler):
    """Responds like the hub: the file's hash and commit in the header, then its bytes."""

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
    hub[f"/timm/{TINY}/resolve/main/model.safetensors"] = save(published)
    assert same_backbone(create_from_hub(TINY), published)
    settings = ModelSettings(backbone=TINY, num_frames=64)
    hub.clear()  # what follows comes from the cache
    model = build_model(settings, num_classes=2, num_mels=64)
    assert torch.equal(model.get_parameter("norm.bias"), published["norm.bias"])
    name = "blocks.3.mlp.fc1.weight"
    assert torch.equal(model.get_parameter(name), published[name])


def test_weights_missing_on_the_hub_are_explained(hub: dict[str, bytes]) -> None:
    settings = ("model.weights_file", "model.pretrained=false")
    with refused("model.pretrained", f"timm/{TINY}", *settings, remedy=True):
        build_model(ModelSettings(backbone=TINY), num_classes=2, num_mels=64)


def test_missing_network_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("model.pretrained", f"timm/{TINY}", remedy="model.weights_file"):
        build_model(ModelSettings(backbone=TINY), num_classes=2, num_mels=64)


def test_backbone_without_published_weights_is_explained() -> None:
    name = "vit_small_patch16_18x2_224"
    with torch.device("meta"), refused("model.pretrained", name, remedy="model.weights_file"):
        create_from_hub(name)


def test_names_without_tag_are_ambiguous_only_where_timm_has_several_weights() -> None:
    names = ambiguous_weights("vit_base_patch16_384")
    assert names[0] == "vit_base_patch16_384.augreg_in21k_ft_in1k"
    assert "vit_base_patch16_384.orig_in21k_ft_in1k" in names[1:]
    for name in ("vit_base_patch16_384.orig_in21k_ft_in1k", "deit_base_distilled_patch16_384"):
        assert ambiguous_weights(name) == []
