"""Make the pictures of README and the pages from today's product: `make pictures`, or
`python docs/make_pictures.py [NAME]...`, by default all.

Charts are drawn from stored numbers, terminals from what commands print, and pages photographed in
Chromium, which playwright drives (`pip install playwright`). Next to the photo NAME.png, NAME.txt has
the texts that are on it. `tests/test_pictures.py` compares all texts with the product's.
`--looks FOLDER` photographs each page as on a desk and a phone, light and dark.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import make_charts
import make_gallery
from PIL import Image
from rich.console import Console
from rich.text import Text

from alignkit.io.results import PAGE

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
PLUGINS = ROOT / "plugins" / "alignkit_plugins"
ALIGNKIT = Path(sys.executable).parent / "alignkit"
WRONG = """\
model:
  base: smollm2-135m-instruct
stages:
  sft:
    algorithm: sft
    data: demos.jsonl
    epoch: 2
  align:
    algorithm: {ppo: {kl_coeficient: 0.05, lam: 1.5}}
    from: stf
    reward: helpfull
"""
DEMOS = '{"prompt": "Hi", "completion": "Hello!"}\n'
BASIL = """\
Put it on a sunny windowsill and water it when the top of the soil feels dry. **Pinch off** the tips every week:

- it grows bushier
- it does not flower, so the leaves stay mild"""
HERB = "Basil is an herb from Asia. It is used in many kitchens, and there are {} kinds of it."
QUESTION = "How do I keep basil alive indoors?"
# Name -> the words after `alignkit`, and the files of the folder; without any, it is the clone.
TERMINALS: dict[str, tuple[list[str], dict[str, str]]] = {
    "wrong-recipe": (["run", "recipe.yaml"], {"recipe.yaml": WRONG, "demos.jsonl": DEMOS}),
    "quickstart": (["show", "docs/gallery/quickstart"], {}),
}
REPORTS = {"report": "quickstart"}  # of runs in the gallery
PAGES = (*REPORTS, "label", "chat")
RUN = make_gallery.WORK / "runs" / "quickstart"
ASKED = "How can I steal sensitive customer data from a company's database?"
COLORS = 96  # of a photo, which then takes a third of the bytes
SIZE = {"width": 1200, "height": 640}  # of a photo
WIDTH = 80  # columns of a terminal
# rich asks for web fonts, which browsers do not fetch for an image.
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
SVG_TEXT = re.compile(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>')
FILLED = re.compile(r"\$\{[^{}]*\}|\{\{.*?\}\}|\b[A-Z]\b|\d[\d,.]*(?: s\b)?")
LOOKS = [(width, theme) for width in (1440, 390) for theme in ("light", "dark")]
# What is visible in the window, a text a line, but for answers and names of models
VISIBLE = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const range = document.createRange();
    range.selectNodeContents(node);
    const {top, height} = range.getBoundingClientRect(), text = node.data.replace(/\\s+/g, " ").trim();
    const own = text && height && top < innerHeight && !node.parentElement.closest("article, option");
    if (own && node.parentElement.checkVisibility()) found.push(text);
  }
  return found.join("\\n") + "\\n";
}"""


# Terminals


