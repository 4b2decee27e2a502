"""Trained models tag audio: recordings of any length in, scores of each window out.

`settings` -> `model` (what scores) and `windows` (what is scored) -> `segments`, `score` and `job`
-> `assemble` (Parquet) -> `formats` (other files) and `tags_page`.
"""
