"""The command `alignkit label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def label(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=(
                "Data to label: a file in any format, data as in a recipe, or a store (.feedback)."
            ),
        ),
    ],
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Store that labels go to. Default: the name of DATA with .feedback, here.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help=(
                "Task: pair, safety, ranking, scores, review, demonstration or thumb. Default: "
                "by the responses."
            ),
        ),
    ] = None,
    guidelines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Guidelines for labelers, in Markdown. Each label records their version.",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Items with known labels, mixed in unseen, to check the labelers."
        ),
    ] = None,
    qualify: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of gold items that everybody answers first, 80% of them right.",
        ),
    ] = 0,
    annotator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=(
                "Name of a labeler. Repeatable: each gets an address, and the first one also "
                "adjudicates."
            ),
        ),
    ] = None,
    overlap: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of people who label each item.")
    ] = 1,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Port of the page. Default: 8765, or the next free one.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help=(
                "Address that other machines use, or https://NAME of a proxy in front of this one."
            ),
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
    from alignkit_plugins.people.label_start import prepared, serve

    with prepared(data, store, task, gold, overlap, qualify) as opened:
        serve(opened, guidelines, qualify, annotator, port, host)
