"""A complete data set: prepared, opened, checked.

In: a manifest, or a prepared data set. Out: index, ledger and card beside the tars; faults.
"""
