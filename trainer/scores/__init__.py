"""How good a model's outputs are.

In: scores and targets. Out: AP, AUC, d-prime; predictions as Parquet.
"""
