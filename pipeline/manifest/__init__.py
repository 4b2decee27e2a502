"""The list of a data set's clips.

In: a data set in one of many layouts. Out: a manifest in Parquet, one row per clip.
"""
