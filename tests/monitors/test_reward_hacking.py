"""The monitor of every stage, by its observations."""

from __future__ import annotations

from alignkit.plugins import plugins
from alignkit.testing import check_monitor


def test_it_conforms() -> None:
    check_monitor(plugins().registry.get("monitor", "reward_hacking").implementation)
