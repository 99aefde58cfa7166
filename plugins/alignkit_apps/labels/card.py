"""The data card of an export: a README.md with the header that the Hugging Face hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from alignkit.io.printable import printable
from alignkit_apps.labels.layouts import FILES
from alignkit_plugins.people.effective_labels import Labeled
from alignkit_plugins.people.merging import Content

_WHAT = {
    "items.jsonl": "what people were asked: prompt, responses, task, license",
    "events.jsonl": "everything that people did, as it happened, undone labels included",
    "guidelines.jsonl": "the guidelines, by the hash that every event names",
    "labels.jsonl": "items with the labels that count; alignkit's format `feedback`",
    "preference.jsonl": "pairs: prompt, chosen, rejected, margin, agreement, group_id; TRL's preference format",
    "ranked.jsonl": "rankings: prompt, completions, ranks (1 is best, equal ranks are ties)",
    "kto.jsonl": "single responses that are good or bad: prompt, completion, label; TRL's unpaired format",
    "sft.jsonl": "demonstrations: prompt, completion",
}
PRIVACY = (
    "## Privacy\n\n"
    "Everybody whose labels or prompts are in these files agreed to share them; `events.jsonl` has the consent. "
    "Names are replaced by pseudonyms. E-mail addresses, telephone numbers and keys were removed by simple rules, "
    "which do not find names or postal addresses. Read a sample before you publish."
)


def card(content: Content, entries: Sequence[Labeled], files: Mapping[str, int]) -> str:
    """The text of the card. files: their names, and how many rows each has."""
    parts = [_header(content, files), "# Human feedback", _what(content, entries), _files(files), _method(content)]
    licenses = _counted(Counter(stored.item.license for stored in content.items))
    parts += [f"## License\n\nEvery item names its license: {licenses}.", PRIVACY]
    return printable("\n\n".join(parts)) + "\n"


def _header(content: Content, files: Mapping[str, int]) -> str:
    licenses = sorted({stored.item.license for stored in content.items})
    languages = sorted({str(language) for stored in content.items if (language := stored.item.meta.get("language"))})
    names = ["labels", *FILES]
    # One kind of file: `datasets` reads all configurations of a folder with the same reader.
    suffix = ".parquet" if any(file.endswith(".parquet") for file in files) else ".jsonl"
    configs = [{"config_name": n, "data_files": f"{n}{suffix}"} for n in names if f"{n}{suffix}" in files]
    header: dict[str, Any] = {"license": licenses[0].lower() if len(licenses) == 1 else "other"}
    header |= {"language": languages} if languages else {}
    header |= {"tags": ["alignkit", "human-feedback", "preference"], "configs": configs}
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()}\n---"


def _what(content: Content, entries: Sequence[Labeled]) -> str:
    tasks = Counter(entry.stored.item.task for entry in entries)
    kinds = Counter(event.kind for event in content.events)
    votes = sum(len(entry.votes) for entry in entries)
    people = {vote.annotator for entry in entries for vote in entry.votes}
    days = sorted(event.created[:10] for event in content.events if event.kind != "consent")
    several = sum(len(entry.votes) > 1 for entry in entries)
    lines = [
        f"{_of(votes, 'label')} of {_of(len(entries), 'item')} by {_of(len(people), 'annotator')}, "
        f"from {days[0]} to {days[-1]} (UTC).",
        "",
        f"- Tasks: {_counted(tasks)}.",
        f"- Items with labels of several annotators: {several}.",
        f"- Events: {_counted(kinds)}.",
    ]
    return "\n".join(lines)


def _files(files: Mapping[str, int]) -> str:
    rows = [f"| `{name}` | {count} | {_what_is(name)} |" for name, count in files.items()]
    return "\n".join(["## Files", "", "| file | rows | content |", "|---|---:|---|", *rows])


def _what_is(name: str) -> str:
    folder, _, task = name.rpartition("/")
    if folder:
        return f"the task {task.removesuffix('.json')}, to be imported into Label Studio"
    return _WHAT[name.replace(".parquet", ".jsonl")]


def _method(content: Content) -> str:
    guidelines = {event.guidelines for event in content.events} - {""}
    return (
        "## How it was collected\n\n"
        "Each event records the order in which its responses were shown (`order`), and a label is in this order. Of "
        "several labels by one person, the latest counts. The final label of an item is the adjudicated one, else the "
        "gold one, else the majority's; items that someone flagged are left out "
        f"until they are adjudicated. Versions of the guidelines: {len(guidelines) or 'none recorded'}."
    )


def _of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
