"""More time for Ray on a machine whose cores are busy."""

PATIENCE = {"RAY_raylet_start_wait_time_s": "120"}
"""Variables for nodes and what starts them: Ray gives a node 30 s, and a start takes a minute and
more where the cores are busy."""
