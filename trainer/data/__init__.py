"""Everything between a prepared data set and a batch on the device.

In: a data set, a seed, a position in the epoch. Out: batches, augmented.
"""
