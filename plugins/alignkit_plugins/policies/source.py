"""A stage with a model: found in the folder of its run, with its record, its weights and its base
model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.commands import refuse
from alignkit.errors import RunFailed, did_you_mean
from alignkit.io.results import (
    RECIPE,
    Results,
    check_results,
    find_result,
    is_result_name,
    read_record,
    results_of_stage,
)
from alignkit.io.text import is_file
from alignkit.recipe.schema import NAME_PATTERN
from alignkit.recipe.yaml import shipped_recipe
from alignkit.settings import ModelSpec

if TYPE_CHECKING:
    from alignkit.models.adapters import Base

RUNS = Path("runs")  # where runs are by default
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A trained model in a run. reference: `align`, `align@2` or `align@ppo`. folder: of its
    weights.

    record: its stage.json.
    """

    run: Path
    stage: str
    reference: str
    folder: Path
    record: Mapping[str, Any]

    @property
    def depends_on(self) -> Mapping[str, Any]:
        """Everything that the stage's result depends on, as the run recorded it."""
        return self.record["depends_on"]

    @property
    def label(self) -> str:
        """`quickstart-align`: what to call it outside of its run."""
        return f"{self.run.resolve().name}-{self.reference.replace('@', '-')}"

    @cached_property
    def spec(self) -> ModelSpec:
        """The settings of its base model, when it was trained. Its tokenizer holds the chat
        template already.
        """
        return ModelSpec.model_validate({**self.depends_on["model"], "chat_template": None})

    @cached_property
    def is_adapter(self) -> bool:
        """Whether its weights are those of an adapter."""
        return (self.folder / "adapter_config.json").is_file()

    @cached_property
    def is_reward(self) -> bool:
        """Whether it is a reward model."""
        from alignkit.models.loading import has_score

        return has_score(self.folder)

    @cached_property
    def base(self) -> Base:
        """Its base model, as the adapter names it; one that an adapter of a run names always
        exists.
        """
        from alignkit.models.adapters import Base
        from alignkit.models.loading import read_json

        if not self.is_adapter:
            return Base(self.spec.base, self.spec.base, self.spec.revision)
        saved = read_json(self.folder / "adapter_config.json")
        return Base(
            self.spec.base,
            str(saved.get("base_model_name_or_path") or self.spec.base),
            saved.get("revision"),
        )

    @property
    def base_digest(self) -> str | None:
        """SHA-256 of the base's weights, when the adapter was trained; None if it was not
        recorded.
        """
        from alignkit.models.adapters import ORIGIN
        from alignkit.models.loading import read_json

        found = (
            read_json(self.folder / ORIGIN).get("base")
            if (self.folder / ORIGIN).is_file()
            else None
        )
        return found.get("weights") if isinstance(found, dict) else None

    @property
    def hub_base(self) -> str | None:
        """The base's id on the hub; None for one that only this machine has."""
        name = self.base.source
        return name if HUB_ID.fullmatch(name) and not Path(name).exists() else None


def refuse_recipe(word: str) -> None:
    """Raise RecipeError for the name of a recipe where a model is needed."""
    if word.endswith((".yaml", ".yml")) or shipped_recipe(word) is not None:
        help = f"run it, then name a result: alignkit run {word}; then runs/NAME/STAGE"
        refuse(f"{word} is a recipe, not a model", help)


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs in a folder."""
    return [file.parent for file in sorted(folder.glob(f"*/{RECIPE}"))]


def near_run(path: Path) -> str:
    """`did you mean 'runs/smoke'?`, for the run, or the stage of a run, that a path almost names;
    empty without one.
    """
    for folder in dict.fromkeys((path.parent, RUNS)):
        stages = (
            [file.parent for file in folder.glob("*/stage.json")]
            if is_file(folder / RECIPE)
            else []
        )
        if near := did_you_mean(path.name, [one.name for one in stages or runs_in(folder)]):
            return near.replace("'", "'" if folder == Path() else f"'{folder}/", 1)
    return ""


def find(text: str) -> Source:
    """The model of `RUN/STAGE`, `RUN/STAGE@K` or `RUN/STAGE@ALGORITHM`.

    Raises RecipeError if there is none, RunFailed for a damaged one.
    """
    path = Path(text)
    run, name = path.parent, path.name
    if (path / RECIPE).is_file():
        refuse(f"{text} is a run: name one of its stages", f"stages with a model: {_listed(path)}")
    if not (run / RECIPE).is_file():
        refuse_recipe(text)
        help = near_run(run) or f"write RUN/STAGE; RUN has a file {RECIPE}"
        refuse(f"{run} is not the folder of a run, so {text} is no stage", help)
    return _found(run, name, [])


def _found(run: Path, reference: str, seen: list[str]) -> Source:
    """The model of a stage, or the one that a step selected. seen: stages on the way here."""
    name, _, version = reference.partition("@")
    if is_result_name(reference) and results_of_stage(run, name):
        record = read_record(find_result(run, reference))
        return Source(run, name, reference, Results(run).artifact(reference), record)
    folder = run / name
    record = read_record(folder) if re.match(NAME_PATTERN, name) else {}
    if not record:
        if (folder / "stage.json").is_file():
            raise RunFailed(
                f"{folder / 'stage.json'} is damaged\n"
                "help: run the recipe again, which repeats the stage"
            )
        help = did_you_mean(name, _with_model(run)) or f"stages with a model: {_listed(run)}"
        refuse(f"{run} has no stage '{name}'", help)
    if not record.get("complete"):
        refuse(f"stage '{name}' of {run} is not finished", "run the recipe again: it resumes")
    store = Results(run)
    check_results(run, [name])
    if selected := record.get("policy"):
        if Path(selected).is_absolute() or name in seen:
            refuse(
                f"stage '{name}' selected {selected}, which is not of this run",
                "export it where it was trained",
            )
        return _found(run, str(selected), [*seen, name])
    if not (folder / "adapter").is_dir():
        help = f"stages with a model: {_listed(run)}"
        refuse(f"stage '{name}' of {run} is a step ({record.get('plugin')}) and has no model", help)
    return Source(
        run, name, f"{name}@{version}" if version else name, store.artifact(reference), record
    )


def _with_model(run: Path) -> Iterable[str]:
    return [
        path.parent.name
        for path in sorted(run.glob("*/adapter"))
        if read_record(path.parent).get("complete")
    ]


def _listed(run: Path) -> str:
    return ", ".join(_with_model(run)) or "none"
