"""alignkit compared with other libraries, alternately on one machine: `python -m benchmarks --help`."""
