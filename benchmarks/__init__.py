"""alignkit compared with other libraries, alternately on one machine: `python -m benchmarks
--help`.
"""

import os

os.environ.setdefault("ALIGNKIT_REUSE", "0")  # what is measured must run
