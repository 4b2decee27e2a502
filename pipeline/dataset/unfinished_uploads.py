"""Parts of uploads that killed processes left in a data set's bucket: report or remove them.

No listing of objects shows them, but they are paid for. Local files have a like remainder, which
the next step that writes into their folder removes.
"""

import logging

from pipeline import storage
from pipeline.errors import UserError
from pipeline.terminal.units import counted

_logger = logging.getLogger(__name__)
_NOT_S3 = "has no unfinished uploads that --clean can list; it works for s3:// alone"
_ELSEWHERE = {
    "gs": "set the bucket's lifecycle rule AbortIncompleteMultipartUpload",
    "az": "Azure removes the parts after a week",
}


def check_is_cleanable(path: str) -> None:
    """Refuse to clean where uploads cannot be listed.

    Raises:
        UserError: the data set is not in S3; says what removes its remainders instead.
    """
    scheme = path.partition("://")[0] if storage.is_remote(path) else ""
    if scheme != "s3":
        local = "the next step that writes there removes what killed processes left"
        raise UserError(path, _NOT_S3, _ELSEWHERE.get(scheme, local))


def report(path: str) -> None:
    """Log how many uploads into a data set are unfinished, if there are any."""
    if not path.startswith("s3://"):
        return
    from pipeline.storage.uploads import unfinished_uploads

    try:
        num_uploads = len(unfinished_uploads(path))
    except UserError as error:
        _logger.warning("unfinished uploads were not looked for: %s", error)
        return
    if num_uploads:
        uploads = counted(num_uploads, "unfinished upload")
        _logger.warning("%s: the parts of %s take space; --clean removes them", path, uploads)


def remove_all(path: str) -> int:
    """Remove all unfinished uploads into a data set, and log it; returns how many.

    A step that writes there meanwhile repeats an upload that it lost.

    Raises:
        UserError: the storage refuses to list or remove them, or does not answer.
    """
    from pipeline.storage.uploads import remove_upload, unfinished_uploads

    uploads = unfinished_uploads(path)
    for upload in uploads:
        remove_upload(upload)
    _logger.info("%s: removed %s", path, counted(len(uploads), "unfinished upload"))
    return len(uploads)
