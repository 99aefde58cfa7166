"""Models named on a command line, found with the settings that they need: stages of runs, folders,
ids on the hub.

A word is `RUN/STAGE`, `RUN/STAGE@K` or a result such as `RUN/align@ppo`, `RUN/base` for the base
model of a run, a folder with an adapter or a whole model, the name of a model plugin, or an id on
the hub.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.commands import refuse
from alignkit.io.results import RECIPE
from alignkit.io.text import is_dir, is_file, printable
from alignkit.plugins import plugins
from alignkit.recipe.schema import BASE
from alignkit.recipe.yaml import plain_data
from alignkit.settings import ModelSpec
from alignkit_plugins.policies.source import Source, find, near_run, refuse_recipe, runs_in

CONFIG = "config.json"  # of a whole model
ADAPTER = "adapter_config.json"
WORDS = "name RUN/STAGE, a model's folder, or an id on the hub"
_SCALE = ("r", "lora_alpha", "use_rslora")
# Settings that a whole model's folder replaces
_NOT_OF_WHOLE = ("base", "revision", "lora", "chat_template")


@dataclass(frozen=True)
class NamedModel:
    """A model that a word means.

    spec: keys of `model` for its base; empty for a reward model that is whole, and needs none.
    folder: its weights; None for the base itself, which is also what a whole policy is. reward:
    whether it is a reward model. label: what to call it. rollout: how its training sampled; empty
    if that is unknown.
    """

    spec: Mapping[str, Any]
    folder: Path | None = None
    reward: bool = False
    label: str = ""
    rollout: Mapping[str, Any] = field(default_factory=dict)


def named_model(word: str) -> NamedModel:
    """The model that a word means. Raises RecipeError or RunFailed for a stage or a folder that is
    none.
    """
    path = Path(word)
    if path.name == "adapter" and is_file(path.parent.parent / RECIPE):
        path = path.parent
    if in_run(str(path)):
        if path.name == BASE:
            return NamedModel(
                _plain(_model_of(path.parent)), label=f"{path.parent.resolve().name}-{BASE}"
            )
        return _of_stage(find(str(path)))
    if is_file(path / RECIPE):
        find(word)  # which says that it is a run, and lists its stages
    if is_dir(path):
        return _of_folder(path.resolve())
    refuse_recipe(word)
    if word == BASE:
        refuse(
            "'base' needs the run whose base model it is",
            "write RUN/base, such as runs/quickstart/base",
        )
    # OWNER/NAME is an id on the hub, unless OWNER is a folder of runs.
    if (
        len(path.parts) > 2
        or word.startswith((".", "/"))
        or (len(path.parts) == 2 and runs_in(path.parent))
    ):
        refuse(f"there is no folder {word}", near_run(path) or WORDS)
    if len(path.parts) == 1 and not plugins().has("model", word) and (near := near_run(path)):
        print(
            printable(f"note: {word} is no run, so it is taken as a model of the hub; {near}"),
            file=sys.stderr,
        )
    return NamedModel({"base": word}, label=path.name)


def in_run(word: str) -> bool:
    """Whether a word names something in the folder of a run."""
    path = Path(word)
    return path.name not in ("", ".", "..") and is_file(path.parent / RECIPE)


def is_model(word: str) -> bool:
    """Whether a word names a stage of a run, or a folder with a model."""
    return in_run(word) or is_file(Path(word) / ADAPTER) or is_file(Path(word) / CONFIG)


def _model_of(run: Path) -> ModelSpec:
    """The base model of a run as its recipe has it, with absolute paths."""
    recipe = plain_data((run / RECIPE).read_text(encoding="utf-8"), str(run / RECIPE))
    return ModelSpec.model_validate(recipe.get("model", {}))


def _of_stage(source: Source) -> NamedModel:
    spec = _spec_of(source)
    settings = source.depends_on.get("settings") or {}
    rollout = settings.get("rollout") or {} if settings.get("prompts") else {}
    if source.is_adapter:
        return NamedModel(spec, source.folder.resolve(), source.is_reward, source.label, rollout)
    return _whole(source.folder.resolve(), spec, source.is_reward, source.label, rollout)


def _whole(
    folder: Path, spec: Mapping[str, Any], reward: bool, label: str, rollout: Mapping[str, Any]
) -> NamedModel:
    """A whole model: a base of its own, or a reward model that needs none."""
    if reward:
        return NamedModel({}, folder, True, label)
    own = {key: value for key, value in spec.items() if key not in _NOT_OF_WHOLE}
    return NamedModel({**own, "base": str(folder)}, label=label, rollout=rollout)


def _spec_of(source: Source) -> dict[str, Any]:
    """The settings of a stage's base model. The record names a template file without its folder;
    the recipe has it.
    """
    recorded, spec = source.depends_on["model"], _model_of(source.run)
    template = Path(spec.chat_template or "")
    found = {
        **spec.model_dump(),
        "chat_template": template.name if template.is_file() else spec.chat_template,
    }
    return _plain(spec if found == recorded else ModelSpec.model_validate(recorded))


def _plain(spec: ModelSpec) -> dict[str, Any]:
    return spec.model_dump(exclude_defaults=True)


def _of_folder(folder: Path) -> NamedModel:
    """A model outside of a run: an adapter for the base that it names, a base model, or a reward
    model.
    """
    from alignkit.models.adapters import base_name
    from alignkit.models.loading import has_score, read_json

    if is_file(folder / ADAPTER):
        saved = read_json(folder / ADAPTER)
        lora = {key: saved[key] for key in _SCALE if saved.get(key) is not None}
        spec = {"base": base_name(folder), "revision": saved.get("revision"), "lora": lora}
        return NamedModel(
            _plain(ModelSpec.model_validate(spec)), folder, has_score(folder), folder.name
        )
    if is_file(folder / CONFIG):
        return _whole(folder, {}, has_score(folder), folder.name, {})
    inner = next((name for name in ("adapter", "model") if is_dir(folder / name)), None)
    help = f"did you mean {folder / inner}?" if inner else WORDS
    refuse(f"folder {folder} holds neither an adapter ({ADAPTER}) nor a model ({CONFIG})", help)
