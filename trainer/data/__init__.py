"""From a prepared data set to an augmented batch on the device.

In: a data set, a seed, a position in the epoch. Out: batches, augmented.
"""
