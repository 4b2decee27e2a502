"""Schema of a listing of audio: one row per file, or per clip in a container file.

`location.list_audio` lists any location, `parquet_files` and `tar_files` list containers.
"""

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError

AUDIO_SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"}
    | {".au", ".caf", ".w64", ".sph", ".wv", ".amr", ".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp"}
    | {".webm", ".weba", ".mkv", ".mka", ".wma"}
)
"""Suffixes of audio files; `audio_files.AudioFiles` judges others by content."""
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
CONTAINER_SUFFIXES = (".parquet", ".tar", *HDF5_SUFFIXES)
"""Suffixes of files that may hold many clips."""

LISTING_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # relative path; in a container the key
        pa.field("uri", pa.string(), nullable=False),  # the file, or the container
        pa.field("file_size_bytes", pa.int64()),  # of the audio; null: unknown
        pa.field("offset_bytes", pa.int64()),  # the location in a container, as in the manifest
        pa.field("size_bytes", pa.int64()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int32()),
        pa.field("labels", pa.list_(pa.string())),  # null: not given there
        pa.field("split", pa.string()),
    ]
)


def no_files_error(location: str) -> UserError:
    """The error for a location that lists no file."""
    if storage.exists(location):
        return UserError(
            location,
            "a file in no known layout",
            "name the folder that holds it, or a table (.csv, .tsv) or container (.parquet, .tar)",
        )
    return UserError(location, "no such file or folder, or nothing in it but hidden files")
