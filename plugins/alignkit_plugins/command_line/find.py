"""Find what a word of a command line names: a run, a stage of one, a folder with weights, or a
model of the hub.

A word is `RUN`, `RUN/STAGE`, `RUN/STAGE@2` (a kept version), `RUN/align@ppo` (a result), `RUN/base`
(the base model of a run), a folder with an adapter or a whole model, the name of a model plugin, or
an id on the hub.

`align@ppo` is the newest result of align that ppo made, and `align@ppo~1` the one before it. `align@2`
is something else: the version after epoch or iteration 2 of the current result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.contract.settings import ModelSpec
from alignkit.errors import RunFailed, did_you_mean, refuse
from alignkit.io.results import (
    CELLS,
    KEY,
    RECIPE,
    RESULTS,
    Results,
    damage_of,
    read_record,
)
from alignkit.io.text import is_dir, is_file
from alignkit.models.saved import ALL, base_name, has_score, read_json, scale_of
from alignkit.recipe.schema import ADAPTER, BASE
from alignkit.recipe.yaml import plain_data, shipped_recipe

RUNS = Path("runs")  # the default folder of runs
WHOLE = "config.json"  # a folder with a whole model has it
FORMS = "name RUN/STAGE, a model's folder, or an id on the hub"
# Keys of `model` that a whole model's folder replaces
_OF_BASE = ("revision", "lora", "chat_template")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*@(?!all$)[A-Za-z_][^@/]*")


@dataclass(frozen=True)
class Model:
    """A model that a word names, as a recipe describes it.

    Attributes:
        label: What to call it: `quickstart-align` for runs/quickstart/align.
        keys: Keys of `model` in a recipe: an adapter's base model, or the model itself.
        folder: The folder of its weights; None if `keys` name them.
        run: The run that trained it; None if it is not of a run.
        name: Its name there: `align`, `align@2` or `align@ppo`.
        record: The stage.json of the stage that trained it.
    """

    label: str
    keys: Mapping[str, Any]
    folder: Path | None = None
    run: Path | None = None
    name: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def is_adapter(self) -> bool:
        """Whether its weights are those of an adapter."""
        return self.folder is not None and is_file(self.folder / ADAPTER)

    @cached_property
    def is_reward(self) -> bool:
        """Whether it is a reward model."""
        return self.folder is not None and has_score(self.folder)

    @property
    def rollout(self) -> Mapping[str, Any]:
        """How its training sampled, as keys of `rollout`; empty if it learned from no samples."""
        settings = self.record["depends_on"]["settings"] if self.record else {}
        return (settings.get("prompts") and settings.get("rollout")) or {}


def find(word: str) -> Model:
    """Return the model that a word names.

    Nothing is downloaded.

    Raises: RecipeError: If there is no such model, with the nearest name. RunFailed: If the result
    of a stage is damaged.
    """
    path = Path(word)
    run, stage = _in_run(path)
    if run is not None:
        if stage == BASE:
            return Model(f"{run.resolve().name}-{BASE}", _keys(_recipe_model(run)))
        if stage:
            return _of_stage(run, stage)
        refuse(f"{word} is a run: name one of its stages", _listed(run))
    if is_dir(path):
        return _of_folder(path.resolve())
    if path.suffix in (".yaml", ".yml") or shipped_recipe(word) is not None:
        help = f"run it, then name a result: alignkit run {word}; then runs/NAME/STAGE"
        refuse(f"{word} is a recipe, not a model", help)
    if word == BASE:
        refuse(
            "'base' needs the run whose base model it is",
            "write RUN/base, such as runs/quickstart/base",
        )
    # OWNER/NAME is an id on the hub, unless OWNER is a folder of runs.
    if (
        len(path.parts) > 2
        or word.startswith((".", "/"))
        or (path.parent.name and runs_in(path.parent))
    ):
        refuse(f"there is no folder {word}", near(path) or near(path.parent) or FORMS)
    return Model(path.name, {"base": word})


def find_run(word: str | Path) -> tuple[Path, str]:
    """Return the folder of the run that a word names, and the stage: `align`, `align@ppo`; empty
    for the whole run.

    Raises RecipeError for anything else, with the nearest name.
    """
    path = Path(word)
    run, stage = _in_run(path)
    if run is None:
        help = (
            near(path) or near(path.parent) or "name the folder of a run, such as runs/quickstart"
        )
        if is_result_name(path.name):
            help = f"write RUN/{path.name}, with the folder of its run"
        why = "there is no such folder"
        if is_dir(path):
            why = f"it has no {RECIPE}"
        elif is_file(path):
            why = "it is a file"
        refuse(f"{word} is no run: {why}", help)
    return run, stage


def is_model(word: str) -> bool:
    """Whether a word names a stage of a run, or a folder with a model: nothing that a reward or a
    file is called.
    """
    path = Path(word)
    return bool(_in_run(path)[1]) or is_file(path / ADAPTER) or is_file(path / WHOLE)


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder, and of those that have cells only."""
    found = [*folder.glob(f"*/{RECIPE}"), *folder.glob(f"*/{CELLS}")]
    return sorted({each.parent for each in found})


