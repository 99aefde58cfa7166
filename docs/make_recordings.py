"""Record the README's terminal sessions: run the real commands and draw what they print as SVG.

    python docs/make_recordings.py

Writes `docs/assets/smoke.svg` and `docs/assets/wrong-recipe.svg`. Timings differ from run to run, so no test compares
the pictures; run this again when messages change.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent
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
# rich asks for web fonts, which browsers do not fetch for an image.
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def record(arguments: list[str], folder: Path, width: int) -> str:
    """All that `alignkit ARGUMENTS` prints, errors and results in the order of a terminal."""
    ran = subprocess.run(
        [ALIGNKIT, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": str(width), "PYTHONUNBUFFERED": "1"},
        check=False,
    )
    return ran.stdout.replace(f"{DOCS.parent}/", "")  # where shipped recipes are, in an installation from a checkout


def shortened(output: str) -> str:
    """The output without its second table and sampled answers: those of a random model are noise."""
    return re.sub(r"\nagainst .*?(?=\n\S+ against )", "\n[...]", output, flags=re.DOTALL)


def picture(arguments: list[str], output: str, width: int) -> str:
    """An SVG of a terminal in which the command was run."""
    command = " ".join(["alignkit", *arguments])
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold green"))
    for line in output.rstrip().splitlines():
        console.print(Text(line.rstrip(), style="red" if line.startswith("error") else ""))
    svg = console.export_svg(title=command, unique_id="-".join(arguments).replace(".", "-"))
    # Some renderers drop the indentation of a line otherwise.
    return WEB_FONT.sub("", svg).replace("<svg class", '<svg xml:space="preserve" class', 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(WRONG, encoding="utf-8")
        (folder / "demos.jsonl").write_text('{"prompt": "Hi", "completion": "Hello!"}\n', encoding="utf-8")
        wrong = picture(["run", "recipe.yaml"], record(["run", "recipe.yaml"], folder, 80), 80)
        smoke = picture(["run", "smoke"], shortened(record(["run", "smoke"], folder, 104)), 104)
    (DOCS / "assets" / "wrong-recipe.svg").write_text(wrong, encoding="utf-8")
    (DOCS / "assets" / "smoke.svg").write_text(smoke, encoding="utf-8")


if __name__ == "__main__":
    main()
