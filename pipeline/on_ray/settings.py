"""How long a step waits for the nodes of a cluster."""

WAIT_FOR_NODES_S = 1200.0
"""Default of `--wait-for-nodes`: clouds take minutes to start a node, and longer where GPUs are
scarce."""
