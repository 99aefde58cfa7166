"""The reference of public names, from the source: signatures, docstrings and fields. Nothing is imported.

`docs/generate.py` calls `part` for `<!-- generated: api WHAT -->`, where WHAT is one of

| WHAT | becomes |
|---|---|
| `Group Pair ...` | entries of names that `alignkit` exports |
| `module functional.kl` | entries of everything public in a module, or of what its package exports from it |
| `about evaluation.ranking` | the module's docstring without its first sentence, and its types |
| `hooks` | entries of all hooks |
| `index` | a table of the pages in the folder, with a link to every entry |
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from api_source import (
    ROOT,
    Function,
    Module,
    Row,
    attributes,
    described,
    fields,
    home,
    members,
    methods_of,
    names_in,
    parameters,
    public_methods,
    signature_of,
)

from benchmarks.markdown import markdown_table

PAGES = ROOT / "docs" / "plugins" / "api"
WIDTH = 100  # of a signature in one line
HEADING = re.compile(r"^### `([\w.]+)`$", re.MULTILINE)
MARKER = re.compile(r"^(<!-- generated: api (.+?) -->\n)(.*?)^(<!-- /generated -->)$", re.MULTILINE | re.DOTALL)


def part(what: str) -> str:
    """The Markdown of one part. Raises ValueError for a name that does not exist."""
    kind, _, rest = what.partition(" ")
    if what == "index":
        return index()
    if what == "hooks":
        module = Module("hookspecs")
        return "\n".join(entry(module, name, name) for name in module.functions() if name != "hookspec")
    if kind == "about":
        return about(Module(rest))
    if kind == "module":
        return "\n".join(entry(module, name, title) for module, name, title in members(rest))
    return "\n".join(entry(Module(home(name)), name, name) for name in what.split())


# Entries


def entry(module: Module, name: str, title: str) -> str:
    """A heading, the signature, and what the docstring says."""
    node = module.find(name)
    if isinstance(node, ast.ClassDef):
        body = class_entry(module, node, title)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        doc, notes = split_notes(docstring(node), parameters(node))
        signature = f"{title}{signature_of(module, node)}"
        body = f"{code(wrapped(signature))}\n{doc}{bullets(notes)}"
    else:
        body = constant(module, node, name)
    return f"### `{title}`\n\n{body}"


def constant(module: Module, node: ast.stmt, name: str) -> str:
    """A value, and the comment behind it."""
    if isinstance(node, ast.ImportFrom):
        return f"The same as `{node.module}.{name}`.\n"
    assert isinstance(node, ast.Assign)
    value: ast.expr = node.value
    if isinstance(node.targets[0], ast.Tuple) and isinstance(value, ast.Tuple):
        names = [each.id for each in node.targets[0].elts if isinstance(each, ast.Name)]
        value = value.elts[names.index(name)]
    comment = module.comment(node)
    return code(f"{name} = {module.source(value)}") + (f"\n{sentence(comment)}\n" if comment else "")


def class_entry(module: Module, node: ast.ClassDef, title: str) -> str:
    made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    rows = list(fields(module, node))
    known = [row[0] for row in rows]
    inside = [*parameters(made), *attributes(made)] if made is not None else []
    doc, notes = split_notes(docstring(node), [*known, *inside, *methods_of(node)])
    head = f"{decorators(module, node)}class {title.rpartition('.')[2]}{bases(module, node)}"
    if made is not None and parameters(made) != ["options"]:
        head = wrapped(f"{title}{signature_of(module, made)}")
    text = f"{code(head)}\n{doc}"
    notes = {**described(node), **notes}
    if rows:
        text += f"\n{table(rows, notes, methods_of(node))}"
    text += bullets({name: meaning for name, meaning in notes.items() if _bare(name).isdisjoint(known)})
    listed = [method(module, each) for each in public_methods(node)]
    return text + ("\n" + "\n".join(listed) if listed else "")


def decorators(module: Module, node: ast.ClassDef) -> str:
    return "".join(f"@{module.source(each)}\n" for each in node.decorator_list)


def bases(module: Module, node: ast.ClassDef) -> str:
    shown = [module.source(base).lstrip("_") for base in node.bases]
    shown += [f"{each.arg}={module.source(each.value)}" for each in node.keywords]
    return f"({', '.join(shown)})" if shown else ""


def method(module: Module, node: Function) -> str:
    """A list item: the signature, and the docstring below it."""
    marks = {ast.unparse(decorator) for decorator in node.decorator_list}
    if "property" in marks:
        returns = f": {module.source(node.returns)}" if node.returns else ""
        head, kind = f"{node.name}{returns}", " (property)"
    else:
        head = f"{node.name}{signature_of(module, node)}"
        kind = " (class method)" if "classmethod" in marks else ""
    text = docstring(node)
    lines = [f"  {line}".rstrip() for line in text.splitlines()]
    return f"- `{head}`{kind}\n" + ("\n" + "\n".join(lines) + "\n" if text else "")


# Signatures


def wrapped(signature: str) -> str:
    """A long signature with a line for each parameter."""
    if len(signature) <= WIDTH:
        return signature
    name, inside, rest = _split(signature)
    lines, depth, start = [], 0, 0
    for place, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            lines.append(inside[start:place].strip())
            start = place + 1
    lines.append(inside[start:].strip())
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){rest}"


def _split(signature: str) -> tuple[str, str, str]:
    """The name, what is between its brackets, and the rest."""
    first, depth = signature.index("("), 0
    for place in range(first, len(signature)):
        depth += (signature[place] == "(") - (signature[place] == ")")
        if depth == 0:
            return signature[:first], signature[first + 1 : place], signature[place + 1 :]
    raise ValueError(f"brackets do not match: {signature}")


# Docstrings


def docstring(node: ast.ClassDef | Function) -> str:
    text = ast.get_docstring(node) or ""
    return re.sub(r":param (\w+):", r"\1:", text)


def split_notes(text: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """A docstring without what it says of these names (`mask: [B, T]`), and that by name."""
    notes: dict[str, str] = {}
    kept: list[str] = []
    head = re.compile(r"(?:^|(?<=[.;?!] ))((?:\w+(?:\([^)]*\))?, )*\w+(?:\([^)]*\))?): ")
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(("|", " ", "-")):
            kept.append(paragraph)
            continue
        line = " ".join(paragraph.split())
        found = [match for match in head.finditer(line) if _bare(match[1]) <= set(names)]
        ends = [*(match.start() for match in found[1:]), len(line)]
        rest = line[: found[0].start()].strip() if found else line
        for match, end in zip(found, ends, strict=bool(found)) if found else ():
            meaning, after = _until_raises(line[match.end() : end].strip())
            rest = f"{rest} {after}".strip()
            for name in re.split(r", (?![^(]*\))", match[1]):
                notes[name] = meaning if ". " in meaning else meaning.rstrip(".")
        kept.append(rest if found else paragraph)
    body = "\n\n".join(paragraph for paragraph in kept if paragraph)
    return (body + "\n" if body else ""), notes


def _bare(heads: str) -> set[str]:
    return set(re.sub(r"\([^)]*\)", "", heads).split(", "))


def _until_raises(text: str) -> tuple[str, str]:
    """A meaning, and the sentences after it that are about the whole function."""
    match = re.search(r"(?:(?<=\. )|^)(?=(?:Raises|Returns) )", text)
    return (text[: match.start()].strip(), text[match.start() :]) if match and match.start() else (text, "")


# Markdown


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def bullets(notes: dict[str, str]) -> str:
    return "\n" + "".join(f"- `{name}`: {meaning}\n" for name, meaning in notes.items()) if notes else ""


def table(rows: Sequence[Row], notes: dict[str, str], hidden: Collection[str] = ()) -> str:
    """The columns that say anything. hidden: names that are listed as methods."""
    calls = {next(iter(_bare(name))): f"`{name}`: {meaning}" for name, meaning in notes.items() if "(" in name}
    lines = [
        (name, kind, default, notes.get(name, calls.get(name, "")))
        for name, kind, default in rows
        if name not in hidden
    ]
    header = ("name", "type", "default" if any(kind for _, kind, _ in rows) else "value", "meaning")
    used = [column for column in range(4) if column == 0 or any(line[column] for line in lines)]
    shown = [[_cell(column, line[column]) for column in used] for line in lines]
    return markdown_table([header[column] for column in used], shown) + "\n"


def _cell(column: int, text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if text and column < 3 else escaped


def about(module: Module) -> str:
    """What a module says of itself after its first paragraph, and its types."""
    paragraphs = (ast.get_docstring(module.tree) or "").split("\n\n")[1:]
    text = "\n\n".join(each for each in paragraphs if not each.startswith("Design: "))
    aliases = [
        f"{name} = {module.source(node.value)}"
        for node in module.tree.body
        if isinstance(node, ast.Assign) and len(node.targets) == 1
        for name in names_in(node)
        if re.fullmatch(r"[A-Z][a-z]\w*", name)
    ]
    return (text + "\n" if text else "") + ("\n" + code("\n".join(aliases)) if aliases else "")


def index() -> str:
    """Every page of the folder, with its title and its entries."""
    lines = []
    for page in sorted(PAGES.glob("*.md")):
        if page.name == "index.md":
            continue
        text = MARKER.sub(lambda match: f"{match[1]}{part(match[2])}{match[4]}", page.read_text(encoding="utf-8"))
        title = text.partition("\n")[0].removeprefix("# ")
        links = [f"[`{name}`]({page.name}#{slug})" for name, slug in slugs(text)]
        lines.append((f"[{title}]({page.name})", ", ".join(links)))
    return markdown_table(("page", "names"), lines) + "\n"


def slugs(page: str) -> Iterator[tuple[str, str]]:
    """Every entry and its anchor. As on GitHub, the second heading with the same letters gets a number."""
    seen: Counter[str] = Counter()
    for title in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        slug = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        if name := HEADING.fullmatch(f"### {title}"):
            yield name[1], f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1
