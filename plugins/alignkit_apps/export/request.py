"""What to export, and in which form: checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignkit.errors import Problem, RecipeError
from alignkit_apps.policies.source import Source

DTYPES = ("float32", "bfloat16", "float16")
GGUF_ONLY = ("q8_0",)


@dataclass(frozen=True)
class Request:
    """How a model is exported.

    merge: write a whole model instead of the adapter. gguf: write a GGUF file. dtype: of whole weights; None: the
    run's. base: what others call the base. license: of the export. push: a repository on the hub. public: let
    everybody read it.
    """

    out: Path
    merge: bool = False
    gguf: bool = False
    dtype: str | None = None
    base: str | None = None
    license: str | None = None
    push: str | None = None
    public: bool = False

    def form(self, source: Source) -> str:
        """What the folder will hold: `adapter`, `whole` or `gguf` (also `whole+gguf`)."""
        whole = self.merge or not source.is_adapter
        if self.gguf:
            return "whole+gguf" if self.merge else "gguf"
        return "whole" if whole else "adapter"


def check(source: Source, request: Request) -> None:
    """Raise RecipeError for a request that cannot be met."""
    form, problems = request.form(source), []
    if request.out.exists() and not (request.out.is_dir() and not any(request.out.iterdir())):
        problems.append(Problem(f"{request.out} exists already", help="choose another folder, or delete it"))
    if request.dtype not in (None, *DTYPES, *GGUF_ONLY):
        problems.append(Problem(f"--dtype {request.dtype} is unknown", help=f"one of {', '.join(DTYPES + GGUF_ONLY)}"))
    elif request.dtype in GGUF_ONLY and form != "gguf":
        problems.append(Problem(f"--dtype {request.dtype} is for GGUF files", help="use --gguf without --merge"))
    elif request.dtype is not None and form == "adapter":
        problems.append(Problem("--dtype is for whole models: an adapter stays as it is", help="add --merge"))
    if request.gguf and source.is_reward:
        help = "leave --gguf out; with --merge, transformers and vLLM load it"
        problems.append(Problem(f"'{source.reference}' is a reward model, and llama.cpp reads none", help=help))
    if request.base is not None and request.base.startswith(("/", "~")):
        help = "name the base by its id on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct"
        problems.append(Problem(f"--base {request.base} is a path that only this machine has", help=help))
    if request.public and request.push is None:
        problems.append(Problem("--public is for --push", help="add --push OWNER/NAME, or leave it out"))
    if request.push is not None and form == "adapter" and not (request.base or source.hub_base):
        what = f"the base of '{source.reference}', {Path(source.spec.base).name}, is not on the hub"
        problems.append(Problem(f"{what}, so nobody could load its adapter", help="add --merge, or --base OWNER/NAME"))
    if problems:
        raise RecipeError(problems)
