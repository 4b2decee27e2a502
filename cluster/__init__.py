"""Where Ray runs: a session of this process, or jobs on a cluster's job server."""
