"""What a name in a recipe means: pydantic's validators get a `Reading` as their context, and ask it.

A reference becomes the object that it names: a plugin with its options, a reward, data. What is wrong with it is raised
as `Mistakes`, and pydantic adds the place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import create_model

from alignkit.calls import blame, call, create
from alignkit.data.sources import DataSource, DataSpec
from alignkit.engine import LOCAL
from alignkit.errors import PluginError, Problem, did_you_mean
from alignkit.io.results import is_result_name
from alignkit.io.text import NO_FILE, absolute, exists, expanded, is_dir, is_file, is_special
from alignkit.kinds import reader_of
from alignkit.options import Options, options_of_call
from alignkit.recipe.mistakes import (
    PATH,
    Mistake,
    Mistakes,
    shown,
    validated,
    wrong,
)
from alignkit.recipe.schema import ADAPTER, BASE, RewardSpec, Stage, allowed_keys
from alignkit.registry import Component, Registration, Registry, Unresolved
from alignkit.reward import REWARD_KEY, RewardCombination
from alignkit.settings import OptimizerOptions, Settings
from alignkit.shapes import by_name

# Kind -> what alignkit itself provides, which stays text, and needs no torch.
_OWN = {
    "engine": (LOCAL,),
    "optimizer": ("adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    "schedule": ("constant", "linear", "cosine"),
}
_COMMON = {*allowed_keys(DataSource)}
_WEIGHTS = (ADAPTER, "config.json")
_TEXTS = ("stage", "policy", "from", "reward_stage")  # kinds of references whose fields are text
HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_RESERVED = (BASE, "none", "folder", "cache", "trackers")  # the last two are folders of the run


def options_of(registration: Registration, kind: str = "") -> type[Options]:
    """Return the model of a plugin's options. kind: an optimizer has those of alignkit itself, too."""
    implementation = registration.implementation
    options: type[Options] = getattr(implementation, "Options", Options)
    if callable(implementation) and not hasattr(implementation, "Options"):
        options = options_of_call(implementation)
    if kind == "optimizer":
        return create_model("Options", __base__=(options, OptimizerOptions))
    return options


