"""The command `alignkit label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def label(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A file in any format, data as in a recipe, or a store (.feedback), as of a run."
        ),
    ],
    store: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where labels go. Default: DATA's name with .feedback, here.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="pair, safety, ranking, scores, review, demonstration or thumb. Default: by the number of responses.",
        ),
    ] = None,
    guidelines: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown for labelers; its version is in each label.")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows whose labels are right, mixed in unseen.")
    ] = None,
    qualify: Annotated[
        int, typer.Option(metavar="N", min=0, help="Gold items that everybody answers first, 80% of them right.")
    ] = 0,
    annotator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Who labels; can be repeated. Each gets an address; the first also adjudicates."
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(metavar="N", min=1, help="Annotators per item.")] = 1,
    port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="Default: 8765, or the next free one.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="For others than this machine: its address, or https://NAME of a proxy in front of it.",
        ),
    ] = None,
) -> None:
    """Label data on a page in your browser. Ctrl-C stops; the same command continues.

    \b
    Examples:
      alignkit label pairs.jsonl
      alignkit label prompts.jsonl --annotator ada --annotator bob --overlap 2
      alignkit label a.jsonl --annotator ada --host https://labels.example.org
      alignkit label answers.jsonl --task review
      alignkit label pairs.jsonl --gold known.jsonl --guidelines rules.md
      alignkit label '{path: pairs.jsonl, columns: {prompt: question}}'
      alignkit label runs/people/labels.feedback
    """
    from alignkit_apps.label.start import prepared, serve

    with prepared(data, store, task, gold, overlap, qualify) as opened:
        serve(opened, guidelines, qualify, annotator, port, host)
