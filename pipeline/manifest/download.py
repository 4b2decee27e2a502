"""Download of public data sets from their servers, in a layout that `ray_job.py manifest` reads.

In: a data set's name and a folder. Steps: fetch the archive beside the folder (into a `.part` file,
from which a restart resumes if the server still has the same file); check it; unpack it into a
hidden folder; rename that. Out: the folder, whole or not at all.
"""

import hashlib
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import requests

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.public_datasets import PublicDataset
from pipeline.terminal.progress import ProgressBar

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30
ATTEMPTS = 5
"""Tries of a transfer that breaks; each resumes where the last stopped."""


def download(dataset: PublicDataset, output: str, url: str | None = None) -> bool:
    """Fetch, check and unpack; returns False if the folder is already complete.

    Raises:
        UserError: the folder holds other files or is not local, the server refuses or breaks off,
            or the archive is not the expected one.
    """
    if storage.is_remote(output):
        raise UserError(output, "download to a local folder, then copy that to the bucket")
    folder = Path(output)
    if _num_clips(folder, dataset) >= dataset.num_clips:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(output, "holds other files", "name a new folder")
    source = url or dataset.url
    archive = folder.with_name(f"{folder.name}.archive")
    storage.make_folder(str(folder.parent))
    try:
        if not archive.exists():
            fetch_url(source, archive, dataset.approximate_bytes)
        try:
            _check_sha256(archive, dataset)
            _unpack(archive, folder, dataset)
        except UserError as error:
            archive.unlink()
            raise UserError(
                source,
                error.what,
                "the archive was deleted; try again, or give another --url",
            ) from error
        archive.unlink()
    except OSError as error:
        raise UserError(output, f"cannot be written ({error.strerror})") from error
    return True


def fetch_url(url: str, target: Path, approximate_bytes: int) -> None:
    """Fetch a file over HTTP, resuming from what an earlier call left in `target`.part.

    Raises:
        UserError: the server refuses, or the transfer breaks `ATTEMPTS` times.
    """
    for attempt in range(ATTEMPTS):
        try:
            _fetch_rest(url, target, approximate_bytes)
            return
        except requests.RequestException as error:
            if error.response is not None and error.response.status_code < 500:
                raise UserError(url, f"{error}", "give another address with --url") from error
            if attempt == ATTEMPTS - 1:
                raise UserError(
                    url, f"the transfer broke ({error})", "run the same command again to resume"
                ) from error
            time.sleep(2**attempt)


def _fetch_rest(url: str, target: Path, approximate_bytes: int) -> None:
    """One request: the rest of the file if it is unchanged on the server, else all of it."""
    part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.etag")
    received_bytes = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if received_bytes:
        headers |= {"Range": f"bytes={received_bytes}-", "If-Range": tag.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # Never for a changed file: the server then sends all of it.
            part.unlink()
            raise requests.ConnectionError("the partial download is longer than the file")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            received_bytes = 0
            part.unlink(missing_ok=True)
            _keep_validator(tag, response)
        rest = response.headers.get("Content-Length")
        total_bytes = received_bytes + int(rest) if rest else approximate_bytes
        with (
            part.open("ab") as file,
            ProgressBar(f"{target.name}, MB", total_bytes >> 20) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(file.tell() >> 20)
    part.rename(target)
    tag.unlink(missing_ok=True)


def _keep_validator(tag: Path, response: requests.Response) -> None:
    """Store the validator of this version of the file; without one the transfer cannot resume."""
    etag = response.headers.get("ETag", "W/")
    validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
    tag.unlink(missing_ok=True)
    if validator:
        tag.write_text(validator)


def _check_sha256(archive: Path, dataset: PublicDataset) -> None:
    if dataset.sha256 is None:
        return
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != dataset.sha256:
        raise UserError("", f"not the expected file (SHA-256 {digest}, expected {dataset.sha256})")


def _unpack(archive: Path, folder: Path, dataset: PublicDataset) -> None:
    """Unpack beside `folder`, check the result, and rename it to `folder`."""
    staging = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with ProgressBar(f"unpack {archive.name}, MB", archive.stat().st_size >> 20) as bar:
        for name, content, done_bytes in _members(archive):
            path = (staging / name).resolve()
            if not path.is_relative_to(staging.resolve()):
                raise UserError("", f"a member would be written outside the folder: {name!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            bar.update(done_bytes >> 20)
    # GitHub's archives have one folder at the top, named after the branch.
    root = max([staging, *staging.iterdir()], key=lambda path: _num_clips(path, dataset))
    num_clips = _num_clips(root, dataset)
    if num_clips < dataset.num_clips:
        raise UserError(
            "", f"it has {num_clips} clips ({dataset.clips}), expected {dataset.num_clips}"
        )
    root.rename(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, bytes, int]]:
    """Name and content of each file in a zip or tar, and how many bytes of the archive are read.

    Files only: a link could redirect later members anywhere. `tarfile`'s extraction with
    `filter="data"` accepts links, treats an absolute name as relative, and raises the same kind of
    error for a full disk and a broken archive.
    """
    try:
        with archive.open("rb") as raw:
            if zipfile.is_zipfile(raw):
                with zipfile.ZipFile(raw) as zipped:
                    for info in zipped.infolist():
                        if not info.is_dir():
                            yield info.filename, zipped.read(info), raw.tell()
                return
            raw.seek(0)
            with tarfile.open(fileobj=raw, mode="r:gz") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is not None:
                        yield member.name, content.read(), raw.tell()
                    elif not member.isdir():
                        raise UserError("", f"{member.name!r} is neither a file nor a folder")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError("", f"it is not an archive, or it is damaged ({error})") from error


def _num_clips(folder: Path, dataset: PublicDataset) -> int:
    return sum(1 for _ in folder.glob(dataset.clips))
