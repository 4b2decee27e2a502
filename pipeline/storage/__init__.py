"""Files by path, local or in a bucket; all stored data is read and written here.

In: paths and contents. Out: contents and listings; a file is written whole or not at all.
"""

from pipeline.storage.abandoned import UNFINISHED
from pipeline.storage.documents import (
    DocumentError,
    conform,
    encode_table,
    parse_document,
    parse_json,
    parse_table,
    read_document,
    read_json,
    read_table,
    write_json,
    write_table,
)
from pipeline.storage.faults import (
    NoFileError,
    NoRegularFileError,
    ObjectStoreError,
    TooLargeError,
    explain,
    explained,
    one_file_fault,
    with_retries,
)
from pipeline.storage.files import (
    NewFile,
    check_bucket,
    check_readable,
    exists,
    make_folder,
    new_file,
    object_version,
    open_binary,
    read_bytes,
    read_file,
    read_range,
    regular_size,
    remove,
    write_bytes,
)
from pipeline.storage.folder_kinds import held_kind
from pipeline.storage.listing import (
    file_sizes,
    holds_files,
    iter_files,
    list_files,
)
from pipeline.storage.paths import (
    absolute,
    is_remote,
    join,
)
from pipeline.storage.ranges import Amount, Count, Number, Ordinal, Share

__all__ = [
    "UNFINISHED",
    "Amount",
    "Count",
    "DocumentError",
    "NewFile",
    "NoFileError",
    "NoRegularFileError",
    "Number",
    "ObjectStoreError",
    "Ordinal",
    "Share",
    "TooLargeError",
    "absolute",
    "check_bucket",
    "check_readable",
    "conform",
    "encode_table",
    "exists",
    "explain",
    "explained",
    "file_sizes",
    "held_kind",
    "holds_files",
    "is_remote",
    "iter_files",
    "join",
    "list_files",
    "make_folder",
    "new_file",
    "object_version",
    "one_file_fault",
    "open_binary",
    "parse_document",
    "parse_json",
    "parse_table",
    "read_bytes",
    "read_document",
    "read_file",
    "read_json",
    "read_range",
    "read_table",
    "regular_size",
    "remove",
    "with_retries",
    "write_bytes",
    "write_json",
    "write_table",
]
