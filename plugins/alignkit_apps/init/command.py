"""The command `alignkit init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to. Default: the current folder.")] = Path(),
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A hub id, a folder, or a name of `alignkit plugins model`.")
    ] = None,
    demos: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts with a good response each.")] = None,
    pairs: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts with a better and a worse one.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts to learn on; needs --pairs.")] = None,
) -> None:
    """Write a recipe for your data, or with a tiny example.

    No file is ever replaced.

    \b
    Examples:
      alignkit init my-project
      alignkit init my-project --demos demos.jsonl \\
        --base HuggingFaceTB/SmolLM2-360M-Instruct
      alignkit init --demos demos.jsonl --pairs pairs.jsonl --prompts p.jsonl
    """
    from alignkit.io.printable import printable
    from alignkit_apps.init.write import write

    given = {"demos": demos, "pairs": pairs, "prompts": prompts}
    files = write(folder, base, {name: path for name, path in given.items() if path is not None})
    for path in files:
        print(printable(str(path)))
    print(printable(f"next: alignkit run {files[0]}"))
