"""The command `alignkit export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, refuse
from alignkit_plugins.printing import files_written

CONVERTER = ("python", "convert_hf_to_gguf.py")  # of llama.cpp


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
    from alignkit_plugins.models.find import find
    from alignkit_plugins.models.upload import check_target
    from alignkit_plugins.models.upload import push as upload

    model = find(stage)
    if model.run is None or not model.name:
        refuse(f"{stage} is no stage of a run", "write RUN/STAGE: a run trained what is exported")
    out = out or Path("exports") / model.label
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        refuse(f"{out} exists already", "choose another folder, or delete it")
    if base is not None and base.startswith(("/", "~")):
        help = "name the base by its id on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct"
        refuse(f"--base {base} is a path that only this machine has", help)
    from alignkit_plugins.policies.export_folder import base_of, on_hub, write  # imports torch

    trained_on = base_of(model)
    if base is None and on_hub(trained_on):
        base = trained_on.source
    if push is not None:
        if model.is_adapter and not merge and base is None:
            name = Path(trained_on.name).name
            text = f"the base of '{model.name}', {name}, is not on the hub"
            refuse(f"{text}, so nobody could load its adapter", "add --merge, or --base OWNER/NAME")
        push = check_target(push)
    notes = write(model, out, merge, base, license, push or out.resolve().name)
    files = sorted(out.iterdir())
    if push is not None:
        notes.append(f"pushed to {upload(out, push)}")
    lines = [f"wrote {out}: {', '.join(path.name for path in files)}"]
    lines += [f"note: {note}" for note in notes]
    convert = ""
    if not model.is_reward and (merge or not model.is_adapter):
        convert = shlex.join([*CONVERTER, str(out), "--outfile", f"{model.label}.gguf"])
        lines.append(f"for llama.cpp: {convert}")
    return files_written(files, notes, convert, "\n".join(lines))
