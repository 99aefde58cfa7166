"""Run shipped recipes and keep their reports for the site: `python docs/make_gallery.py [NAME]...`,
by default all.

Writes `docs/gallery/NAME.html`, as the run wrote it. Git ignores these files; `make site` makes
those that are missing. The runs are in `alignkit-gallery` in the folder for temporary files, on
copies of the recipes, since a report names the folder of its run. All but `sums` train the tiny
model and take about ten minutes together on two cores. `sums` trains SmolLM2-135M, which is
downloaded once, for 5 to 15 minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
GALLERY = DOCS / "gallery"
WORK = Path(tempfile.gettempdir()) / "alignkit-gallery"
TINY = ["model.base=tiny"]
RECIPES = {
    "smoke": [],
    "instructgpt": TINY,
    "dpo": TINY,
    "rlaif": TINY,
    "iterated": [*TINY, "stages.rlhf.repeat=2"],
    "sums": [],
}


def command(name: str) -> list[str]:
    """The command of a recipe's run, after `alignkit`."""
    return ["run", f"{name}.yaml", *RECIPES[name]]


def alignkit(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "alignkit", *arguments], cwd=WORK, env=os.environ, check=True
    )


def make(name: str) -> None:
    """Run a recipe from the start, and keep its report."""
    shutil.rmtree(WORK / "runs" / name, ignore_errors=True)
    WORK.mkdir(exist_ok=True)
    if not (WORK / f"{name}.yaml").exists():
        alignkit("init", "--from", name)
    alignkit(*command(name))
    shutil.copyfile(WORK / "runs" / name / "report.html", GALLERY / f"{name}.html")


if __name__ == "__main__":
    for name in sys.argv[1:] or RECIPES:
        make(name)