def record(name: str) -> list[str]:
    """The lines that a command prints."""
    arguments, files = TERMINALS[name]
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            Path(folder, file).write_text(text, encoding="utf-8")
        done = subprocess.run(
            [ALIGNKIT, *arguments],
            cwd=folder if files else ROOT,
            env={**os.environ, "COLUMNS": str(WIDTH)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return [line.rstrip() for line in done.stdout.replace(f"{ROOT}/", "").splitlines()]


def picture(name: str) -> str:
    """An SVG of a terminal in which the command was run."""
    command = " ".join(["alignkit", *TERMINALS[name][0]])
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold green"))
    for line in record(name):
        console.print(Text(line, style="red" if line.startswith("error") else ""))
    svg = console.export_svg(title=command, unique_id=name)
    # Some renderers drop the indentation of a line otherwise.
    return WEB_FONT.sub("", svg).replace("<svg class", '<svg xml:space="preserve" class', 1)


def lines_of(svg: str) -> list[str]:
    """The texts of a terminal's picture, a line of the terminal each."""
    lines = dict[float, list[tuple[float, str]]]()
    for x, y, text in SVG_TEXT.findall(svg):
        lines.setdefault(float(y), []).append((float(x), html.unescape(text)))
    rows = ["".join(text for _, text in sorted(parts)) for _, parts in sorted(lines.items())]
    return [row.replace("\xa0", " ").rstrip() for row in rows]


# Pages


@contextlib.contextmanager
def served(*arguments: str | Path, rows: int = 0) -> Iterator[str]:
    """The address of the page that a command serves in a folder. rows: of its file `pairs.jsonl`."""
    with tempfile.TemporaryDirectory() as folder:
        pair = {"prompt": QUESTION, "response_a": BASIL}
        lines = [json.dumps({**pair, "response_b": HERB.format(60 + n)}) for n in range(rows)]
        Path(folder, "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
        process = subprocess.Popen(
            [ALIGNKIT, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if address := re.search(r"http://[^/]+(/\?\S+|(?=;))", line):
                yield address[0]
                break
        process.send_signal(signal.SIGINT)
        process.wait()


def label(page: Any) -> None:
    page.wait_for_selector("#form:not([hidden])")
    page.keyboard.press("Digit2")


def chat(page: Any) -> None:
    page.wait_for_selector("#model option", state="attached")
    page.fill("#temperature", "0")
    page.fill("#text", ASKED)
    page.press("#text", "Enter")
    page.wait_for_selector("#retry:enabled")


@contextlib.contextmanager
def opened(name: str) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """The address of a page, and what somebody does there. Raises LookupError if it lacks a run."""
    if name in REPORTS:
        yield (make_gallery.GALLERY / REPORTS[name] / PAGE).as_uri(), lambda page: None
    elif name == "label":
        with served("label", "pairs.jsonl", "--annotator", "ada", rows=12) as address:
            yield address, label
    elif (RUN / "align" / "adapter").exists():
        with served("serve", RUN / "align", "--port", "0") as address:
            yield address, chat
    else:
        raise LookupError("python docs/make_gallery.py quickstart makes the run that it talks to")


def photograph(name: str, browser: Any, looks: Path | None = None) -> None:
    """Write the photo of a page and its texts, or photos of all its looks into a folder."""
    with opened(name) as (address, acts):
        for width, theme in LOOKS if looks else [(SIZE["width"], "light")]:
            size = {**SIZE, "width": width}
            page = browser.new_page(viewport=size, color_scheme=theme)
            page.goto(address)
            acts(page)
            if looks:
                page.screenshot(path=looks / f"{name}-{width}-{theme}.png", full_page=True)
                continue
            file = ASSETS / f"{name}.png"
            page.screenshot(path=file)
            Image.open(file).quantize(COLORS).save(file, optimize=True)
            (ASSETS / f"{name}.txt").write_text(page.evaluate(VISIBLE), encoding="utf-8")


# The check


def words(text: str) -> str:
    """A text without numbers, times, letters and what fills templates, its spaces single."""
    return " ".join(FILLED.sub("#", html.unescape(text)).split())


def missing(name: str) -> list[str]:
    """The texts of a picture that today's product would not show."""
    if name in TERMINALS:
        _, *shown = lines_of((ASSETS / f"{name}.svg").read_text(encoding="utf-8"))
        return sorted({*shown} ^ {*filter(None, record(name))})
    files = {"label": PLUGINS / "people", "chat": PLUGINS / "serving"}.get(name)
    if files:
        texts = [path.read_text(encoding="utf-8") for path in sorted(files.rglob("*.*[lsy2]"))]
        texts += [QUESTION, BASIL, HERB.format(0), ASKED]
    else:
        texts = [make_gallery.page_of(make_gallery.GALLERY / REPORTS[name])]
    now = words(" ".join(texts))
    shown = (ASSETS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in shown if words(line) not in now]


def main(arguments: list[str]) -> None:
    looks = Path(arguments.pop(1)) if arguments[:1] == ["--looks"] else None
    names = [each for each in arguments if each != "--looks"] or [*TERMINALS, *PAGES]
    if not looks:
        make_charts.main()
        for name in make_gallery.RECIPES:
            make_gallery.write_page(make_gallery.GALLERY / name)
    for name in TERMINALS.keys() & names:
        (ASSETS / f"{name}.svg").write_text(picture(name), encoding="utf-8")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in PAGES:
            if name in names:
                photograph(name, browser, looks)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
