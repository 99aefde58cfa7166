"""Plugins that break one rule, and what the kits say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from alignkit.testing import ConformanceError


def broken(base: type, **methods: Any) -> Any:
    """A plugin with these methods and attributes instead of those of a good one."""
    return type("Broken", (base,), methods)


def reported(check: Callable[..., None], cls: Any, message: str, *words: Any, **more: Any) -> None:
    """A kit's report names the class in each line. words, more: what the kit is called with."""
    with pytest.raises(ConformanceError, match=message) as caught:
        check(cls, *words, **more)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{cls.__name__}: ") for line in lines)
