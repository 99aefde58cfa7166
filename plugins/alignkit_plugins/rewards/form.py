"""Whether an answer has the form that is asked for: tags such as <think>, JSON of a schema, or
parts of Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

import alignkit
from alignkit import Field, Group, Reward, RunFailed
from alignkit.errors import check_extra
from alignkit_plugins.formats.spoken import TAGS, answer_in
from alignkit_plugins.rewards.answers import scored

TOKENS = {
    "heading": "heading_open",
    "bullets": "bullet_list_open",
    "numbers": "ordered_list_open",
    "table": "table_open",
    "bold": "strong_open",
}

_BLOCK = re.compile(
    r"^[ \t]*(```|~~~)(?:json\w*)?[ \t]*\n?(.*?)\1[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


class Form(Reward):
    """1 if everything that is asked for holds, else 0."""

    class Options(alignkit.Options):
        tags: list[str] = Field(
            [],
            description=(
                "tags that make up the answer, such as [think, answer]: each once, in this "
                "order, not empty, with nothing around them; `json_schema` and `markdown` are "
                "then about the last tag's content; without a tag for thoughts, those before the "
                "answer do not count"
            ),
        )
        json_schema: dict[str, Any] | None = Field(
            None,
            description=(
                "JSON schema that the answer must fulfill, bare or in its only block of code; {} "
                "for any JSON (others need jsonschema-rs)"
            ),
        )
        markdown: list[Literal["heading", "bullets", "numbers", "table", "bold", "code"]] = Field(
            [],
            description="what the answer must contain as Markdown; a block of code must be closed",
        )

        @field_validator("tags")
        @classmethod
        def _names(cls, tags: list[str]) -> list[str]:
            if any(not tag or not tag.replace("_", "").replace("-", "").isalnum() for tag in tags):
                raise ValueError("are names of letters, digits, - and _, without < and >")
            if len(set(tags)) < len(tags):
                raise ValueError("names a tag twice")
            return tags

        @model_validator(mode="after")
        def _something(self) -> Form.Options:
            if not self.tags and self.json_schema is None and not self.markdown:
                raise ValueError("set tags, json_schema or markdown")
            return self

        @property
        def packages(self) -> tuple[str, ...]:
            """The packages whose versions decide the scores."""
            json = ("jsonschema-rs",) if self.json_schema else ()
            return (*json, "markdown-it-py") if self.markdown else json

    options: Options

    def check(self, folder: Path) -> None:
        if self.options.json_schema:
            check_extra("reward 'format'", "json", "jsonschema_rs")
            _validator(self.options.json_schema)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return scored(groups, lambda group, answer: float(self._holds(answer)), thoughts=True)

    def _holds(self, answer: str) -> bool:
        options = self.options
        if not set(TAGS) & set(options.tags):
            answer = answer_in(answer)
        content: str | None = content_of_last(answer, options.tags) if options.tags else answer
        if content is None or (
            options.json_schema is not None and not is_json(content, options.json_schema)
        ):
            return False
        return not options.markdown or set(options.markdown) <= markdown_parts(content)


def content_of_last(answer: str, tags: Sequence[str]) -> str | None:
    """The content of the last tag, None if the answer does not consist of these tags."""
    rest, content = answer.strip(), ""
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    for start, end in zip(marks[::2], marks[1::2], strict=True):
        before, found, rest = rest.partition(end)
        content = before.removeprefix(start)
        if (
            not found
            or content == before
            or not content.strip()
            or any(mark in content for mark in marks)
        ):
            return None
        rest = rest.lstrip()
    return None if rest else content


def is_json(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text, or the only block of code in it, is JSON that fulfills a schema."""
    blocks = [content for _, content in _BLOCK.findall(text)]
    try:
        only = blocks[0] if len(blocks) == 1 else text
        value = json.loads(only.lstrip("\ufeff"), parse_constant=_no_json)  # a byte order mark
        return not schema or bool(_validator(schema).is_valid(value))
    except (
        ValueError,
        RecursionError,
    ):  # of reading, or half a character (a surrogate) for a pattern
        return False


def _validator(schema: Mapping[str, Any]) -> Any:
    """What says whether a value fulfills a schema: in bounded time, and without asking the
    network.
    """
    from jsonschema_rs import FancyRegexOptions, ValidationError, ValidationErrorKind, validator_for

    limit = FancyRegexOptions(backtrack_limit=1_000_000)
    try:
        return validator_for(
            dict(schema), offline=True, validate_formats=False, pattern_options=limit
        )
    except ValidationError as error:
        if isinstance(error.kind, ValidationErrorKind.Referencing):
            problem = f"refers to what is not part of it, write it into $defs: {error.message}"
        else:
            problem = f"is no JSON schema: {error.message}"
        raise RunFailed(f"reward 'format': json_schema {problem}") from None


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def markdown_parts(text: str) -> set[str]:
    """The parts that occur in a Markdown text."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    types = {token.type for token in tokens} | {
        child.type for token in tokens for child in token.children or ()
    }
    found = {name for name, type in TOKENS.items() if type in types}
    lines = re.split("\r\n?|\n", text)  # as Markdown does
    closed = (
        token.map
        and lines[token.map[1] - 1].strip().startswith(token.markup)
        and token.map[1] - token.map[0] > 1
        for token in tokens
        if token.type == "fence"
    )
    return {*found, "code"} if any(closed) else found
