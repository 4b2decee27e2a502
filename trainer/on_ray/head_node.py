"""The head node of a cluster as a resource that a task can ask for.

Ray 2.60 has no public name for it; its documentation uses this one.
"""

HEAD_NODE = "node:__internal_head__"
"""A resource of 1.0 that only the head node has."""
