"""Models of several architectures, which are compared with plain transformers and peft."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from policies import as_on_a_gpu, llama, policy, way

__all__ = ["as_on_a_gpu", "llama", "policy", "way"]
