"""The Audio Spectrogram Transformer.

In: normalised log-mel spectrograms. Out: logits.
"""
