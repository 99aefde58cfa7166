"""Build the documentation site into build/site: `python docs/site/make_site.py [--out FOLDER]`, or
`make site`.

The pages keep the places that they have in the repository, so the same links work on GitHub and on
the site. They are copied to build/site-source with what GitHub does and the generator (Zensical)
does not: anchors as on GitHub, recipes and the notebook as pages, links to folders. A broken link
or anchor, or a page that the navigation lacks, fails the build. The site needs no server and no
network: nothing in it is loaded from another host.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from site_links import broken, foreign

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "AGENTS.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "recipes/data/LICENSES.md",
]
# As they are.
SHOWN = [
    "docs/assets/*",
    "docs/papers/*.svg",
    "docs/gallery/*/*.html",
    "docs/benchmarks/*.json",
    "recipes/*.json",
]
CODE = {".yaml": "yaml"}  # files that become pages
REPOSITORY = "https://github.com/OWNER/alignkit/blob/main"
FENCE = re.compile(r"^ *(```|~~~)")
HEADING = re.compile(r"^(#+) (.*)$")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
CODE_SPAN = re.compile(r"(`[^`]+`)")
ITEM = re.compile(r"^ *(?:[-*]|1\.) ")  # no other number begins a list in a paragraph
INDENTED = re.compile(r"^ {2,3}(?=\S)")
# What `docs/api_names.py` writes
PUBLIC = re.compile(r"^- `(alignkit\.[\w.]+)`: (?!The same as).*$(?:\n  - .*$)*", re.MULTILINE)
MARKER = re.compile(r"^<!-- /?generated.*-->$\n", re.MULTILINE)


def sources(root: Path) -> Iterator[Path]:
    """The files of the repository that become pages."""
    yield from (root / name for name in PAGES)
    yield from sorted((root / "recipes").rglob("*.yaml"))
    yield from sorted(
        file
        for file in (root / "docs").rglob("*")
        if file.suffix in (".md", ".ipynb") and file.name != "instruction.md"
    )


def page_of(file: Path) -> Path:
    """Where a file's page lies: a recipe's next to it, with a further suffix."""
    if file.is_dir():
        return file / "README.md"
    if file.suffix == ".ipynb":
        return file.with_suffix(".md")
    return file.with_name(f"{file.name}.md") if file.suffix in CODE else file


def slug(title: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def linked(text: str, folder: Path) -> str:
    """The line with links to the pages of recipes, notebooks and folders, or to the repository.
    folder: of the file.
    """

    def page(match: re.Match[str]) -> str:
        target = folder / match[1]
        if target.suffix == ".py":
            return f"]({REPOSITORY}/{match[1].lstrip('./')})"
        page = (
            match[1].removesuffix(target.name) + page_of(target).name
            if target.is_file()
            else f"{match[1]}/README.md"
        )
        return f"]({page}{match[2] or ''})" if target.exists() else match[0]

    return LINK.sub(page, text)


def row(line: str) -> str:
    """A row of a table. On GitHub code in it needs a backslash that is not shown, and braces are no
    attributes.
    """
    parts = CODE_SPAN.split(line)
    return "".join(
        part.replace("\\|", "|") if at % 2 else part.replace("{", "\\{")
        for at, part in enumerate(parts)
    )


def prepared(text: str, folder: Path) -> str:
    """A page of the repository as the generator reads it. folder: of the page."""
    text = MARKER.sub("", text)
    lines: list[str] = []
    seen: Counter[str] = Counter()
    code = False
    for line in text.splitlines():
        code ^= bool(FENCE.match(line))
        if code or FENCE.match(line):
            lines.append(line)
            continue
        if heading := HEADING.match(line):
            name = slug(heading[2])
            seen[name] += 1
            line = f"{line} {{ #{name if seen[name] == 1 else f'{name}-{seen[name] - 1}'} }}"
        elif (
            ITEM.match(line)
            and lines
            and lines[-1].strip()
            and not lines[-1].startswith((" ", "-", "*"))
        ):
            lines.append("")  # on GitHub a list needs no empty line before it
        elif lines and not lines[-1]:
            # On GitHub two spaces are enough for a paragraph of an item
            line = INDENTED.sub("    ", line)
        lines.append(linked(row(line) if line.startswith("|") else line, folder))
    return "\n".join(lines) + "\n"


def listing(file: Path) -> str:
    """The page of a recipe."""
    text = file.read_text(encoding="utf-8")
    return f"# {file.name}\n\n```{CODE[file.suffix]}\n{text.rstrip()}\n```\n"


def notebook(file: Path, out: Path) -> str:
    """The page of a notebook with its outputs; pictures are written next to the page. out: the
    page.
    """
    parts: list[str] = []
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell.get("outputs", [])):
            parts.append(_output(output, out.with_name(f"{out.stem}-{number}-{place}.png")))
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: dict[str, Any], picture: Path) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![{''.join(data.get('text/plain', ['a figure']))}]({picture.name})"
    text = "".join(output.get("text", data.get("text/plain", [])))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def prepare(root: Path, out: Path) -> list[str]:
    """Write all pages, and what they show, to a folder. Returns the pages' names."""
    names = []
    for file in sources(root):
        target = out / page_of(file.relative_to(root))
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".ipynb":
            text = prepared(notebook(file, target), file.parent)
        else:
            text = (
                listing(file)
                if file.suffix in CODE
                else prepared(file.read_text(encoding="utf-8"), file.parent)
            )
        if file.parent.name == "api":
            text = PUBLIC.sub(r"::: \1\n", text)
        target.write_text(text, encoding="utf-8")
        names.append(target.relative_to(out).as_posix())
    for file in (file for pattern in SHOWN for file in root.glob(pattern)):
        target = out / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for name in ("site.css", "worker.js"):
        shutil.copyfile(HERE / name, out / name)
    return names


