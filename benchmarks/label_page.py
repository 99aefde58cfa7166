"""How long the page of `alignkit label` keeps a person waiting: `python -m benchmarks.label_page DATA`.

A person in Chromium reads each pair for some seconds, presses a digit, and Enter. What counts is the time from Enter
until the browser has drawn the next item. It needs playwright and a Chromium, which alignkit does not install.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

# Records the milliseconds from Enter to the second frame after the prompt has changed: by then, it is on the screen.
WATCH = """
addEventListener("DOMContentLoaded", () => {
  window.changes = [];
  let pressed = null;
  addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
    if (pressed !== null) window.changes.push(performance.now() - pressed);
    pressed = null;
  }))).observe(document.getElementById("prompt"), { childList: true });
});
"""


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    data: Annotated[Path | None, typer.Argument(metavar="[DATA]", help="Pairs; default: made ones.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Pairs to label.")] = 20,
    decide: Annotated[float, typer.Option(help="Seconds that the person needs for a pair.")] = 3.0,
    size: Annotated[int, typer.Option(help="Characters of a made answer.")] = 1000,
) -> None:
    """Label pairs by keyboard and print the times as JSON."""
    with tempfile.TemporaryDirectory(prefix="alignkit-label-") as folder:
        file = data or _made(Path(folder) / "made.jsonl", count, size)
        command = [sys.executable, "-m", "alignkit", "label", str(file), "--limit", str(count)]
        command += ["--store", str(Path(folder) / "labels.feedback"), "--repeat-rate", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                found = _labeled(server.stdout.readline().strip(), count, decide)
            finally:
                server.terminate()
    print(json.dumps(found, indent=1))


def _labeled(address: str, count: int, decide: float) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.add_init_script(WATCH)
        page.goto(address)
        page.wait_for_selector("#form:not([hidden])")
        begun = time.perf_counter()
        for number in range(count):
            time.sleep(decide)
            page.keyboard.press(f"Digit{1 + number % 8}")
            page.keyboard.press("Enter")
            done = f"{number + 1} of "
            page.wait_for_function("done => document.getElementById('counts').textContent.startsWith(done)", arg=done)
        total = time.perf_counter() - begun
        page.wait_for_timeout(200)
        changes = sorted(page.evaluate("window.changes"))
        browser.close()
    return {
        "pairs": count,
        "seconds": round(total, 1),
        "seconds of the page and this script per pair": round((total - count * decide) / count, 3),
        "milliseconds from Enter to the next item": {
            "median": round(statistics.median(changes), 1),
            "95%": round(changes[int(0.95 * (len(changes) - 1))], 1),
            "most": round(changes[-1], 1),
        },
    }


def _made(path: Path, count: int, size: int) -> Path:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"**{n}** " + "word " * (size // 5), "rejected": "other " * (size // 6)}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    app()
