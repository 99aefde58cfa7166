"""Record the README's terminal sessions: run the real commands and draw what they print as SVG.

    python docs/make_recordings.py

Writes `docs/assets/smoke.svg` and `docs/assets/wrong-recipe.svg`. Timings differ from run to run,
so no test compares the pictures; run this again when messages change.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import tempfile
import termios
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
    """What a terminal shows at the end of `alignkit ARGUMENTS`, with its colors as escape codes."""
    process, terminal = pty.fork()
    if not process:  # the child, whose output is the terminal
        os.chdir(folder)
        os.execve(
            ALIGNKIT,
            ["alignkit", *arguments],
            {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color"},
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, width, 0, 0))
    output = b""
    with contextlib.suppress(OSError):  # at the end of the child
        while part := os.read(terminal, 65536):
            output += part
    os.waitpid(process, 0)
    # Shipped recipes lie in the checkout, whose folder is nobody's business.
    return shown(output.decode()).replace(f"{DOCS.parent}/", "")


def shown(output: str) -> str:
    """The lines that remain on the screen: rich erases a line and moves up to draw its tree
    again.
    """
    lines, row = [""], 0
    for part in re.split(r"(\n|\r|\x1b\[1A|\x1b\[2K|\x1b\[\?25[lh])", output):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith(("\r", "\x1b[?")):
            lines[row] += part
    return "\n".join(lines)


def shortened(output: str) -> str:
    """The output without the tables after the first and without sampled answers: a random model's
    are noise.
    """
    return re.sub(r"\nagainst .*?(?=\nNothing clear between)", "\n[...]", output, flags=re.DOTALL)


def picture(arguments: list[str], output: str, width: int) -> str:
    """An SVG of a terminal in which the command was run."""
    command = " ".join(["alignkit", *arguments])
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", style="bold green"))
    for line in output.rstrip().splitlines():
        console.print(
            Text.from_ansi(line.rstrip(), style="red" if line.startswith("error") else "")
        )
    svg = console.export_svg(title=command, unique_id="-".join(arguments).replace(".", "-"))
    # Some renderers drop the indentation of a line otherwise.
    return WEB_FONT.sub("", svg).replace("<svg class", '<svg xml:space="preserve" class', 1)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(WRONG, encoding="utf-8")
        (folder / "demos.jsonl").write_text(
            '{"prompt": "Hi", "completion": "Hello!"}\n', encoding="utf-8"
        )
        wrong = picture(["run", "recipe.yaml"], record(["run", "recipe.yaml"], folder, 80), 80)
        smoke = picture(["run", "smoke"], shortened(record(["run", "smoke"], folder, 104)), 104)
    (DOCS / "assets" / "wrong-recipe.svg").write_text(wrong, encoding="utf-8")
    (DOCS / "assets" / "smoke.svg").write_text(smoke, encoding="utf-8")


if __name__ == "__main__":
    main()
