"""Models of a test, whose methods are given the role first, as `context.models`."""

from __future__ import annotations

from functools import partial
from typing import Any


class OneRole:
    """What a fake says for one role."""

    def __init__(self, fake: Any, role: str):
        self._fake, self._role = fake, role

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._fake, name), self._role)


class ByRole:
    """Policies by role, of a fake such as `sample(role, prompts, seed=0)`."""

    def __init__(self, **methods: Any):
        self.__dict__.update(methods)

    def __getitem__(self, role: str) -> Any:
        return OneRole(self, role)
