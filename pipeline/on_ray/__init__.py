"""Work on Ray: tasks, the nodes they need, and the files that the nodes share.

In: functions and items, or what a run needs of its nodes. Out: results; nodes that are there. The
only folder of `pipeline` that imports Ray; `trainer.on_ray` builds on it.
"""
