"""The layouts by their names on the command line."""

LAYOUTS = {
    "esc50": "esc50",
    "speech-commands": "speech_commands",
    "audioset": "audioset",
    "ast-json": "ast_json",
    "csv": "csv_table",
    "parquet": "parquet_files",
    "webdataset": "tar_files",
    "folder": "folder",
}
"""The module of each in this folder, which is loaded when it is used."""

READ_BY = {
    "segments": ("--segments", ("audioset", "ast-json")),
    "class_labels": ("--class-labels", ("audioset", "ast-json", "parquet", "webdataset")),
    "cut": ("--cut", ("audioset",)),
    "columns": ("--column", ("csv", "parquet", "webdataset")),
    "separator": ("--separator", ("csv",)),
}
"""Options that not all layouts read: what the user calls them, and the layouts that do."""
