"""What numbers say of policies and judges: intervals, rankings, agreement, judges compared with people.

A library: nothing that a run computes depends on it.
"""
