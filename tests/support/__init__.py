"""What several tests need.

Small data sets, servers, faults and processes, made in code.
"""
