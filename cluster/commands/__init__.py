"""The steps for jobs of a cluster, one per file; and the options of a Ray session.

In: options. Out: results printed. Heavy libraries are loaded when a step runs.
"""
