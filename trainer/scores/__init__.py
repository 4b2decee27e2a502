"""Metrics of a model's scores, and the files that hold them.

In: scores and targets. Out: AP, AUC, d-prime; predictions as Parquet.
"""