@dataclass
class Reading:
    """What names mean in a recipe, or in the stage that is being read.

    folder: where relative paths start. stages: all of them, as far as they are read. stage: the one whose keys are
    read. located: the files and folders that the recipe names, by their text. problems: of other files.
    """

    registry: Registry
    folder: Path
    stages: dict[str, Stage] = field(default_factory=dict)
    stage: Stage = field(default_factory=lambda: Stage(""))
    located: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def resolve(self, kind: str, value: Any) -> Any:
        """Return what a reference means. Raises Mistakes."""
        is_text = isinstance(value, str)
        if value in _OWN.get(kind, ()) or (kind in _TEXTS and not is_text):  # pydantic says that it must be text
            return value
        read = getattr(self, f"read_{kind}", None)
        return self.component(kind, value) if read is None else read(value)

    # --- plugins

    def component(self, kind: str, value: Any) -> Component:
        """Return a plugin with its options: `name`, or `name: {options}`."""
        name, registration, raw = self.plugin(kind, value)
        if not isinstance(raw, dict):
            raise wrong(f"{PATH}: expected a mapping of options, got {shown(raw)}", keys=(name,))
        options, mistakes = validated(options_of(registration, kind), raw, self)
        if options is None:
            raise Mistakes(*(mistake.below(name) for mistake in mistakes))
        return Component(kind, name, registration, options)

    def plugin(self, kind: str, value: Any) -> tuple[str, Registration, Any]:
        """Return the name of a plugin, the plugin and its raw options."""
        name, options = self.split(kind, value)
        keys = () if isinstance(value, str) else (name,)
        others = {"reward": self.stages, "format": _COMMON}.get(kind, ())
        try:
            registration = self.registry.get(kind, name, others)
            if kind == "algorithm":
                algorithm = registration.implementation
                with blame(algorithm, "specialize", registration.label):
                    target = algorithm.specialize(options)
                registration = replace(registration, target=target, file=registration.source_path)
        except Unresolved as error:
            raise wrong(error.message, error.help, keys, bool(keys)) from None
        except PluginError as error:
            raise wrong(str(error), "", keys, bool(keys)) from None
        return name, registration, options

    def split(self, kind: str, value: Any) -> tuple[str, Any]:
        """Return the name of a plugin and its raw options."""
        if isinstance(value, str):
            return value, {}
        if not isinstance(value, dict) or len(value) != 1:
            message = f"{PATH}: expected the name of one {kind}, or one 'name: {{options}}', got {shown(value)}"
            unknown = [key for key in value if not self.registry.has(kind, key)] if isinstance(value, dict) else []
            raise wrong(message, "write options inside 'name: {...}'", (*unknown[:1],), at_key=bool(unknown))
        ((name, options),) = value.items()
        return name, {} if options is None else options

    # --- names

    def read_stage_name(self, name: str) -> str:
        """The name of a stage."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in _RESERVED:
            help = f"use letters, digits, '_' and '-', and none of the words {', '.join(_RESERVED)}"
            raise wrong(f"'{name}' cannot be the name of a stage", help, at_key=True)
        return name

    # --- stages and weights

    def read_stage(self, value: str) -> str:
        """`base`, `stage` or `stage@k`."""
        self._require(value)
        return self._role(value)

    def _role(self, model: str) -> str:
        self.stage.roles = (*dict.fromkeys((*self.stage.roles, model)),)
        return model

    def _require(self, reference: str) -> None:
        """Check that a stage exists, perhaps with this version, and let this stage wait for it."""
        if reference == BASE:
            return
        name, at, version = reference.partition("@")
        if name not in self.stages:
            raise wrong(f"no stage '{reference}'", self._near_stage(name))
        if name == self.stage.name:
            raise wrong(f"stage '{name}' refers to itself")
        if at and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise wrong(f"'{name}@{version}': '@' must be followed by an epoch or iteration number, starting at 1")
        if at and self.stages[name].registration is not None:
            self._check_version(self.stages[name], int(version))
        self.stage.upstream = (*dict.fromkeys((*self.stage.upstream, name)),)

    def _check_version(self, stage: Stage, version: int) -> None:
        """Check that a stage keeps its versions, and has as many."""
        if stage.kind == "step" or not stage.written.get("keep_versions"):
            raise wrong(f"stage '{stage.name}' keeps only its last version", "add 'keep_versions: true' to it")
        unit = "iterations" if stage.online else "epochs"
        default = getattr(stage.plugin.defaults, unit) or Settings.model_fields[unit].default
        count = stage.written.get(unit) or default
        if isinstance(count, int) and version > count:
            raise wrong(f"'{stage.name}@{version}': stage '{stage.name}' has only {count} {unit}")

    def _near_stage(self, name: str) -> str:
        names = [*self.stages, BASE]
        return did_you_mean(name, names) or f"stages: {', '.join(names)}"

    def trains_reward(self, reference: str) -> bool | None:
        """Whether a stage trains a reward model; None if that is unknown."""
        stage = self.stages.get(reference.partition("@")[0])
        return stage.trains_reward if stage is not None else None

    def is_stage(self, reference: str) -> bool:
        """Whether a text names `base` or a stage."""
        return reference.partition("@")[0] in {*self.stages, BASE}

    def _policy(self, value: str) -> str:
        if self.trains_reward(value):
            raise wrong(f"'{value}' is a reward model, but a policy is needed here")
        return value

    def read_reward_stage(self, value: str) -> str:
        """A stage that trains a reward model, or a folder with one."""
        if self.trains_reward(self.read_stage(value)) is False:
            raise wrong(f"'{value}' does not train a reward model", "name a stage that trains a reward model")
        return value

    def read_policy(self, value: str) -> str:
        """A stage that trains no reward model, `STAGE@ALGORITHM`, or a folder with an adapter or a whole model."""
        if is_result_name(value) and value.partition("@")[0] in self.stages:
            return self._result(value)
        if not self.is_stage(value) and ("/" in value or is_dir(self.locate(value))):  # else it is misspelled
            return self._weights(value)
        return self._policy(self.read_stage(value))

    def _result(self, value: str) -> str:
        """A result of a stage that the run's folder keeps, such as `align@ppo`."""
        stage, _, result = value.partition("@")
        algorithm = result.partition("~")[0]
        self._require(stage)
        if not self.registry.has("algorithm", algorithm):
            message = f"'{value}': '@' must be followed by an iteration number or the algorithm that made the result"
            raise wrong(message, did_you_mean(algorithm, self.registry.names("algorithm")))
        if self.stages[stage].kind == "step" or self.stages[stage].trains_reward:
            raise wrong(f"'{value}': stage '{stage}' does not train a policy")
        return self._role(value)

    def read_from(self, value: str) -> str:
        """A stage, or the absolute path of a folder that holds an adapter or a model. A stage comes first."""
        if not self.is_stage(value):
            return self._weights(value)
        self.read_stage(value)
        return value if self.stage.trains_reward else self._policy(value)

    def _weights(self, name: str) -> str:
        folder = self._folder(name)
        self.stage.folders = (*dict.fromkeys((*self.stage.folders, folder)),)
        return self._role(folder)

    def _folder(self, name: str, keys: tuple[str, ...] = ()) -> str:
        """The absolute path of a folder with weights. keys: under which it is named."""
        folder = self.locate(name)
        if not is_dir(folder):
            raise wrong(f"'{name}' is neither a stage nor a folder", self._near_stage(name), keys)
        if not any((folder / file).is_file() for file in _WEIGHTS):
            inner = next((each for each in ("adapter", "model") if is_dir(folder / each)), None)
            message = f"folder '{name}' holds neither an adapter (adapter_config.json) nor a model (config.json)"
            raise wrong(message, f"did you mean '{name.rstrip('/')}/{inner}'?" if inner else "", keys)
        return str(folder)

    # --- rewards

    def read_reward(self, value: Any) -> RewardSpec:
        """A stage that trains a reward model, `{folder: PATH}`, a plugin, or a combination of these.

        A stage comes before a plugin with its name.
        """
        if isinstance(value, RewardSpec):  # an option of a combination
            return value
        name, folder = self.split("reward", value)
        if name == "folder" and isinstance(folder, str):
            return RewardSpec("folder", self._role(self._folder(folder, ("folder",))))
        if name.partition("@")[0] in self.stages:
            return self._reward_stage(name, isinstance(value, str))
        component = self.component("reward", value)
        if issubclass(component.registration.implementation, RewardCombination):
            return self.combination(component)
        return RewardSpec("reward", component.name, component)

    def _reward_stage(self, value: str, is_plain: bool) -> RewardSpec:
        if not is_plain:
            message = f"'{value}' is a stage and takes no options here"
            raise wrong(message, f"write just '{value}'", (value,), at_key=True)
        self.read_stage(value)
        if self.trains_reward(value) is False:
            name = value.partition("@")[0]
            raise wrong(f"stage '{name}' cannot be a reward: it does not train a reward model")
        return RewardSpec("stage", value)

    def combination(self, component: Component) -> RewardSpec:
        """A combination with its parts."""
        name = component.name
        try:
            combination = create(component)
            parts = dict(call(combination, "parts", returns=_check_parts))
            with blame(combination, "whitens"):
                whitens = bool(combination.whitens)
        except PluginError as error:
            raise wrong(str(error), keys=(name,)) from None
        if REWARD_KEY in parts:
            message = f"a part of '{name}' cannot be named '{REWARD_KEY}', which is the name of the whole"
            raise wrong(message, "rename the part", (name,))
        children: dict[str, RewardSpec] = {}
        mistakes: list[Mistake] = []
        for key, part in parts.items():
            try:
                children[key] = self.read_reward(part)  # `parts` may return what is no RewardRef option
            except Mistakes as error:
                mistakes += [mistake.below(name, key) for mistake in error.mistakes]
            if key in children and children[key].whitens and not combination.sums:
                message = f"reward '{name}' compares raw scores, so its part '{key}' cannot be whitened"
                help = "set 'whiten: false' in the part, or leave it out"
                mistakes.append(Mistake(message, help, (name, key)))
        if mistakes:
            raise Mistakes(*mistakes)
        whitens = whitens or any(part.whitens for part in children.values())
        return RewardSpec("combine", name, component, children, whitens)

    # --- data

    def read_data(self, value: Any) -> DataSpec:
        """One source of data, or a list of them."""
        if value == []:
            raise wrong(f"{PATH}: expected at least one data source, got an empty list")
        sources: list[DataSource] = []
        mistakes: list[Mistake] = []
        for index, part in enumerate(value if isinstance(value, list) else [value]):
            try:
                sources.append(self._source(part))
            except Mistakes as error:
                keys = (index,) if isinstance(value, list) else ()
                mistakes += [mistake.below(*keys) for mistake in error.mistakes]
        if mistakes:
            raise Mistakes(*mistakes)
        if len({source.part for source in sources if source.validation}) > 1:
            raise wrong(f"{PATH}: 'part' must be the same in all sources with 'validation'")
        return DataSpec(tuple(sources))

    def _source(self, raw: Any) -> DataSource:
        """A source: `FILE`, `STAGE`, a mapping of keys, `{FORMAT: FILE}`, or `{FORMAT: {keys and options}}`."""
        keys, format = raw, ""
        place: tuple[str, ...] = ()
        if isinstance(raw, dict) and len(raw) == 1 and not raw.keys() & _COMMON:
            ((format, keys),) = raw.items()
            place = (format,)
        is_text = isinstance(keys, str)
        if is_text:
            keys = {"stage" if keys in self.stages and not format else "path": keys}
        if not isinstance(keys, dict):
            expected = "expected a file, a stage, or a mapping such as {path: FILE}"
            raise wrong(f"{PATH}: {expected}, got {shown(keys)}", keys=place)
        component, common, mistakes = None, keys, []
        if format:
            common = {key: value for key, value in keys.items() if key in _COMMON}
            options = {key: value for key, value in keys.items() if key not in _COMMON}
            try:
                component = self.component("format", {format: options})
            except Mistakes as error:
                mistakes += [mistake.known(_COMMON) for mistake in error.mistakes]
        formats = self.registry.names("format")
        hints = {name: f"write the path inside, as in '{{{name}: {{path: FILE, ...}}}}'" for name in formats}
        source, others = validated(DataSource, common, self, hints)
        if is_text:
            others = [replace(mistake, keys=()) for mistake in others]
        mistakes += [mistake.known(formats).below(*place) for mistake in others]
        if source is None or mistakes:
            raise Mistakes(*mistakes)
        return source.in_format(component)

    def read_data_stage(self, value: str) -> str:
        """A step that produces data."""
        self._require(value)
        stage = self.stages.get(value)
        if stage is None or (stage.kind == "algorithm" and stage.registration is not None):
            raise wrong(f"'{value}' does not produce data; only steps do")
        return value

    # --- files

    def locate(self, text: str) -> Path:
        """Return the absolute path of a file or folder, whether or not it exists."""
        path = expanded(text)
        if path.is_absolute():
            return path
        path = absolute(self.folder / path)
        if exists(path):
            self.located[text] = str(path)
        return path

    def file(self, value: Path) -> Path:
        """Return the absolute path of an option's file. One that runs write need not exist yet."""
        path = self.locate(str(value))
        if not exists(path) and not getattr(reader_of(path), "grows", False):
            raise wrong(f"no such file: {value}", f"looked for {path}")
        return path

    def read_data_file(self, value: Path) -> Path:
        """The absolute path of a file of data."""
        path = self.locate(str(value))
        if is_special(path):
            raise wrong(f"{value}: {NO_FILE}")
        if exists(path):
            return path
        near = [*self.stages]
        if is_dir(path.parent):
            near += sorted(item.name for item in path.parent.iterdir())
        raise wrong(f"no such file or stage: {value}", did_you_mean(path.name, near) or f"looked in {path.parent}")

    def read_hub(self, value: str) -> str:
        """The absolute path of a folder, or a name on the hub. Raises Mistakes for what can only be a folder."""
        folder = self.locate(value)
        if is_dir(folder):
            return str(folder)
        if value.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(value):
            raise wrong(f"no such folder: {value}", f"looked for {folder}")
        return value

    def read_model(self, value: str) -> str:
        """A base model: a plugin's name and a hub id stay as they are, and a folder becomes absolute."""
        name, separator, path = value.partition("://")
        if separator or self.registry.has("model", value):
            self.plugin("model", name)
            if path and exists(file := self.locate(path)):
                self.located[value] = f"{name}://{file}"
            return self.located.get(value, value)
        base = self.read_hub(value)
        # Few hub ids have no namespace, so a misspelled plugin is more likely.
        if base == value and "/" not in value:
            names = self.registry.names("model")
            if did_you_mean(value, names) or any(name.startswith(value) for name in names):
                self.plugin("model", value)
        return base

    def read_template(self, value: str) -> str:
        """A chat template: a plugin's name, or a file, which stays as it is written if it is in the recipe's folder."""
        path = self.locate(value)
        if self.registry.has("template", value):
            self.plugin("template", value)
        elif not is_file(path):
            names = self.registry.names("template")
            message = f"{PATH}: '{value}' is neither a template ({', '.join(names)}) nor a Jinja file"
            raise wrong(message, did_you_mean(value, names) or f"looked for {path}")
        return value


def _check_parts(parts: Any) -> None:
    """Check the parts of a combination."""
    by_name(parts, "rewards", lambda name, part: bool(name) and isinstance(part, str | Mapping | RewardSpec))
