"""The trainer's steps on the command line, one file each.

In: options. Out: printed results. Heavy libraries are loaded when a step runs.
"""
