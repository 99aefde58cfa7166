"""What is asked of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RecipeError

if TYPE_CHECKING:
    from alignkit_plugins.policies.source import Source


@dataclass(frozen=True)
class Request:
    """How a model is exported: see the options of the command."""

    out: Path
    merge: bool = False
    base: str | None = None
    license: str | None = None
    push: str | None = None

    def check(self, source: Source) -> None:
        """Raise RecipeError for a request that cannot be met."""
        problems = []
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            problems.append(
                Problem(f"{self.out} exists already", help="choose another folder, or delete it")
            )
        if self.base is not None and self.base.startswith(("/", "~")):
            help = "name the base by its id on the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct"
            problems.append(
                Problem(f"--base {self.base} is a path that only this machine has", help=help)
            )
        on_hub = self.base or source.hub_base
        if self.push is not None and source.is_adapter and not (self.merge or on_hub):
            what = (
                f"the base of '{source.reference}', {Path(source.spec.base).name}, is not on the "
                "hub"
            )
            help = "add --merge, or --base OWNER/NAME"
            problems.append(Problem(f"{what}, so nobody could load its adapter", help=help))
        if problems:
            raise RecipeError(problems)
