"""The command `alignkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result
from alignkit_plugins.policies.export_request import Request
from alignkit_plugins.printing import files_written


def export(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="RUN/STAGE",
            help="Stage of a run to export; RUN/STAGE@K is a kept version, RUN/align@ppo a result.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="New folder for the export. Default: exports/RUN-STAGE."
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a whole model instead of an adapter.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Id of the base model on the hub, if the run used a copy."
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="License of the export, for its model card.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Upload the export to the Hugging Face hub, too; a new repository is private.",
        ),
    ] = None,
) -> Result:
    """Write a trained model, with a model card, for other programs.

    transformers, peft, TRL and vLLM load the folder; llama.cpp's converter reads a merged one.

    \b
    Examples:
      alignkit export runs/quickstart/align my-model
      alignkit export runs/quickstart/align my-model --merge
      alignkit export runs/quickstart/helpful rm --merge --push me/my-rm
    """
    from alignkit.io.console import Reporter
    from alignkit.plugins import load_plugins
    from alignkit_plugins.policies.source import find
    from alignkit_plugins.policies.upload import check_target
    from alignkit_plugins.policies.upload import push as upload

    load_plugins()
    source = find(stage)
    request = Request(out or Path("exports") / source.label, merge, base, license, push)
    request.check(source)
    target = check_target(push) if push is not None else None
    from alignkit_plugins.policies.export_folder import write  # imports torch

    reporter = Reporter()
    notes, use = write(source, request, reporter.say)
    for note in notes:
        reporter.say(f"note: {note}")
    files = sorted(request.out.iterdir())
    pushed = [f"pushed to {upload(request.out, target)}"] if target is not None else []
    text = f"wrote {request.out}: {', '.join(path.name for path in files)}\n\n{use}"
    return files_written(files, [*notes, *pushed], use, "\n".join([text, *pushed]))
