"""The door with a model in this process, without Ray."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trainer.serving.answer import Answers, Scores
from trainer.serving.decoders import Decoders
from trainer.serving.door import LOCAL_HOSTS, Model, make_app
from trainer.serving.reply import Reply
from trainer.serving.request import TagRequest
from trainer.serving.server import address_of, open_port, serving
from trainer.serving.settings import ServedModel, ServeLimits
from trainer.tagging.job import window_plan
from trainer.tagging.model import Tagger
from trainer.tagging.settings import TagSettings
from trainer.tagging.windows import Samples


class LocalModel:
    """A tagger that scores windows one by one."""

    def __init__(self, tagger: Tagger, limits: ServeLimits) -> None:
        self.decoders = Decoders(
            sample_rate_hz=tagger.fbank.sample_rate_hz, max_duration_s=limits.max_duration_s
        )
        self.is_up = True
        self._tagger = tagger
        self._answers = Answers(
            tagger, self.decoders, self._score, max_windows=limits.max_windows, in_turn=4
        )

    async def tag(self, request: TagRequest) -> Reply:
        return await self._answers.answer(request)

    async def is_ready(self) -> bool:
        return self.is_up

    async def _score(self, window: Samples) -> Scores:
        outputs = await asyncio.to_thread(self._tagger.score, [window])
        scores: Scores = outputs.scores[0]
        return scores


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def error(self) -> str:
        """The line of a refusal, which is all that it says."""
        assert self.headers["content-type"] == "application/json"
        assert self.document.keys() == {"error"}
        line: str = self.document["error"]
        assert len(line.splitlines()) == 1
        return line


def send(
    address: str,
    path: str = "tag",
    body: Any = None,
    *,
    method: str = "POST",
    **headers: str,
) -> Answer:
    """Send a request; underscores in the names of headers stand for hyphens."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=300)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{path}", body, named)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=fields, body=response.read())
    finally:
        connection.close()


@contextmanager
def local_server(
    tagger: Tagger,
    *,
    limits: ServeLimits = ServeLimits(),  # noqa: B008  (frozen)
    token: str | None = None,
    model: Model | None = None,
) -> Iterator[str]:
    """Serve a tagger, or another model in its place; yields the address."""
    defaults = TagSettings()
    plan, rate_hz = window_plan(tagger, defaults), tagger.fbank.sample_rate_hz
    served = ServedModel(
        name="small",
        labels=tuple(tagger.labels),
        window_s=plan.length / rate_hz,
        hop_s=plan.hop / rate_hz,
    )
    opened = open_port("127.0.0.1", 0)
    own = LocalModel(tagger, limits)
    app = make_app(
        model or own,
        served,
        defaults=defaults,
        limits=limits,
        token=token,
        hosts=None if token else LOCAL_HOSTS,
    )
    try:
        with serving(app, opened):
            yield address_of(opened)
    finally:
        own.decoders.close()
