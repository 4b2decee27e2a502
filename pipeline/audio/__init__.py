"""Bytes of an audio file to a waveform; knows nothing of manifests and labels.

In: the bytes of a file and a stretch of it. Out: mono samples at the wanted rate, or the reason why
the file cannot be used.
"""
