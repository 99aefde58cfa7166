"""Run shipped recipes and keep their reports: `python docs/make_gallery.py [NAME]...`, by default all of them.

Writes `docs/gallery/NAME.html`, as the run wrote it, and the table of `docs/gallery/index.md`. The runs are in
`alignkit-gallery` in the folder for temporary files, on copies of the recipes, since a report names the folder of its
run. All but `sums` train the tiny model and take about five minutes together on two cores. `sums` trains SmolLM2-135M,
which is downloaded once, for 5 to 15 minutes. Timings differ from run to run, so no test compares the files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
GALLERY = DOCS / "gallery"
WORK = Path(tempfile.gettempdir()) / "alignkit-gallery"
MAX_BYTES, MAX_ALL = 300_000, 1_500_000
TINY = ["model.base=tiny"]
SAY_ANYTHING = "judge.local_judge.min_mass=0"  # the tiny model's answers are not the judge's two words
RECIPES = {
    "smoke": [],
    "instructgpt": TINY,
    "dpo": TINY,
    "rlaif": [*TINY, f"stages.labels.{SAY_ANYTHING}"],
    "iterated": [*TINY, "stages.rlhf.repeat=2"],
    "sums": [],
}
TABLE = re.compile(r"(<!-- made by docs/make_gallery\.py -->\n).*?(<!-- /made -->)", re.DOTALL)


def command(name: str) -> list[str]:
    """The command of a recipe's run, after `alignkit`."""
    return ["run", f"{name}.yaml", *RECIPES[name]]


def alignkit(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "alignkit", *arguments], cwd=WORK, env=os.environ, check=True)


def make(name: str) -> None:
    """Run a recipe from the start, and keep its report. Raises SystemExit if it is too large."""
    shutil.rmtree(WORK / "runs" / name, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    if not (WORK / f"{name}.yaml").exists():
        alignkit("recipes", "copy", name, ".")
    alignkit(*command(name))
    report = WORK / "runs" / name / "report.html"
    if report.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{report} has {report.stat().st_size} bytes, more than {MAX_BYTES}: choose a smaller run")
    GALLERY.mkdir(exist_ok=True)
    shutil.copyfile(report, GALLERY / f"{name}.html")


def row(name: str, old: dict[str, str]) -> str:
    """The line of a report in the table. old: the lines so far, for runs that are not here."""
    file = WORK / "runs" / name / "report.json"
    if not file.exists():
        return old[name]
    facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    minutes, seconds = divmod(round(facts["run"]["seconds"]), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    base = "SmolLM2-135M" if name == "sums" else "tiny, random"
    size = f"{(GALLERY / f'{name}.html').stat().st_size / 1000:.0f} kB"
    return f"| [{name}]({name}.html) | `alignkit {' '.join(command(name))}` | {base} | {time} | {size} |"


def main() -> None:
    for name in sys.argv[1:] or RECIPES:
        make(name)
    page = GALLERY / "index.md"
    text = page.read_text(encoding="utf-8")
    old = dict(re.findall(r"^(?=\| \[(\w+)\])(.*)$", text, re.MULTILINE))
    lines = ["| report | command | model | work | size |", "|---|---|---|---|---|"]
    lines += [row(name, old) for name in RECIPES]
    page.write_text(TABLE.sub(lambda match: match[1] + "\n".join([*lines, match[2]]), text), encoding="utf-8")


if __name__ == "__main__":
    main()
