"""Compute the rows of a claim that are missing: `python -m benchmarks.papers NAME [--folder F]`, or
verify one: `--verify ROW`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.papers.claim import HERE, Claim
from benchmarks.papers.page import afterwards, complete, table

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="The claim: a folder of benchmarks/papers.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where runs are kept; default: nowhere.")
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="K/N", help="Compute a share, as one of N processes.")
    ] = "1/1",
    verify: Annotated[
        str, typer.Option(metavar="ROW", help="Only compute this row again, and compare.")
    ] = "",
) -> None:
    """Compute the rows of a claim that are missing, and print what they say."""
    known = sorted(file.parent.name for file in HERE.glob("*/__init__.py"))
    if name not in known:
        raise typer.BadParameter(f"no claim '{name}'; choose from {', '.join(known)}")
    claim = Claim(name)
    with tempfile.TemporaryDirectory(prefix="alignkit-papers-") as temporary:
        if verify:
            print(claim.verify(verify, folder or Path(temporary)))
            return
        if claim.ruled:
            claim.compute(folder or Path(temporary), *map(int, part.split("/")))
    print(table(claim))
    if complete(claim):
        print(f"\n{afterwards(claim)}".rstrip())


if __name__ == "__main__":
    app()
