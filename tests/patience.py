"""How long a test waits for another process before it gives up. It ends hangs; no test metrics time
by it.
"""

import os

PATIENCE = float(os.environ.get("ALIGNKIT_TEST_PATIENCE", "900"))  # seconds
