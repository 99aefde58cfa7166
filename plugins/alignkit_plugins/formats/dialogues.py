"""Conversations from raw text: every dialogue of a .txt file, or the one dialogue of a row {text: ...}.

`alignkit.dialogues` defines a dialogue. The first speaker becomes the user and the second the assistant, whose turns
are learned. A last turn without an answer is left out. `meta["speakers"]` holds the speakers' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignkit import BadRow, Format, Group, Message
from alignkit.dialogues import Dialogue, find_dialogues


class Dialogues(Format):
    """Dialogues in raw text. The recipe must name this format, because a row of text is raw text by default."""

    example = r'{"text": "Q. Hi\n\nA. Hello!\n\nQ. Who are you?\n\nA. A model.\n\nQ. Bye\n\nA. Bye!"}'
    wants = "text with one dialogue, or a .txt file with any number; never detected, so name the format"

    def read(self, row: Any) -> Group:
        if isinstance(row, Dialogue):
            return self._group(row, {})
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, Mapping):
            raise BadRow("column 'text' is missing")
        matches = find_dialogues(self.text(row, "text"))
        if len(matches) != 1:
            raise BadRow(
                f"the text holds {len(matches)} dialogues, but a row must hold one (a .txt file may hold many)"
            )
        return self._group(matches[0], self.rest(row, "text"))

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        numbered = list(lines)
        for dialogue in find_dialogues("\n".join(line for _, line in numbered)):
            yield numbered[dialogue.line - 1][0], dialogue

    def _group(self, dialogue: Dialogue, meta: dict[str, Any]) -> Group:
        answered = dialogue.turns[: len(dialogue.turns) // 2 * 2]
        roles = ("user", "assistant")
        turns = [Message(role=roles[number % 2], content=words) for number, words in enumerate(answered)]
        prompt, response = self.demonstration(turns)
        return Group(prompt, (response,), meta={**meta, "speakers": list(dialogue.prefixes)})
