"""Bytes of an audio file to a waveform, without any notion of clips.

In: the bytes of a file. Out: 16 kHz mono samples, or the reason why the file cannot be used.
"""
