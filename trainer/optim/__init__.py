"""Loss, optimiser and learning rate.

In: logits and targets. Out: losses, an optimiser, its learning rate.
"""
