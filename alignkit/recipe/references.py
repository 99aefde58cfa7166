"""What a name in a recipe means: pydantic's validators get a `Resolver` as their context, and ask
it.

A reference becomes the object that it names: a plugin with its options, a reward, data. What is
wrong with it is raised as `Mistakes`, and pydantic adds the place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from pydantic import create_model

from alignkit.contract.engine import LOCAL
from alignkit.contract.kinds import SCHEDULES
from alignkit.contract.options import Options, options_of_call
from alignkit.contract.reward import REWARD_KEY, RewardCombination
from alignkit.contract.settings import OptimizerOptions
from alignkit.errors import PluginError, Problem, did_you_mean
from alignkit.host.calls import call, create
from alignkit.host.plugins import reader_of
from alignkit.host.registry import Component, Registration, Registry
from alignkit.host.returns import by_name
from alignkit.io.text import NO_FILE, absolute, exists, expanded, is_dir, is_file, is_special
from alignkit.recipe.mistakes import PATH, Mistakes, shown, validated, wrong
from alignkit.recipe.schema import ADAPTER, BASE, RewardSpec, Stage, allowed_keys
from alignkit.recipe.sources import DataSource, DataSpec
from alignkit.recipe.yaml import Keys, mapping

# Kind -> what alignkit itself provides, which stays text, and needs no torch.
_OWN = {
    "engine": (LOCAL,),
    "optimizer": ("adamw",),
    "schedule": (*SCHEDULES,),
}
_COMMON = dict.fromkeys(allowed_keys(DataSource), "")
HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}(/[\w.-]{1,96})?")
_RESERVED = (BASE, "none", "folder", "cache", "trackers")  # the last two are folders of the run


def options_of(registration: Registration) -> type[Options]:
    """Return the model of a plugin's options. An optimizer has those of alignkit itself, too."""
    implementation = registration.implementation
    options: type[Options] = getattr(implementation, "Options", Options)
    if callable(implementation) and not hasattr(implementation, "Options"):
        options = options_of_call(implementation)
    if registration.kind == "optimizer":
        return create_model("Options", __base__=(options, OptimizerOptions))
    return options


