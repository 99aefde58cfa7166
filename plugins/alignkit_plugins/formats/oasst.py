"""OpenAssistant's conversation trees (Koepf et al. 2023, arXiv:2304.07327): every reply may have
several replies.

A row holds a tree, so that it becomes several groups: every prompt, with the conversation before it
and all its replies; those that people ranked form pairs (rank 0 is best). Deleted messages and
messages that failed the review are left out, with all that follows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.data.group import ranking_pairs
from alignkit.formats import columns_of

ROLES = {"prompter": "user", "assistant": "assistant"}
Node = Mapping[str, Any]


class Oasst(Format):
    """Trees {message_tree_id, prompt: {text, role, replies: [{text, role, rank, replies}]}}."""

    example = (
        '{"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello!", '
        '"role": "assistant", "rank": 0}, {"text": "What?", "role": "assistant", "rank": 1}]}}'
    )
    wants = "prompt as a tree {text, role, replies}, as in OpenAssistant's *.trees.jsonl"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return (
            cls.has(row, "prompt")
            and isinstance(row["prompt"], Mapping)
            and "replies" in row["prompt"]
        )

    def read(self, row: Any) -> Group:
        """The first group of a tree."""
        return self.groups(row)[0]

    def groups(self, row: Any) -> list[Group]:
        root = columns_of(row).get("prompt")
        if not isinstance(root, Mapping):
            raise BadRow("column 'prompt' must be a message with replies")
        if not _is_kept(root):
            raise BadRow("the tree's first message was deleted, or failed the review")
        try:
            groups = list(_rankings(root, (), self.rest(row, "prompt")))
        except RecursionError as error:
            raise BadRow("the tree is nested too deeply") from error
        if not groups:
            raise BadRow("no prompt of the tree has a reply")
        return groups


def _is_kept(node: Node) -> bool:
    return not node.get("deleted") and node.get("review_result") is not False


def _turn(node: Node) -> Message:
    role = ROLES.get(str(node.get("role")))
    if role is None:
        raise BadRow(f"unknown role {node.get('role')!r}; expected one of {', '.join(ROLES)}")
    return Message(role=role, content=Format.text(node, "text"))


def _rankings(node: Node, before: Sequence[Message], meta: dict[str, Any]) -> Iterator[Group]:
    """Every prompt of a tree that has replies, with all of them."""
    path, replies = (*before, _turn(node)), node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise BadRow("the replies of a message must be a list of messages")
    replies = [reply for reply in replies if _is_kept(reply)]
    if path[-1]["role"] == "user" and replies:
        responses = []
        for reply in replies:
            text, rank = _turn(reply)["content"], Format.number(reply, "rank")
            responses.append(Response(text=text, rank=rank, source=reply.get("model_name") or None))
        order = ranking_pairs([response.rank for response in responses])
        pairs = tuple(Pair(better, worse) for better, worse in order)
        yield Group(path, tuple(responses), pairs, meta=meta)
    for reply in replies:
        yield from _rankings(reply, path, meta)
