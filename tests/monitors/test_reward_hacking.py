"""Our monitors by the rules of their kind."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.plugins import plugins
from alignkit.testing import check_monitor


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reward_hacking", {}),
        ("gold", {"reward": "length", "prompts": "prompts.jsonl", "stop": True}),
        ("kl_budget", {"max": 0.6}),
    ],
)
def test_it_conforms(name: str, options: dict[str, Any]) -> None:
    check_monitor(plugins().get("monitor", name).implementation, options)
