"""alignkit's own groups, one JSON object per line, as stages write them."""

from __future__ import annotations

from typing import Any

from alignkit import Format, Group
from alignkit.data.group import group_from_json


class Groups(Format):
    """Groups as alignkit writes them, with all fields of each response."""

    example = (
        '{"alignkit": 1, "prompt": [{"role": "user", "content": "Hi"}], "responses": [{"text": '
        '"Hello!"}]}'
    )
    wants = "alignkit, prompt and responses, as alignkit writes them"
    needs_prompt = False

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "alignkit")

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        """Accept every group: a policy may sample empty or repeated responses."""
