"""The suite on a GPU: `make test-gpu`, or `ALIGNKIT_TEST_DEVICE=cuda` with any selection of tests.

Every model is loaded onto the device, whatever its test asks for, and tensors that test code makes
are moved there; alignkit's own code places its tensors itself. Tests of what only a CPU does are
marked `cpu_only` with the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "ALIGNKIT_TEST_DEVICE"
TESTS = Path(__file__).parent
MADE = "arange empty eye from_numpy full linspace ones rand randint randn randperm tensor zeros"


def wanted() -> str | None:
    """The device that the variable names. Ends the test run if it is unknown or missing."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    import torch

    if name != "cuda" or not torch.cuda.is_available():
        pytest.exit(f"{VARIABLE}={name}: it must be cuda, on a machine with a GPU", returncode=2)
    return name


@contextmanager
def everything_on_it() -> Iterator[None]:
    """Load models onto the GPU, and move what test code makes."""
    import torch
    from torch.overrides import TorchFunctionMode

    from alignkit.models import loading, shared_model

    made = {getattr(torch, name) for name in MADE.split()}
    cuda = torch.device("cuda", 0)

    class Moved(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func not in made or "device" in kwargs or not _called_by_a_test():
                return func(*args, **kwargs)
            learns = kwargs.pop("requires_grad", False)
            return func(*args, **kwargs).to(cuda).requires_grad_(learns)

    compare = torch.testing.assert_close

    def assert_close(actual: Any, expected: Any, **options: Any) -> None:
        compare(actual, expected, **{"check_device": False, **options})

    with pytest.MonkeyPatch.context() as patch, Moved():
        for module in (loading, shared_model):
            patch.setattr(module, "device_of", lambda name: cuda)
        patch.setattr(torch.testing, "assert_close", assert_close)
        yield


def _called_by_a_test() -> bool:
    """Whether the call comes from a file of tests, and not from alignkit or a library."""
    frame = sys._getframe(2)
    return frame.f_code.co_filename.startswith(str(TESTS))
