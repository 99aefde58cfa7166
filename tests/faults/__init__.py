"""Faults, thousands of them: what a command does when disks, data, models, servers or people let it
down.

It ends as it should, or refuses in words that say what to do, and soon. Nothing is silently wrong,
and what was done before the fault is not lost.
"""
