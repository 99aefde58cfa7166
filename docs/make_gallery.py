"""Keep finished runs as folders that open: `python docs/make_gallery.py [NAME]...`, by default all.

Runs NAME in `alignkit-gallery` in the folder for temporary files, where a stopped run goes on, and
keeps in `docs/gallery/NAME` what its report is made of, without weights and without answers that the
report does not show. `alignkit show docs/gallery/NAME` and `docs/gallery/NAME/report.html` work in
every clone. The runs train SmolLM2-135M: on two cores 5 to 20 minutes each.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from alignkit.contract.reward import REWARD_KEY
from alignkit.io.results import (
    PAGE,
    RECIPE,
    STARTS,
    json_lines,
    manifest,
    read_record,
    write_record,
)
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.servers.page import breakable

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "gallery"
WORK = Path(tempfile.gettempdir()) / "alignkit-gallery"
RECIPES = ("quickstart",)
FILES = ("metrics.jsonl", "evaluation.json", "agreement.json")  # of a stage, kept as they are
ANSWER = ("text", "scores", "source", "messages", "truncated")  # what a report shows of one
NOT_SHOWN: dict[str, Any] = {"prompt": [], "responses": []}


def make(name: str) -> None:
    """Run a recipe, and keep what its report is made of."""
    WORK.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "alignkit", "run", name], cwd=WORK, check=True)
    keep(WORK / "runs" / name, GALLERY / name)


def keep(run: Path, folder: Path) -> None:
    """Make the folder of a finished run small, with no path of this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    facts = facts_of(run)
    shown = {(one["stage"], one["row"]) for one in facts["samples"]}
    for file in (RECIPE, STARTS):
        _write(folder / file, (run / file).read_text(encoding="utf-8"))
    for name in (stage["name"] for stage in facts["stages"]):
        for file in FILES:
            if (run / name / file).exists():
                _write(folder / name / file, (run / name / file).read_text(encoding="utf-8"))
        rollouts = sorted((run / name).glob("rollouts/*.jsonl"))
        for path in (*rollouts[:1], *rollouts[1:][-1:]):  # whose rewards the report draws
            groups = list[Any]()
            for group in json_lines(path):
                scores = [{REWARD_KEY: one["scores"].get(REWARD_KEY)} for one in group["responses"]]
                groups.append({"responses": [{"scores": each} for each in scores]})
            _write_lines(folder / name / "rollouts" / path.name, groups)
        samples = list[Any]()
        for place, group in enumerate(json_lines(run / name / "samples.jsonl"), 1):
            if (name, place) not in shown:
                group = NOT_SHOWN
            answers = [{key: one.get(key) for key in ANSWER} for one in group["responses"]]
            samples.append({"prompt": group["prompt"], "responses": answers})
        if samples:
            _write_lines(folder / name / "samples.jsonl", samples)
        record = json.loads(_neutral(json.dumps(read_record(run / name))))
        record.pop("depends_on", None)
        write_record(folder / name, {**record, "files": manifest(folder / name)})
    write_page(folder)


def write_page(folder: Path) -> None:
    (folder / PAGE).write_text(page_of(folder), encoding="utf-8")


def page_of(folder: Path) -> str:
    """The report of a kept run, as today's code writes it."""
    text, shown = page(facts_of(folder)), f"runs/{folder.name}"
    return text.replace(breakable(folder), shown).replace(str(folder), shown)


def _neutral(text: str) -> str:
    return text.replace(f"{ROOT}/", "").replace(f"{WORK}/", "")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_neutral(text), encoding="utf-8")


def _write_lines(file: Path, rows: list[Any]) -> None:
    _write(file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


if __name__ == "__main__":
    for name in sys.argv[1:] or RECIPES:
        make(name)
