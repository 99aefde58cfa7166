"""Conversations: OpenAI's `messages` and ShareGPT's `conversations`, as demonstrations, labeled
answers or prompts; instructions with the columns of Alpaca, Dolly or Self-Instruct; and alignkit's
own groups.

The turns before the first answer to the user are the prompt. A single answer becomes the response's
text. Several turns stay messages and keep their `train` flags, for the algorithm to decide which of
them to learn. With a label, the response is the last answer, and all earlier turns are the prompt.
A conversation that ends with the user is a prompt without a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from alignkit import BadRow, Format, Group, Message
from alignkit.contract.formats import columns_of
from alignkit.data.group import assistant_turn, group_from_json, user_turn
from alignkit_plugins.formats.columns import LABEL_COLUMNS, ColumnFormat, check_one
from alignkit_plugins.formats.turns import first_of, only_of

NAMES = ("messages", "conversations")
# With the answers of comparisons, which `preference` reads.
COMPARED = (
    *("chosen", "rejected", "chosen_response", "rejected_response"),
    *("chosen_messages", "rejected_messages"),
)
QUESTION = ("instruction", "input", "context")
# Alpaca's generator wrote these
NO_INPUT = ("<noinput>", "<no input>", "noinput", "no input", "n/a")
_AS_TEMPLATE = r"{{ instruction }}\n\n{{ input | default('', true) }}"
_HISTORY = TypeAdapter(list[tuple[str, str]] | None)


class Messages(ColumnFormat):
    """One conversation per row; `label` says whether its last answer is good."""

    example = (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}]}'
    )
    wants = (
        "messages [{role, content}] or conversations [{from, value}]; optional label (true or "
        "false), system, tools"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.lacks(row, "completion", *COMPARED) and first_of(row, NAMES) != ""

    def read(self, row: Any) -> Group:
        name = only_of(row, NAMES)
        if not name:
            raise BadRow("column 'messages' or 'conversations' is missing")
        if isinstance(row[name], str) and not row[name].lstrip().startswith("["):
            raise BadRow(f"column '{name}' must be a list of messages, not text")
        return self.learned(row, self.conversation(row[name], name), name)

    def learned(self, row: Mapping[str, Any], turns: Sequence[Message], *used: str) -> Group:
        """The group of a conversation: a demonstration, or a prompt if it ends with the user.

        Args:
            row: With the label of its last answer, if it has one.
            turns: The conversation's.
            used: The columns that these are from.
        """
        turns, label = self.opened(turns, row), self.label(row)
        used = (*used, *LABEL_COLUMNS)
        if label is None and turns and turns[-1]["role"] == "user":
            return self.group(row, used, turns)
        prompt, response = self.demonstration(turns, label=label)
        return self.group(row, used, prompt, [response])


class Alpaca(Messages):
    """An instruction, what it is about (`input` or `context`), and the answer.

    `system` is an optional system message. `history` holds earlier turns as pairs [instruction,
    answer]. `label` or `kto_tag` says whether the answer is good.
    """

    wants = "instruction and output; optional input or context, system, history, label"
    example = '{"instruction": "Translate", "input": "Hallo", "output": "Hello"}'
    answer_column = "output"

    @classmethod
    def matches(cls, row: Any) -> bool:
        is_answered = cls.has(row, "instruction", cls.answer_column)
        return is_answered and cls.lacks(row, "chosen", "rejected", "messages")

    def read(self, row: Any) -> Group:
        self.text(row, "instruction")  # raises if there is none
        names = []
        for name in QUESTION:
            part = self.text(row, name, "").strip()
            if name == "instruction" or (part and part.lower().rstrip(".") not in NO_INPUT):
                names.append(name)
        if len(names) > 2:
            raise BadRow(
                "columns 'input' and 'context' both hold text; rename one: `columns: "
                "{other_context: context}`"
            )
        try:
            pairs = _HISTORY.validate_python(row.get("history")) or []
        except ValidationError:
            raise BadRow("column 'history' must be a list of pairs [instruction, answer]") from None
        turns: list[Message] = []
        for question, answer in pairs:
            turns += [user_turn(question), assistant_turn(answer)]
        check_one(row, self.answer_column, _AS_TEMPLATE)
        turns += self.joined(row, names)
        turns.append(assistant_turn(self.text(row, self.answer_column)))
        return self.learned(row, turns, *QUESTION, self.answer_column, "history")


class Dolly(Alpaca):
    """The same with Databricks' column names."""

    wants = "instruction and response; optional context or input, system, label"
    example = '{"instruction": "Translate", "context": "Hallo", "response": "Hello"}'
    answer_column = "response"


class SelfInstruct(ColumnFormat):
    """An instruction with instances (Wang et al. 2023, arXiv:2212.10560): every instance is a
    demonstration.
    """

    wants = "instruction and instances [{input, output}]"
    example = '{"instruction": "Translate", "instances": [{"input": "Hallo", "output": "Hello"}]}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "instruction", "instances") and isinstance(row["instances"], list)

    def read(self, row: Any) -> Group:
        """The first instance of a row."""
        return self.groups(row)[0]

    def groups(self, row: Any) -> list[Group]:
        """The group of each instance."""
        instances = columns_of(row).get("instances")
        if not isinstance(instances, list) or not instances:
            raise BadRow("column 'instances' must be a list of {input, output} that is not empty")
        shared = self.rest(row, "instances")
        return [Alpaca().read({**shared, **columns_of(instance)}) for instance in instances]


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
