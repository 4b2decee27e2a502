"""Bytes of an audio file to a waveform; knows nothing of clips.

In: the bytes of a file. Out: 16 kHz mono samples, or the reason why there are none.
"""
