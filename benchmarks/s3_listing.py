"""A local S3 server that only lists: millions of keys, a thousand per page.

In: a Parquet file with a column of keys. Out: `AWS_*` variables that point to the server, which
runs in a separate process. Every object has one byte, and none can be read.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pyarrow.parquet as pq

_ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;0&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@contextmanager
def serve_listing(path: str) -> Iterator[None]:
    """Serve the column `key` of a Parquet file as the keys of every bucket."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_run, args=(path, theirs), daemon=True)
    server.start()
    try:
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield
    finally:
        server.terminate()
        server.join()


def _run(path: str, port: Connection) -> None:
    keys = sorted(pq.read_table(path)["key"].to_pylist())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = {
                name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()
            }
            if "list-type" not in query:
                self._answer(404, "<Error><Code>NoSuchKey</Code></Error>")
                return
            start = int(query.get("continuation-token", "0"))
            end = start + int(query.get("max-keys", "1000"))
            entries = "".join(_ENTRY.format(escape(key)) for key in keys[start:end])
            more = end < len(keys)
            token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
            self._answer(
                200,
                "<ListBucketResult><Name>any</Name><Prefix></Prefix>"
                f"<KeyCount>{min(end, len(keys)) - start}</KeyCount><MaxKeys>1000</MaxKeys>"
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}"
                "</ListBucketResult>",
            )

        def do_HEAD(self) -> None:
            self._answer(404, "")

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()
