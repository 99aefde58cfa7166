"""alignkit's own groups, one JSON object a line: what stages write, with everything that is known of a response."""

from __future__ import annotations

from typing import Any

from alignkit import Format, Group, hookimpl
from alignkit.data.group import group_from_json


class Groups(Format):
    """Groups as alignkit writes them, rollouts among them: a policy may say anything, so words are not checked."""

    summary = "alignkit's own groups, as stages write them"
    wants = "a line written by alignkit (it has the key 'alignkit')"
    needs_prompt = False

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "alignkit")

    def read(self, row: Any) -> Group:
        return group_from_json(row)

    def check(self, group: Group) -> None:
        """Whatever was sampled is kept, an empty or repeated response too."""


@hookimpl
def register_formats(register: Any) -> None:
    register("groups", Groups, summary=Groups.summary)