def near(path: Path | str) -> str:
    """Return `did you mean 'runs/smoke'?`: the run, or the stage of a run, that a path almost
    names; empty for none.
    """
    path = Path(path)
    for folder in dict.fromkeys((path.parent, RUNS)):
        names = [one.name for one in runs_in(folder)]
        if is_file(folder / RECIPE):
            names = [file.parent.name for file in folder.glob("*/stage.json")]
        if hint := did_you_mean(path.name, names):
            return hint if folder == Path() else hint.replace("'", f"'{folder}/", 1)
    return ""


def is_result_name(reference: str) -> bool:
    """Whether a reference is one like `align@ppo`, and not like `align`, `align@2` or
    `align@all`.
    """
    return bool(_NAME.fullmatch(reference))


def folders_of(run: Path, stage: str) -> list[Path]:
    """The folders of a stage's results."""
    return sorted((run / RESULTS).glob(f"{stage}-{KEY}"))


def results_of_stage(run: Path, stage: str) -> dict[str, Path]:
    """The folders of a training stage's complete results by name, the newest first; none for a
    step.
    """
    results, made = dict[str, Path](), Counter[str]()
    records = [(read_record(folder), folder) for folder in folders_of(run, stage)]
    for record, folder in sorted(
        records, key=lambda one: one[0].get("finished", 0.0), reverse=True
    ):
        if not record.get("complete") or record.get("depends_on", {}).get("settings") is None:
            continue
        name = f"{stage}@{record['plugin']}"
        age = made[name]
        made[name] += 1
        if age:
            name += f"~{age}"
        results[name] = folder
    return results


def find_result(run: Path, reference: str) -> Path:
    """The folder of the result with a name. Raises RecipeError if the run has none with it."""
    stage = reference.partition("@")[0]
    results = results_of_stage(run, stage)
    if reference in results:
        return results[reference]
    text = f"{run} has no result {reference}; results of {stage}: {', '.join(results) or 'none'}"
    refuse(text, did_you_mean(reference, results))


def _in_run(path: Path) -> tuple[Path | None, str]:
    """The run of a path, and the stage that it names; an empty one for the run itself."""
    if is_file(path / RECIPE):
        return path, ""
    if path.name == "adapter" and is_file(path.parent.parent / RECIPE):
        path = path.parent
    if path.name in ("", ".", "..") or not is_file(path.parent / RECIPE):
        return None, ""
    return path.parent, path.name


def _of_stage(run: Path, name: str) -> Model:
    """The model that a stage trained, or the one that it selected."""
    stage = name.partition("@")[0]
    folder = find_result(run, name) if is_result_name(name) else run / stage
    if (folder / "stage.json").exists() and (damage := damage_of(folder)):
        raise RunFailed(f"{damage}\nhelp: run the recipe that made {name} again")
    record = read_record(folder)
    if not record:
        help = did_you_mean(stage, _with_model(run)) or _listed(run)
        refuse(f"{run} has no stage '{stage}'", help)
    if not record.get("complete"):
        refuse(f"stage '{stage}' of {run} is not finished", "run the recipe again: it resumes")
    if selected := record.get("policy"):
        return find(str(run / selected))
    if not is_dir(folder / "adapter"):
        text = f"stage '{stage}' of {run} is a step ({record['plugin']}) and has no model"
        refuse(text, _listed(run))
    weights = (folder / "adapter").resolve()
    if folder == run / stage:
        weights = Results(run).artifact(name).resolve()
    keys, template = dict(record["depends_on"]["model"]), _recipe_model(run).get("chat_template")
    if Path(template or "").name == (keys["chat_template"] or ""):
        # The record names a file without its folder.
        keys["chat_template"] = template
    if not is_file(weights / ADAPTER):
        keys = {key: value for key, value in keys.items() if key not in _OF_BASE} | {
            "base": str(weights)
        }
    label = f"{run.resolve().name}-{name.replace('@', '-')}"
    return Model(label, _keys(keys), weights, run, name, record)


def _of_folder(folder: Path) -> Model:
    """A model outside of a run: an adapter for the base that it names, or a whole model."""
    if is_file(folder / ADAPTER):
        saved = read_json(folder / ADAPTER)
        keys = {
            "base": base_name(folder),
            "revision": saved.get("revision"),
            "lora": {**scale_of(saved), "target_modules": saved.get("target_modules") or ALL},
        }
        if is_file(template := folder / "chat_template.jinja"):
            # It may differ from the base model's.
            keys["chat_template"] = str(template)
        return Model(folder.name, _keys(keys), folder)
    if is_file(folder / WHOLE):
        return Model(folder.name, {"base": str(folder)}, folder)
    refuse(f"folder {folder} holds neither an adapter ({ADAPTER}) nor a model ({WHOLE})", FORMS)


def _recipe_model(run: Path) -> Mapping[str, Any]:
    """The keys of `model` in the recipe of a run, with absolute paths."""
    recipe = plain_data((run / RECIPE).read_text("utf-8"), str(run / RECIPE))
    return recipe.get("model", {})


def _keys(model: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `model` without those that have their defaults."""
    return ModelSpec.model_validate(model).model_dump(exclude_defaults=True)


def _with_model(run: Path) -> list[str]:
    """The stages of a run that have a model."""
    stages = [folder.parent for folder in sorted(run.glob("*/adapter"))]
    return [stage.name for stage in stages if read_record(stage).get("complete")]


def _listed(run: Path) -> str:
    return f"stages with a model: {', '.join(_with_model(run)) or 'none'}"
