"""The public names of alignkit: the pages in `docs/plugins/api` list them by kind, and nothing else
is promised.

A page has `<!-- generated: api NAMES -->`; each name becomes a line with the first sentence of its
docstring, and those of WITH_FIELDS have a line for each field, too. On the site, `make_site.py` puts
the whole docstring there, which mkdocstrings reads.
Nothing of alignkit is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import griffe

from benchmarks.markdown import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "plugins" / "api"
PART = re.compile(r"^<!-- generated: api (?!index)(.+?) -->$", re.MULTILINE)
WITH_FIELDS = {
    *("Batch", "Group", "Loss", "Needs", "Outputs", "Pair", "Pairs", "Response", "StageDefaults")
}
HOOKS = ("contract.hookspecs", "contract.commands")


@cache
def package() -> griffe.Object:
    return griffe.load("alignkit", search_paths=[ROOT], docstring_parser="google")


def path_of(name: str) -> str:
    """`alignkit.Group`, `alignkit.functional.logprobs_k1`, `alignkit.contract.hookspecs.register`.
    Raises ValueError if unknown.
    """
    for path in (name, *(f"{module}.{name}" for module in HOOKS)):
        with suppress(KeyError):
            return f"alignkit.{path}" if package()[path] else ""
    raise ValueError(f"alignkit has no {name}")


def found(name: str) -> griffe.Object:
    """What a public name is."""
    thing = package()[path_of(name).removeprefix("alignkit.")]
    return thing.final_target if isinstance(thing, griffe.Alias) else thing


def by_page() -> Iterator[tuple[Path, str, list[str]]]:
    """The pages in their order, with their titles and names."""
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if names := " ".join(PART.findall(text)).split():
            yield page, text.partition("\n")[0].removeprefix("# "), names


def part(what: str) -> str:
    """The lines of these names; or of `index`: a table of all pages."""
    if what == "index":
        rows = [
            (f"[{title}]({page.name})", ", ".join(f"`{n}`" for n in names))
            for page, title, names in by_page()
        ]
        return markdown_table(("page", "names"), rows) + "\n"
    lines = []
    for name in what.split():
        lines.append(f"- `{path_of(name)}`: {summary(name)}\n")
        lines += fields(name) if name in WITH_FIELDS else ()
    return "".join(lines)


def summary(name: str) -> str:
    """The first sentence of a docstring."""
    try:
        docstring = found(name).docstring
    except griffe.AliasResolutionError as error:
        return f"The same as `{error.alias.target_path}`."
    return first_sentence(docstring.value.split("\n\n")[0]) if docstring else ""


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.]) (?=[A-Z`:])", " ".join(text.split()))[0]


def fields(name: str) -> Iterator[str]:
    """A line for each field: its type, unless it is a tensor, whose shape the docstring has."""
    docstring = found(name).docstring
    assert docstring is not None
    for section in docstring.parsed:
        if section.kind.value in ("attributes", "parameters"):
            for each in section.value:
                kind = str(each.annotation).replace("_Number", "float").removesuffix(" | None")
                shown = "" if kind == "Tensor" else f" ({kind})"
                yield f"  - `{each.name}`{shown}: {first_sentence(each.description)}\n"
