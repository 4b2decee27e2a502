"""How steps are called, and where Ray runs: a session of this process, or jobs of a cluster."""
