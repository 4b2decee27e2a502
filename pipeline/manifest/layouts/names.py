"""The layouts by their names on the command line."""

LAYOUTS = {
    "esc50": "esc50",
    "speech-commands": "speech_commands",
    "audioset": "audioset",
    "ast-json": "ast_json",
    "csv": "csv_table",
    "parquet": "parquet_files",
    "webdataset": "tar_files",
    "hdf5": "hdf5_files",
    "folder": "folder",
}
"""The module of each layout in this folder, loaded when used."""

READ_BY = {
    "segments": ("--segments", ("audioset", "ast-json")),
    "class_labels": ("--class-labels", ("audioset", "ast-json", "parquet", "webdataset", "hdf5")),
    "cut": ("--cut", ("audioset",)),
    "columns": ("--column", ("csv", "parquet", "webdataset", "hdf5")),
    "separator": ("--separator", ("csv",)),
}
"""Options that only some layouts read: their flag, and those layouts."""
