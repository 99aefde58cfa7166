"""Python imports this before anything else wherever PYTHONPATH names this folder, and so in every
process that a test starts: torch, once it is imported, rounds as another processor would.
"""

import importlib.util
import sys
from typing import Any


class AfterTorch:
    """Finds torch as others do, and lets `perturbed` change it when it is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec: Any = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            import perturbed

            perturbed.install()

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, AfterTorch())  # type: ignore[arg-type]
