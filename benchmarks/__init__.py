"""Ours against the peers' own code, round by round on one machine: `python -m benchmarks --help`."""
