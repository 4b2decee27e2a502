"""The head node of a cluster as a resource that a task can ask for.

Ray 2.60 has the name in a private module only (`ray._common.constants`).
"""

HEAD_NODE = "node:__internal_head__"
"""A resource of 1.0 that only the head node has."""
