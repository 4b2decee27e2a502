"""The steps that work on jobs of a cluster, one a file; and the options of a Ray session.

In: options. Out: results printed. Heavy libraries are loaded when a step runs.
"""
