"""What clients reach: paths, methods, the token, limits, and one line of JSON for every refusal.

In: HTTP requests. Steps: check host, token and query; read the body within limits; hand it to the
model; log a line. Out: answers. Bodies are read here and not by Ray Serve's proxy, which takes a
body of any size into memory before anything can refuse it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import last_line
from trainer.serving.body import Bodies
from trainer.serving.page import POLICY, PageFile, page_files
from trainer.serving.refusal import RefusedError
from trainer.serving.reply import Reply, error_json, to_json
from trainer.serving.request import TagRequest, parse_query
from trainer.serving.settings import ServedModel, ServeLimits
from trainer.serving.token import is_right
from trainer.tagging.settings import TagSettings

_logger = logging.getLogger(__name__)

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Model(Protocol):
    """What answers, wherever it runs."""

    async def tag(self, request: TagRequest) -> Reply:
        """The answer to a request."""
        ...

    async def is_ready(self) -> bool:
        """Whether it can answer now."""
        ...


class Door:
    """Handlers of the paths.

    Args:
        model: what answers.
        served: what is said of it.
        defaults: windows and channel where a request does not choose them.
        limits: on requests.
        token: which clients must show; None: all may ask.
    """

    def __init__(
        self,
        model: Model,
        served: ServedModel,
        defaults: TagSettings,
        limits: ServeLimits,
        token: str | None,
    ) -> None:
        self._model, self._served, self._defaults = model, served, defaults
        self._limits, self._token = limits, token
        self._bodies = Bodies(limits)

    async def tag(self, request: Request) -> Response:
        """`POST /tag`."""
        self._check_token(request)
        parameters = request.query_params.multi_items()
        settings, spectrogram = parse_query(parameters, self._served, self._defaults)
        async with self._bodies.read(request) as audio:
            asked = TagRequest(audio=audio, settings=settings, spectrogram=spectrogram)
            try:
                async with asyncio.timeout(self._limits.answer_timeout_s):
                    reply = await self._model.tag(asked)
            except TimeoutError:
                limit = f"{self._limits.answer_timeout_s:g} s"
                raise RefusedError(504, f"no answer within {limit}; try again") from None
        return _json(reply.body, reply.status)

    async def model(self, request: Request) -> Response:
        """`GET /model`: labels, windows and limits."""
        self._check_token(request)
        served, limits = self._served, self._limits
        return _json(
            to_json(
                {
                    "name": served.name,
                    "labels": served.labels,
                    "window_s": served.window_s,
                    "hop_s": served.hop_s,
                    "max_mb": limits.max_mb,
                    "max_duration_s": limits.max_duration_s,
                }
            )
        )

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        if await self._model.is_ready():
            return _json(to_json({"status": "ok"}))
        raise RefusedError(503, "no replica of the model is running")

    def _check_token(self, request: Request) -> None:
        shown = request.headers.get("authorization", "")
        if self._token is not None and not is_right(self._token, shown):
            what = "wrong token" if shown else "needs a token"
            raise RefusedError(
                401,
                f"{what}; send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )


def make_app(
    model: Model,
    served: ServedModel,
    *,
    defaults: TagSettings,
    limits: ServeLimits,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
) -> ASGIApp:
    """The door as an ASGI application; arguments as `Door`, and `hosts` as `_Outer`."""
    door = Door(model, served, defaults, limits, token)
    routes = [
        Route("/tag", door.tag, methods=["POST"]),
        Route("/model", door.model, methods=["GET"]),
        Route("/health", door.health, methods=["GET"]),
        *(Route(path, _send_file(file)) for path, file in page_files().items()),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Outer, hosts=hosts)],
        exception_handlers={
            RefusedError: _refuse,
            HTTPException: _refuse_path,
            ClientDisconnect: _note_disconnect,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Outer:
    """Around all paths: the name of the host, headers for browsers, faults of our own, the log.

    Args:
        hosts: names by which the server may be addressed; None: any. A page of another server whose
            name is made to point to this machine would otherwise read the answers.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            refusal = self._wrong_host(Request(scope))
            await (refusal or self._app)(scope, receive, send_on)
        except Exception as error:
            fault = f"{type(error).__name__}: {last_line(error)}"
            _logger.error("%s %s: %s", scope["method"], scope["path"], fault)
            _logger.debug("the fault in full", exc_info=error)
            if not status:
                reason = error_json("the server failed; its log says more")
                await _json(reason, 500)(scope, receive, send_on)
        client = scope["client"][0] if scope["client"] else "-"
        taken_ms = 1000 * (time.monotonic() - started_s)
        _logger.debug(
            "%s %s %s %d in %.0f ms",
            *(client, scope["method"], scope["path"], status, taken_ms),
        )

    def _wrong_host(self, request: Request) -> Response | None:
        name = request.headers.get("host", "")
        name = name if name.endswith("]") else name.rpartition(":")[0] or name
        if self._hosts is None or name.lower() in self._hosts:
            return None
        return _json(error_json("this server is not addressed by that name"), 421)


def _send_file(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        headers = {"Cache-Control": "no-cache"}
        return Response(file.content, media_type=file.media_type, headers=headers)

    return send


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(body + b"\n", status, headers, media_type="application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _json(error_json(error.reason), error.status, error.headers)


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path[:80]}: {error.detail.lower()}"
    return _json(error_json(reason), error.status_code, dict(error.headers or {}))


async def _note_disconnect(request: Request, error: Exception) -> Response:
    # Nobody reads it; the log does.
    return _json(error_json("the client left"), 499)
