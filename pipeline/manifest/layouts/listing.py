"""What a listing of a location's audio is: a file, or a clip in a container file, a row.

`location.list_audio` makes one of any location, `parquet_files` and `tar_files` of containers.
"""

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}
    | {".m4a", ".aac", ".mp4", ".webm", ".wma"}
)

LISTING_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # relative path; in a container the key
        pa.field("uri", pa.string(), nullable=False),  # the file, or the container
        pa.field("file_size_bytes", pa.int64()),  # of the audio; null: unknown
        pa.field("offset_bytes", pa.int64()),  # the place in a container, as in the manifest
        pa.field("size_bytes", pa.int64()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("labels", pa.list_(pa.string())),  # null: the location does not tell
        pa.field("split", pa.string()),
    ]
)


def nothing_there(location: str) -> UserError:
    """The error for a location that lists no file."""
    if storage.exists(location):
        return UserError(
            location,
            "a file of no known layout",
            "name the folder that holds it, or a table (.csv, .tsv) or container (.parquet, .tar)",
        )
    return UserError(location, "no such folder, or nothing in it")
