"""Whether an answer has the form that is asked for: tags such as <think>, or JSON of a schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

import alignkit
from alignkit import Field, RunFailed
from alignkit.data.files import parse
from alignkit.errors import BadRow
from alignkit_plugins.extras import check_extra
from alignkit_plugins.rewards.text import OfAnswers
from alignkit_plugins.text.spoken import TAGS, answer_in

_BLOCK = re.compile(
    r"^[ \t]*(```|~~~)(?:json\w*)?[ \t]*\n?(.*?)\1[ \t]*$",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


class Form(OfAnswers):
    """1 if everything that is asked for holds, else 0."""

    class Options(alignkit.Options):
        tags: list[Annotated[str, Field(pattern=r"^[\w-]+$")]] = Field(
            [],
            (
                "tags that make up the answer, such as [think, answer]: each once, in this "
                "order, not empty, with nothing around them; `json_schema` is then about the "
                "last tag's content; without a tag for thoughts, those around the answer do not "
                "count"
            ),
        )
        json_schema: dict[str, Any] | None = Field(
            None,
            (
                "JSON schema that the answer must fulfill, bare or in its only block of code; {} "
                "for any JSON (others need jsonschema-rs)"
            ),
        )

        @field_validator("tags")
        @classmethod
        def _different(cls, tags: list[str]) -> list[str]:
            if len(set(tags)) < len(tags):
                raise ValueError("names a tag twice")
            return tags

        def check_values(self) -> None:
            if not self.tags and self.json_schema is None:
                raise ValueError("set tags or json_schema")

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            return ("jsonschema-rs",) if self.json_schema else ()

    options: Options
    thoughts = True

    def check(self, folder: Path) -> None:
        if self.options.json_schema:
            check_extra("reward 'format'", "json", "jsonschema_rs")
            _validator(self.options.json_schema)

    def grade(self, answer: str, known: None) -> float:
        options = self.options
        if not set(TAGS) & set(options.tags):
            answer = answer_in(answer)
        content = content_of_last(answer, options.tags) if options.tags else answer
        if content is None:
            return 0.0
        return float(options.json_schema is None or is_json(content, options.json_schema))


def content_of_last(answer: str, tags: Sequence[str]) -> str | None:
    """The content of the last tag, None if the answer does not consist of these tags."""
    rest, content = answer.strip(), ""
    for tag in tags:
        content, end, rest = rest.partition(f"</{tag}>")
        if not end or not content.startswith(f"<{tag}>"):
            return None
        content = content.removeprefix(f"<{tag}>")
        inside = [other for other in tags if f"<{other}>" in content or f"</{other}>" in content]
        if inside or not content.strip():
            return None
        rest = rest.lstrip()
    return None if rest else content


def is_json(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text, or the only block of code in it, is JSON that fulfills a schema."""
    blocks = _BLOCK.findall(text)
    only = blocks[0][1] if len(blocks) == 1 else text
    try:
        value = parse(only.lstrip("\ufeff"))  # a byte order mark
        return not schema or bool(_validator(schema).is_valid(value))
    except (BadRow, ValueError):  # half a character (a surrogate) for a pattern
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
        problem = f"is no JSON schema: {error.message}"
        if isinstance(error.kind, ValidationErrorKind.Referencing):
            problem = f"refers to what is not part of it, write it into $defs: {error.message}"
        raise RunFailed(f"reward 'format': json_schema {problem}") from None
