"""Faults, thousands of them: what a run does when disks, data, models, plugins, judges or people
let it down.

`python -m tests.faults` (or `make faults`) injects them and prints a table. A case is

- held: the run ended as it should, or refused with a message that says what to do;
- untidy: it refused, but with a traceback or an `unexpected` error;
- silent: it ended as if all were well, with another result;
- lost: what was done before the fault is gone, or the run cannot continue;
- hung: it did not end in time.

Nothing may be silent, lost or hung.
"""
