"""What `alignkit plugins` prints: the names of all plugins, those of a kind, or the options of
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

from alignkit.errors import did_you_mean, refuse
from alignkit.host.registry import KINDS, Registration, Registry
from alignkit.io.text import printable
from alignkit.recipe.references import options_of
from alignkit.recipe.rules import required_keys
from alignkit_plugins.command_line.printing import print_lines, print_table
from alignkit_plugins.recipe_tools.options import OptionRow, option_rows, stage_defaults


def plugin_rows(registry: Registry) -> list[dict[str, str]]:
    """Return all plugins: kind, name, summary, and the package that each is from."""
    rows: list[dict[str, str]] = []
    for kind in KINDS:
        rows += map(plugin_row, registry.registrations(kind))
    return rows


def plugin_row(one: Registration) -> dict[str, str]:
    return {"kind": one.kind, "name": one.name, "summary": one.summary, "from": one.origin}


def show_names(rows: Sequence[dict[str, str]], broken: Sequence[str]) -> None:
    """Print the names of each kind, those of others with their package, and what is broken."""
    names: dict[str, list[str]] = {}
    for row in rows:
        is_own = row["from"].startswith("alignkit ")
        name = row["name"] if is_own else f"{row['name']} ({row['from']})"
        names.setdefault(row["kind"], []).append(name)
    cells = [[f"{kind} ({len(each)})", ", ".join(each)] for kind, each in names.items()]
    print_table(("kind", "names"), cells)
    for text in broken:
        print(printable(f"broken: {text}"))
    print("`alignkit plugins NAME` shows the options of a plugin, or the plugins of a kind.")


def described(name: str, registry: Registry) -> list[dict[str, Any]]:
    """Return the plugins with a name, and those of a kind with it, as plain data.

    Raises RecipeError if there is none.
    """
    chosen = [*registry.registrations(name)] if name in KINDS else []
    chosen += [registry.get(kind, name) for kind in KINDS if registry.has(kind, name)]
    plugins = []
    for one in chosen:
        options = list(map(asdict, option_rows(options_of(one))))
        plugins.append({**plugin_row(one), "options": options, "facts": [*_facts(one)]})
    if plugins:
        return plugins
    for broken in registry.broken:
        if name in (broken.plugin, broken.distribution):
            help = "`alignkit plugins` lists all that is broken"
            refuse(f"'{name}' cannot be used: {broken}", help)
    names = ["new", "check", *KINDS]
    for kind in KINDS:
        names += registry.names(kind)
    help = did_you_mean(name, names) or "`alignkit plugins` lists what is installed"
    refuse(f"no plugin provides '{name}'", help)


def show_options(name: str, plugins: Sequence[dict[str, Any]]) -> None:
    """Print the options of the plugins with a name, and the summaries of a kind's."""
    columns = ("name", "summary", "from")
    of_kind = [itemgetter(*columns)(one) for one in plugins if one["kind"] == name]
    if of_kind:
        print_table(columns, of_kind)
    for one in plugins:
        if one["name"] != name.rpartition(":")[2]:
            continue
        print(f"{one['kind']} {one['name']} ({one['from']})")
        print_lines(f"  {one['summary']}")
        cells = []
        for facts in one["options"]:
            row = OptionRow(**facts)
            cells.append((row.name, row.type_and_range, row.default, row.description))
        if cells:
            print_table(("option", "type", "default", "meaning"), cells)
        else:
            print("no options")
        for line in one["facts"]:
            print_lines(f"  {line}")


def _facts(one: Registration) -> Iterator[str]:
    """Lines about an algorithm or a format."""
    if one.kind == "format" and one.implementation.wants:
        yield f"columns: {one.implementation.wants}"
    if one.kind == "algorithm":
        yield f"required stage keys: {', '.join(required_keys(one.implementation))}"
        if defaults := stage_defaults(one.implementation):
            written = ", ".join(f"{key} {value}" for key, value in defaults.items())
            yield f"stage defaults: {written}"