@dataclass
class Resolver:
    """What names mean in a recipe, or in the stage that is being read.

    folder: where relative paths start. stages: all of them, as far as they are read. stage: the one
    whose keys are read. located: the files and folders that the recipe names, by their text.
    problems: of other files.
    """

    registry: Registry
    folder: Path
    stages: dict[str, Stage] = field(default_factory=dict)
    stage: Stage = field(default_factory=lambda: Stage(""))
    located: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def resolve(self, kind: str, value: Any) -> Any:
        """Return what a reference means. Raises Mistakes."""
        if value in _OWN.get(kind, ()):
            return value
        read = getattr(self, f"read_{kind}", None)
        if read is not None:
            return read(value)
        name, registration, raw = self.plugin(kind, value)
        if registration.name == value and getattr(registration.target, "stays_a_name", False):
            return value
        return self.with_options(name, registration, raw, name)

    # --- plugins

    def component(self, kind: str, value: Any) -> Component:
        """Return a plugin with its options: `name`, or `name: {options}`."""
        name, registration, raw = self.plugin(kind, value)
        return self.with_options(name, registration, raw, name)

    def with_options(
        self, name: str, registration: Registration, raw: Any, *keys: str
    ) -> Component:
        """Return a plugin with options, which are written below some keys."""
        others = _COMMON if registration.kind == "format" else {}
        options, mistakes = validated(options_of(registration), raw, self, others)
        if options is None:
            raise Mistakes(*(mistake.below(*keys) for mistake in mistakes))
        return Component(registration.kind, name, registration, options)

    def plugin(self, kind: str, value: Any) -> tuple[str, Registration, Any]:
        """Return the name of a plugin, the plugin and its raw options."""
        name, options = self.split(kind, value)
        keys = () if isinstance(value, str) else (name,)
        others: Any = {"reward": self.stages, "format": _COMMON}.get(kind, ())
        try:
            registration = self.registry.get(kind, name, others)
        except PluginError as error:
            message, _, help = str(error).partition("\n  ")
            raise wrong(message, help, keys, bool(keys)) from None
        return name, registration, options

    def split(self, kind: str, value: Any) -> tuple[str, Any]:
        """Return the name of a plugin and its raw options."""
        if isinstance(value, str):
            return value, {}
        if not isinstance(value, dict) or len(value) != 1:
            message = (
                f"{PATH}: expected the name of one {kind}, or one 'name: {{options}}', got "
                f"{shown(value)}"
            )
            unknown = [key for key in mapping(value) if not self.registry.has(kind, key)]
            raise wrong(
                message, "write options inside 'name: {...}'", (*unknown[:1],), at_key=bool(unknown)
            )
        ((name, options),) = value.items()
        return name, {} if options is None else options

    # --- stages and weights

    def read_stage_name(self, name: str) -> str:
        """The name of a stage."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in _RESERVED:
            help = f"use letters, digits, '_' and '-', and none of the words {', '.join(_RESERVED)}"
            raise wrong(f"'{name}' cannot be the name of a stage", help, at_key=True)
        return name

    def read_stage(self, value: str) -> str:
        """`base`, `stage` or `stage@k`."""
        if value != BASE:
            name, at, version = value.partition("@")
            self._wait_for(name)
            if at and not re.fullmatch("[1-9][0-9]*", version):
                raise wrong(
                    f"'{value}': '@' must be followed by an epoch or iteration number, starting "
                    "at 1"
                )
            if at and not self.stages[name].written.get("keep_versions"):
                raise wrong(
                    f"stage '{name}' keeps only its last version", "add 'keep_versions: true' to it"
                )
        self.stage.roles[value] = None
        return value

    def _wait_for(self, name: str) -> None:
        """Let the stage that is read run after another one."""
        if name not in self.stages:
            raise wrong(f"no stage '{name}'", self._near_stage(name))
        if name == self.stage.name:
            raise wrong(f"stage '{name}' refers to itself")
        self.stage.upstream[name] = None

    def _near_stage(self, name: str) -> str:
        return did_you_mean(name, [*self.stages, BASE], "stages")

    def trains_reward(self, reference: str) -> bool | None:
        """Whether a stage trains a reward model; None if that is unknown."""
        return self.stages.get(reference.partition("@")[0], Stage("")).trains_reward

    def is_stage(self, reference: str) -> bool:
        """Whether a text names `base` or a stage."""
        return reference.partition("@")[0] in {*self.stages, BASE}

    def read_reward_stage(self, value: str) -> str:
        """A stage that trains a reward model."""
        if self.trains_reward(self.read_stage(value)) is False:
            raise wrong(
                f"'{value}' does not train a reward model",
                "name a stage that trains a reward model",
            )
        return value

    def read_from(self, value: str) -> str:
        """A stage, or the absolute path of a folder that holds an adapter or a model. A stage comes
        first.
        """
        if not self.is_stage(value):
            folder = self._folder(value)
            self.stage.folders[folder] = None
            return folder
        self.read_stage(value)
        if self.trains_reward(value) and not self.stage.trains_reward:
            raise wrong(f"'{value}' is a reward model, but a policy is needed here")
        return value

    read_policy = read_from  # a step trains no reward model

    def _folder(self, name: str, *keys: str) -> str:
        """The absolute path of a folder with weights. keys: under which it is named."""
        folder = self.locate(name)
        if not is_dir(folder):
            raise wrong(f"'{name}' is neither a stage nor a folder", self._near_stage(name), keys)
        if not exists(folder / ADAPTER) and not exists(folder / "config.json"):
            message = (
                f"folder '{name}' holds neither an adapter ({ADAPTER}) nor a model (config.json)"
            )
            raise wrong(
                message, "name the folder in it that does, such as 'adapter' or 'model'", keys
            )
        self.stage.roles[str(folder)] = None
        return str(folder)

    # --- rewards

    def read_reward(self, value: Any) -> RewardSpec:
        """A stage that trains a reward model, `{folder: PATH}`, a plugin, or a combination of
        these.

        A stage comes before a plugin with its name.
        """
        if isinstance(value, RewardSpec):  # an option of a combination
            return value
        if isinstance(value, str) and value.partition("@")[0] in self.stages:
            return RewardSpec("stage", self.read_reward_stage(value))
        name, folder = self.split("reward", value)
        if name == "folder" and isinstance(folder, str):
            return RewardSpec("folder", self._folder(folder, "folder"))
        component = self.component("reward", value)
        if issubclass(component.registration.implementation, RewardCombination):
            return self.combination(component)
        return RewardSpec("reward", component.name, component)

    def combination(self, component: Component) -> RewardSpec:
        """A combination with its parts."""
        name = component.name
        try:
            combination = create(component)
            parts = dict(call(combination, "parts", returns=_check_parts))
        except PluginError as error:
            raise wrong(str(error), keys=(name,)) from None
        specs: dict[str, RewardSpec] = {}
        mistakes = Mistakes()
        for key, part in parts.items():
            with mistakes.at(name, key):
                if key == REWARD_KEY:
                    raise wrong(
                        f"a part of '{name}' cannot be named '{REWARD_KEY}', the name of the whole"
                    )
                # `parts` may return what is no RewardRef option
                specs[key] = self.read_reward(part)
        mistakes.end()
        return RewardSpec("combine", name, component, specs)

    # --- data

    def read_data(self, value: Any) -> DataSpec:
        """One source of data, or a list of them, where no rows are held out."""
        data = self.read_training_data(value)
        if any(source.validation for source in data.sources):
            message = f"{PATH}: 'validation' holds out rows that nothing would read here"
            raise wrong(message, "write the share to read instead, such as 'part: [0.2, 1]'")
        return data

    def read_training_data(self, value: Any) -> DataSpec:
        """One source of data, or a list of them."""
        if not isinstance(value, list):
            return DataSpec((self._source(value),))
        mistakes = Mistakes()
        sources = []
        for index, part in enumerate(value):
            with mistakes.at(index):
                sources.append(self._source(part))
        mistakes.end()
        if not sources:
            raise wrong(f"{PATH}: expected at least one data source, got an empty list")
        return DataSpec(tuple(sources))

    def _source(self, raw: Any) -> DataSource:
        """A source: `FILE`, `STAGE`, a mapping of keys, `{FORMAT: FILE}`, or `{FORMAT: {keys and
        options}}`.
        """
        mistakes = Mistakes()
        format, place, keys = None, Keys(), raw
        if isinstance(raw, dict) and len(raw) == 1 and not raw.keys() & _COMMON:
            ((name, keys),) = raw.items()
            options = {}
            if isinstance(keys, dict):
                options = {key: value for key, value in keys.items() if key not in _COMMON}
                keys = {key: value for key, value in keys.items() if key in _COMMON}
            place = (name,)
            with mistakes.at():
                format = self.component("format", {name: options})
        text = isinstance(keys, str)
        if text:
            keys = {"stage" if keys in self.stages and not place else "path": keys}
        source, others = validated(DataSource, keys, self)
        mistakes.add((replace(one, keys=()) if text else one for one in others), *place)
        mistakes.end()
        assert source is not None  # or there was a mistake
        return source.in_format(format)

    def read_data_stage(self, value: str) -> str:
        """A step that produces data."""
        self._wait_for(value)
        if self.stages[value].kind == "algorithm":
            raise wrong(f"'{value}' does not produce data; only steps do")
        return value

    # --- files

    def locate(self, text: str) -> Path:
        """Return the absolute path of a file or folder, whether or not it exists."""
        path = absolute(self.folder / expanded(text))
        if exists(path):
            self.located[text] = str(path)
        return path

    def file(self, value: Path) -> Path:
        """Return the absolute path of a file. One that runs write need not exist yet."""
        path = self.locate(str(value))
        if is_special(path):
            raise wrong(f"{value}: {NO_FILE}")
        if not exists(path) and not getattr(reader_of(path), "grows", False):
            near = [*self.stages, *(item.name for item in path.parent.glob("*"))]
            raise wrong(
                f"no such file: {value}",
                did_you_mean(path.name, near) or f"looked in {path.parent}",
            )
        return path

    def read_hub(self, value: str) -> str:
        """The absolute path of a folder, or a name on the hub."""
        folder = self.locate(value)
        if is_dir(folder):
            return str(folder)
        if not HUB_NAME.fullmatch(value):
            raise wrong(f"no such folder: {value}", f"looked for {folder}")
        return value

    def read_model(self, value: str) -> str:
        """A base model: a plugin's name and a hub id stay as they are, and a folder or a file
        becomes absolute.
        """
        name, path = self.registry.source_of(value)
        if path == value:
            self.plugin("model", name)
            return str(self.file(Path(value)))
        # Few hub ids have no namespace, so what is almost the name of a plugin is misspelled.
        misspelled = "/" not in value and did_you_mean(value, self.registry.names("model"))
        if not name and "://" not in value and (not misspelled or is_dir(self.locate(value))):
            return self.read_hub(value)
        _, source, _ = self.plugin("model", value.partition("://")[0])
        try:
            signature(source.implementation).bind(self.folder, *filter(None, [path]))
        except TypeError:
            if path:
                raise wrong(f"model '{name}' takes no path", f"write {name}") from None
            help = f"write {name}://PATH, or the path of a .{name} file"
            raise wrong(f"model '{name}' needs a path", help) from None
        if path and exists(file := self.locate(path)):
            self.located[value] = f"{name}://{file}"
        return self.located.get(value, value)

    def read_template(self, value: str) -> str:
        """A chat template: a plugin's name, or a file, which stays as it is written if it is in the
        recipe's folder.
        """
        path = self.locate(value)
        if self.registry.has("template", value):
            self.plugin("template", value)
        elif not is_file(path):
            names = self.registry.names("template")
            message = (
                f"{PATH}: '{value}' is neither a template ({', '.join(names)}) nor a Jinja file"
            )
            raise wrong(message, did_you_mean(value, names) or f"looked for {path}")
        return value


def _check_parts(parts: Any) -> None:
    """Check the parts of a combination."""

    def is_reward(name: str, part: Any) -> bool:
        return name != "" and isinstance(part, str | Mapping | RewardSpec)

    by_name(parts, "rewards", is_reward)
