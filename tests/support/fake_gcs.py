"""A small Google Cloud Storage in memory: what obstore asks of its XML interface."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_TIME = "2026-01-01T00:00:00.000Z"
_HTTP_TIME = "Thu, 01 Jan 2026 00:00:00 GMT"


class FakeGcs(ThreadingHTTPServer):
    """Holds the objects of some buckets."""

    daemon_threads = True

    def __init__(self, buckets: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.buckets = buckets
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = Lock()


@contextmanager
def fake_gcs(*buckets: str) -> Iterator[FakeGcs]:
    """A server in threads of this process."""
    with FakeGcs(set(buckets)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeGcs

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        name = unquote(url.path.lstrip("/"))
        bucket, _, key = name.partition("/")
        with self.server.lock:
            if bucket not in self.server.buckets:
                self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key:
                self._send(200, self._listing(bucket, query))
            elif "uploads" in query or "uploadId" in query:
                self._upload(name, query, sent)
            elif self.command == "PUT":
                self.server.objects[name] = sent
                self._send(200, b"", {"ETag": _etag(sent)})
            elif name not in self.server.objects:
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del self.server.objects[name]
                self._send(204, b"")
            else:
                self._content(self.server.objects[name])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _listing(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix = f"{bucket}/{query.get('prefix', '')}"
        names = sorted(name for name in self.server.objects if name.startswith(prefix))
        after = query.get("continuation-token") or query.get("start-after") or ""
        keys = [key for name in names if (key := name.partition("/")[2]) > after]
        page, more = keys[:1000], len(keys) > 1000
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_TIME}</LastModified>"
            f"<Size>{len(self.server.objects[f'{bucket}/{key}'])}</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
        return f"<ListBucketResult>{text}</ListBucketResult>".encode()

    def _upload(self, name: str, query: dict[str, str], sent: bytes) -> None:
        if "uploads" in query:
            self.server.uploads[name] = {}
            result = (
                f"<Bucket>b</Bucket><Key>{escape(name)}</Key><UploadId>{escape(name)}</UploadId>"
            )
            root = "InitiateMultipartUploadResult"
            self._send(200, f"<{root}>{result}</{root}>".encode())
        elif name not in self.server.uploads:
            self._send(404, b"<Error><Code>NoSuchUpload</Code></Error>")
        elif self.command == "DELETE":
            del self.server.uploads[name]
            self._send(204, b"")
        elif self.command == "PUT":
            self.server.uploads[name][int(query["partNumber"])] = sent
            self._send(200, b"", {"ETag": _etag(sent)})
        else:
            parts = self.server.uploads.pop(name)
            self.server.objects[name] = b"".join(parts[number] for number in sorted(parts))
            root = "CompleteMultipartUploadResult"
            self._send(200, f"<{root}><ETag>x</ETag></{root}>".encode())

    def _content(self, content: bytes) -> None:
        headers = {"ETag": _etag(content), "Last-Modified": _HTTP_TIME}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        if int(first) >= len(content):
            self._send(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        part = content[int(first) : int(last) + 1]
        end = int(first) + len(part) - 1
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        self._send(206, part, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
