"""The steps of the command line on Ray: a session in this process, or jobs on a cluster."""
