"""Which clips there are.

In: a data set in one of many layouts. Out: a manifest, one clip a row, in Parquet.
"""
