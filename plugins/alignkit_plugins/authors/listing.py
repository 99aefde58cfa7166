"""What `alignkit plugins` prints: the names of all plugins, those of a kind, or the options of
one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alignkit.commands import refuse
from alignkit.errors import did_you_mean
from alignkit.io.text import printable
from alignkit.recipe.references import options_of
from alignkit.recipe.rules import required_keys
from alignkit.registry import KINDS, Registration, Registry
from alignkit_plugins.printing import console, print_lines, print_table
from alignkit_plugins.recipes.options import OptionRow, option_rows, stage_defaults

if TYPE_CHECKING:
    from rich.console import Console


def rows_of(registry: Registry) -> list[dict[str, str]]:
    """All plugins: kind, name, summary, and the package that each is from."""
    return [_row(kind, one) for kind in KINDS for one in registry.registrations(kind)]


def _row(kind: str, one: Registration) -> dict[str, str]:
    return {"kind": kind, "name": one.name, "summary": one.summary, "from": one.origin}


def show_names(rows: Sequence[dict[str, str]], broken: Sequence[str]) -> None:
    """Print a paragraph for each kind: how many plugins there are, and their names; others' with
    their package.
    """
    out = console()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        names = []
        for row in rows:
            if row["kind"] == kind:
                ours = row["from"].startswith("alignkit ")
                names.append(row["name"] if ours else f"{row['name']} ({row['from']})")
        text = printable(f"{f'{kind} ({len(names)})':18}{', '.join(names)}")
        print(textwrap.fill(text, out.width, subsequent_indent=" " * 18, break_on_hyphens=False))
    for text in broken:
        print(printable(f"broken: {text}"))
    print("`alignkit plugins NAME` shows the options of a plugin, or the plugins of a kind.")


def described(name: str, registry: Registry) -> list[dict[str, Any]]:
    """The plugins with a name, and those of a kind with it, as plain data. Raises RecipeError if
    there is none.
    """
    found = [(name, one) for one in registry.registrations(name)] if name in KINDS else []
    found += [(kind, registry.get(kind, name)) for kind in KINDS if registry.has(kind, name)]
    if not found:
        _refuse(name, registry)
    return [
        {
            **_row(kind, one),
            "options": [asdict(row) for row in option_rows(options_of(one))],
            "facts": list(_facts(kind, one)),
        }
        for kind, one in found
    ]


def _refuse(name: str, registry: Registry) -> None:
    for one in registry.broken:
        if name in (one.plugin, one.distribution):
            refuse(f"'{name}' cannot be used: {one}", "`alignkit plugins` lists all that is broken")
    known = ["new", "check", *KINDS]
    for kind in KINDS:
        known += registry.names(kind)
    help = did_you_mean(name, known) or "`alignkit plugins` lists what is installed"
    refuse(f"no plugin provides '{name}'", help)


def show_options(name: str, found: Sequence[dict[str, Any]], out: Console) -> None:
    """Print the options of plugins with a name, and the names and summaries of a kind's."""
    if of_kind := [one for one in found if one["kind"] == name]:
        print_table(
            ("name", "summary", "from"),
            [[one["name"], one["summary"], one["from"]] for one in of_kind],
        )
    for one in found:
        if one["name"] != name.rpartition(":")[2]:
            continue
        out.print(f"[bold]{one['kind']} {one['name']}[/bold] ({one['from']})")
        if one["summary"]:
            print_lines(f"  {one['summary']}")
        rows = [OptionRow(**row) for row in one["options"]]
        if rows:
            cells = [(row.name, row.type_and_range, row.default, row.description) for row in rows]
            print_table(("option", "type", "default", "meaning"), cells)
        else:
            out.print("  no options")
        for line in one["facts"]:
            print_lines(f"  {line}")
        out.print()


def _facts(kind: str, one: Registration) -> Iterator[str]:
    """Lines about an algorithm or a format."""
    if kind == "format" and one.implementation.wants:
        yield f"columns: {one.implementation.wants}"
    if kind == "algorithm":
        yield f"required stage keys: {', '.join(required_keys(one.implementation))}"
        if defaults := stage_defaults(one.implementation):
            yield (
                f"stage defaults: {', '.join(f'{key} {value}' for key, value in defaults.items())}"
            )
