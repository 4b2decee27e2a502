"""What changes the weights.

In: logits and targets. Out: losses, an optimiser, its learning rate.
"""