def in_navigation(entries: Any) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(entries, str):
        yield entries
    for entry in (
        entries
        if isinstance(entries, list)
        else entries.values()
        if isinstance(entries, dict)
        else ()
    ):
        yield from in_navigation(entry)


def build(root: Path, work: Path, out: Path) -> None:
    """Build the site of a repository. work: for the prepared pages. Raises SystemExit if something
    is wrong.
    """
    import yaml

    shutil.rmtree(work, ignore_errors=True)
    names = prepare(root, work / "pages")
    config = HERE / "mkdocs.yml"
    text = config.read_text(encoding="utf-8").replace(
        "paths: [ROOT]", f"paths: [{json.dumps(str(ROOT))}]"
    )
    # Mkdocstrings reads the docstrings of this alignkit
    (work / config.name).write_text(text, encoding="utf-8")
    listed = Counter(in_navigation(yaml.safe_load(text)["nav"]))
    if wrong := sorted({*names} ^ listed.keys()) + [
        name for name, count in listed.items() if count > 1
    ]:
        raise SystemExit(
            f"docs/site/mkdocs.yml: each page belongs into `nav` once: {', '.join(wrong)}"
        )
    # A process of its own, without colors: the generator changes the current folder.
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "-f",
        str(work / config.name),
    ]
    done = subprocess.run(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).split("Traceback")[0]
        raise SystemExit(
            f"{log}the site has mistakes; they are in the pages, of which {work} holds copies"
        )
    site = work / "site"
    # What search reads if the site is on a disk, where a page may load scripts but no data.
    (site / "search.js").write_text(
        f"var __index = {(site / 'search.json').read_text(encoding='utf-8')};\n", "utf-8"
    )
    if wrong := [f"leads nowhere: {link}" for link in broken(site)] + [
        f"another host: {link}" for link in foreign(site)
    ]:
        raise SystemExit("\n".join(wrong))
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(site, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "site", help="default: build/site"
    )
    out = parser.parse_args().out
    build(ROOT, out.with_name(f"{out.name}-source"), out)
    print(f"{out / 'index.html'}")


if __name__ == "__main__":
    main()
