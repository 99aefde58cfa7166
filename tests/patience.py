"""How long a test waits for another process before it gives up, and how soon servers are asked
again.
"""

import contextlib
import os
from collections.abc import Iterator
from unittest import mock

PATIENCE = float(
    os.environ.get("ALIGNKIT_TEST_PATIENCE", "900")
)  # seconds; no test measures time by it


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Servers that fail are soon asked again."""
    with mock.patch("openai._base_client.INITIAL_RETRY_DELAY", 0.01):
        yield
