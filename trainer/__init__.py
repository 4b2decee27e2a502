"""Shards to models: sampling, augmentation, the AST, training, metrics, ensembles, reports."""
