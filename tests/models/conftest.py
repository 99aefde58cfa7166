"""Models of several architectures, on one thread."""

import pytest
from policies import as_on_a_gpu, llama, policy, way

__all__ = ["as_on_a_gpu", "llama", "policy", "way"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """All models here are small."""
