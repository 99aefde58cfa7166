"""What a run understood of its data, in a few lines per source: the format, the counts, and one row
as read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignkit.data.group import Group
from alignkit.data.sources import Loaded, SourceFacts
from alignkit_plugins.formats.columns import LABEL_COLUMNS
from alignkit_plugins.formats.shown import shortened, shown

SHOWN = 3  # turns of a prompt, and after it


def describe(loaded: Loaded) -> list[str]:
    """At most 8 lines for each source that is not another stage's data, and its notes; one line for
    those.
    """
    return [line for source in loaded.sources for line in source_lines(source)]


def source_lines(source: SourceFacts) -> list[str]:
    """The source's name, format and counts; then its sample row."""
    lines = [
        (
            f"read {source.name}: {source.format}{' (recognized)' if source.recognized else ''}, "
            f"{_counts(source)}"
        )
    ]
    lines += [f"read {source.name}: {note}" for note in source.notes]
    if source.sample is None or source.name.startswith("stage "):
        return lines
    shown = list(_sample(source.sample))
    width = max((len(who) for who, _ in shown), default=0)
    lines += [f"  {who:<{width}}  {text}".rstrip() for who, text in shown]
    unused = ", ".join(_unused(source.sample))
    return (
        [*lines, f"read {source.name}: not in the conversation, kept for rewards: {unused}"]
        if unused
        else lines
    )


def _unused(group: Group) -> list[str]:
    """The columns that the format has only kept, for rewards, without those of single words."""
    used = {"weight", *LABEL_COLUMNS} if group.responses else set[str]()
    return [name for name, value in group.meta.items() if name not in used and _is_meant(value)]


def _is_meant(value: Any) -> bool:
    """Whether a column seems to be there for a reader: all but single words, such as names and
    digests.
    """
    if isinstance(value, str):
        return len(value.split()) > 1 or value.replace(".", "").isdecimal()
    return value not in (None, [], {})


def _counts(source: SourceFacts) -> str:
    held_out = "held-out " if source.part == "validation" else ""
    facts = [f"{source.rows} {held_out}row{'s' * (source.rows != 1)}"]
    if source.held_out:
        others = f"{source.held_out} other{'s' * (source.held_out != 1)} for training"
        facts.append(others if held_out else f"{source.held_out} held out")
    if source.skipped:
        facts.append(f"{source.skipped} bad row{'s' * (source.skipped != 1)} skipped")
    return ", ".join(facts)


def _sample(group: Group) -> Iterator[tuple[str, str]]:
    """Who says what in a group, in at most 8 lines."""
    if group.tools:
        names = [str(tool.get("function", tool).get("name", "?")) for tool in group.tools]
        yield "tools", shortened(", ".join(names))
    every = shown(group)
    prompt, responses = every[: len(group.prompt)], every[len(group.prompt) :]
    if len(prompt) > SHOWN:
        yield "", f"... {len(prompt) - SHOWN + 1} more turns"
        prompt = prompt[1 - SHOWN :]
    responses.sort(key=lambda one: one.who == "worse")
    for one in prompt:
        yield one.who, shortened(one.text)
    first = responses if len(responses) <= SHOWN else responses[: SHOWN - 1]
    for one in first:
        yield one.who, shortened(one.text) + (f"  ({', '.join(one.facts)})" if one.facts else "")
    if len(responses) > SHOWN:
        yield "", f"... {len(responses) - len(first)} more"
    elif not responses:
        yield "", "a prompt without a response"
