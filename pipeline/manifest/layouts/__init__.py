"""Layouts of audio data sets, one module each: a folder or table in, a `Manifest` out.

To add a layout, write a module with `read(source, options) -> Manifest` and name it in `names.py`,
with the options it reads; if file names alone identify it, extend `detect` in `read.py`.
"""
