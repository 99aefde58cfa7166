"""What a recipe's options refer to: stages, plugins with their options, data, rewards, folders and files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from alignkit.algorithm import Trains
from alignkit.data.sources import DataSource, DataSpec
from alignkit.errors import did_you_mean
from alignkit.options import Options, Ref
from alignkit.recipe.document import Document, Keys
from alignkit.recipe.rounds import Rounds
from alignkit.recipe.schema import DataKeys, RewardSpec
from alignkit.recipe.validation import Model, Validator, allowed_keys, path_text, shown
from alignkit.registry import Component, Registration, Registry, Unresolved
from alignkit.reward import RewardCombination


class References(Validator):
    """Replaces what options refer to by what it stands for, and notes which stages a stage needs."""

    def __init__(self, document: Document, registry: Registry, rounds: Rounds | None = None):
        super().__init__(document)
        self.registry = registry
        self.rounds = rounds or Rounds()
        self.plugin_problems = 0
        self.registrations: dict[
            str, tuple[Literal["algorithm", "step"], Registration] | None
        ] = {}  # of every declared stage
        self.stage = ""  # the stage being read
        self.upstream: dict[str, list[str]] = {}
        self.versions: list[tuple[Keys, str]] = []  # `stage@k` references, judged when all stages are read
        self.failed: set[Keys] = set()  # values of the wrong type: they refer to nothing
        self.located: dict[int, tuple[str, str]] = {}  # by the id of its mark: a path as written, and absolute

    # components

    def resolve(
        self, kind: str, name: str, keys: Keys, *, at_key: bool = False, also: Iterable[str] = ()
    ) -> Registration | None:
        """The claim on a name; `also`: names of other things that could stand here."""
        try:
            return self.registry.get(kind, name)
        except Unresolved as error:
            self.plugin_problems += error.broken
            help = (did_you_mean(name, [*also, *self.registry.names(kind)]) if also else "") or error.help
            self.wrong(keys, error.message, at_key=at_key, help=help)
            return None

    def split(self, kind: str, raw: Any, keys: Keys) -> tuple[str, Any, Keys] | None:
        """`name` or `name: {options}` -> name, options and the path of the options."""
        if isinstance(raw, str):
            return raw, {}, (*keys, raw)
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, options),) = raw.items()
            if options is None:
                options = {}
            return name, options, (*keys, name)
        got = f"{len(raw)} names" if isinstance(raw, dict) else shown(raw)
        article = "an" if kind[0] in "aeiou" else "a"
        message = f"{path_text(keys)}: expected the name of {article} {kind}, or one 'name: {{options}}', got {got}"
        self.wrong(keys, message)
        return None

    def component(self, kind: str, raw: Any, keys: Keys, registration: Registration | None = None) -> Component | None:
        parts = self.split(kind, raw, keys)
        if parts is None:
            return None
        name, options, path = parts
        registration = registration or self.resolve(
            kind, name, path if isinstance(raw, dict) else keys, at_key=isinstance(raw, dict)
        )
        if registration is None:
            return None
        return self.with_options(kind, name, registration, options, path)

    def with_options(
        self, kind: str, name: str, registration: Registration, raw: Any, keys: Keys, model: type[Options] | None = None
    ) -> Component | None:
        if not isinstance(raw, dict):
            self.wrong(keys, f"{path_text(keys)}: expected a mapping of options, got {shown(raw)}")
            return None
        before = len(self.problems)
        options: Options | None = self.validate(model or options_of(registration), raw, keys)
        if options is None:
            return None
        options = self.references(options, keys)
        return None if len(self.problems) > before else Component(kind, name, registration, options)

    # references

    def references(self, options: Model, keys: Keys) -> Model:
        """A copy of validated options with every marked reference checked and replaced by what it stands for."""
        changes = {}
        for name, info in type(options).model_fields.items():
            value = getattr(options, name)
            place = (*keys, info.alias or name)
            if isinstance(value, Path):
                new: Any = self.path(value, place)
            else:
                annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
                new = self._follow(annotation, value, place)
            if new is not value:
                changes[name] = new
        return options.model_copy(update=changes) if changes else options

    def path(self, value: Path, keys: Keys, told: bool = False) -> Path:
        """A file that an option names: relative to the recipe's folder, or absolute where it is written elsewhere.

        told: whether one that is not there has been complained of.
        """
        if not (path := self.locate(str(value), keys)).exists() and not told:
            self.wrong(keys, f"no such file: {value}", help=f"looked for {path}")
        return value if self.document.folder(keys) == self.document.path.parent else path

    def raw_references(self, model: type[BaseModel], raw: Any, keys: Keys, failed: Iterable[Keys]) -> None:
        """Check the references in options of which other parts are wrong, so that all is told at once."""
        self.failed |= {(*keys, *place) for place in failed}
        for name, info in model.model_fields.items():
            key = info.alias or name
            if not isinstance(raw, dict) or key not in raw:
                continue
            place = (*keys, key)
            if _is_path(info.annotation):
                if isinstance(raw[key], str) and place not in self.failed:
                    self.path(Path(raw[key]), place)
                continue
            annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            self._follow(annotation, raw[key], place)

    def _follow(self, annotation: Any, value: Any, keys: Keys) -> Any:
        if value is None:
            return None
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            ref = next((item for item in args[1:] if isinstance(item, Ref)), None)
            return self._resolve_ref(ref, value, keys) if ref else self._follow(args[0], value, keys)
        if origin in (Union, UnionType):
            return self._follow(_fitting(args, value), value, keys)
        if isinstance(value, Options):
            return self.references(value, keys)
        if isinstance(annotation, type) and issubclass(annotation, Options):
            self.raw_references(annotation, value, keys, ())
            return value
        if isinstance(value, Mapping) and len(args) == 2:
            new = {key: self._follow(args[1], item, (*keys, key)) for key, item in value.items()}
            return new if any(new[key] is not value[key] for key in new) else value
        if isinstance(value, (list, tuple)) and args:
            every = self._every if get_origin(args[0]) is Annotated else lambda item: [item]
            numbered = [(i, part) for i, item in enumerate(value) for part in every(item)]
            kinds = args if isinstance(value, tuple) and args[-1] is not Ellipsis else [args[0]] * len(numbered)
            items = [self._follow(kind, v, (*keys, i)) for kind, (i, v) in zip(kinds, numbered, strict=False)]
            same = len(items) == len(value) and all(a is b for a, b in zip(items, value, strict=True))
            return value if same else type(value)(items)
        return value

    def _resolve_ref(self, ref: Ref, value: Any, keys: Keys) -> Any:
        if keys in self.failed:
            return value
        if ref.kind == "data":
            return self.data(value, keys)
        if ref.kind == "reward":
            return self.reward(value, keys)
        if ref.kind == "judge":
            return self.component("judge", value, keys)
        if ref.kind == "from":
            return self.start(value, keys)
        value = self.real(value)
        if not self.stage_ref(value, keys):
            return None
        if ref.kind == "policy" and self.trains_reward(value):
            self.wrong(keys, f"'{value}' is a reward model: a policy is needed here")
            return None
        return value

    def real(self, value: Any) -> Any:
        """A reference with the real name of the stage that it means here, in rounds."""
        return self.rounds.named(self.stage, value) if isinstance(value, str) else value

    def stage_ref(self, value: Any, keys: Keys) -> bool:
        """Check `base`, `stage` or `stage@k`, and note that the present stage needs it."""
        if not isinstance(value, str):
            self.wrong(keys, f"{path_text(keys)}: expected a stage's name, got {shown(value)}")
            return False
        name, at, version = value.partition("@")
        if name == "base":
            if at:
                self.wrong(keys, "'base' is the untouched model: it has no versions")
            return not at
        if name not in self.registrations:
            known = [*self.registrations, "base"]
            if reason := self.rounds.why_missing(self.stage, name):
                self.wrong(keys, reason, help=f"say what it starts from: 'start: {{{name}: ...}}' beside 'repeat'")
                return False
            self.wrong(keys, f"no stage '{name}'", help=did_you_mean(name, known) or f"stages: {', '.join(known)}")
            return False
        if name == self.stage:
            self.wrong(keys, f"stage '{name}' refers to itself")
            return False
        if at and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            self.wrong(keys, f"'{value}': after '@' stands an epoch or iteration, counted from 1")
            return False
        if at:
            self.versions.append((keys, value))
        self.depend(name)
        return True

    def depend(self, name: str) -> None:
        needed = self.upstream.setdefault(self.stage, [])
        if name not in needed:
            needed.append(name)

    def start(self, value: str, keys: Keys) -> str | None:
        """`from`: a stage, or a folder that holds an adapter (or a model)."""
        if self.rounds.why_missing(self.stage, value):
            return value if self.stage_ref(value, keys) else None
        value = self.real(value)
        if value.partition("@")[0] in (*self.registrations, "base"):
            return value if self.stage_ref(value, keys) else None
        folder = self.locate(value, keys)
        if folder.is_dir():
            if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
                self.wrong(keys, f"'{value}' holds neither an adapter (adapter_config.json) nor a model (config.json)")
            return str(folder)
        known = [*self.registrations, "base"]
        help = did_you_mean(value, known) or f"stages: {', '.join(known)}"
        self.wrong(keys, f"'{value}' is neither a stage nor a folder", help=help)
        return None

    def locate(self, text: str, keys: Keys) -> Path:
        path = Path(text).expanduser()
        if path.is_absolute():
            return path
        path = (self.document.folder(keys) / path).resolve()
        if keys in self.document.places and path.exists():
            self.located[id(self.document.places[keys][1])] = (text, str(path))
        return path

    def movable(self, value: Any, keys: Keys = ()) -> Any:
        """Plain data of the document with the paths found in it absolute, so that it means the same in any folder."""
        if isinstance(value, dict):
            return {key: self.movable(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.movable(item, (*keys, i)) for i, item in enumerate(value)]
        mark = self.document.places[keys][1] if keys in self.document.places else None
        text, path = self.located.get(id(mark), (None, ""))
        return path if isinstance(value, str) and value == text else value

    def trains_reward(self, name: str) -> bool | None:
        """Whether a stage trains a reward model; None where its algorithm is unknown."""
        entry = self.registrations.get(name.partition("@")[0])
        if entry is None:
            return None
        kind, registration = entry
        return kind == "algorithm" and registration.implementation.trains is Trains.REWARD

    # data

    def data(self, raw: Any, keys: Keys) -> DataSpec | None:
        if (every := self.rounds.all(self.stage, raw)) is not None:
            raw = every
        if isinstance(raw, list):
            parts = [(i, part) for i, item in enumerate(raw) for part in self._every(item)]
            if not parts:
                self.wrong(keys, f"{path_text(keys)}: expected at least one source, got an empty list")
            sources = [self.source(part, (*keys, i)) for i, part in parts]
        else:
            sources = [self.source(raw, keys)]
        good = [source for source in sources if source is not None]
        return DataSpec(tuple(good)) if good and len(good) == len(sources) else None

    def _every(self, item: Any) -> list[Any]:
        """An item of a list of references: `NAME@all` stands for one of each round so far."""
        found = self.rounds.all(self.stage, item)
        return [item] if found is None else list(found)

    def source(self, raw: Any, keys: Keys) -> DataSource | None:
        if isinstance(raw, str):
            if self.rounds.why_missing(self.stage, raw):
                self.stage_ref(raw, keys)
                return None
            raw = self.real(raw)
            if raw in self.registrations:
                return DataSource(stage=raw) if self.data_stage(raw, keys) else None
            path = self.file(raw, keys, also=self.registrations)
            return DataSource(path=path) if path else None
        if not isinstance(raw, dict):
            message = f"{path_text(keys)}: expected a path, a stage or a mapping with one of them, got {shown(raw)}"
            self.wrong(keys, message)
            return None
        named = self._named_format(raw)
        return self._formatted(named, raw[named], (*keys, named)) if named else self._source(raw, keys, None, "")

    @staticmethod
    def _named_format(raw: dict[str, Any]) -> str:
        """The format's name in `{format: {...}}`, or an empty string."""
        keys = list(raw)
        common = allowed_keys(DataKeys)
        if len(keys) != 1 or keys[0] in common:
            return ""
        inner = raw[keys[0]]
        return keys[0] if isinstance(inner, dict) or not difflib.get_close_matches(keys[0], common, 1, 0.8) else ""

    def _formatted(self, name: str, raw: Any, keys: Keys) -> DataSource | None:
        registration = self.resolve("format", name, keys, at_key=True)
        if isinstance(raw, str):  # `{hh_rlhf: file.jsonl}`
            return self._source({"path": raw}, keys, registration, name, short=True)
        if not isinstance(raw, dict):
            self.wrong(keys, f"{path_text(keys)}: expected a path or a mapping, got {shown(raw)}")
            return None
        if registration is None:  # which keys are its options is not known; the others are checked all the same
            raw = {key: value for key, value in raw.items() if key in allowed_keys(DataKeys)}
        return self._source(raw, keys, registration, name)

    def _source(
        self, raw: dict[str, Any], keys: Keys, registration: Registration | None, name: str, short: bool = False
    ) -> DataSource | None:
        model = options_of(registration) if registration else Options
        common, own = allowed_keys(DataKeys), allowed_keys(model)
        before = len(self.problems)
        for key in [key for key in raw if key not in common and key not in own]:
            self.unknown((*keys, key), [*common, *own])
        values = self.validate(DataKeys, {key: value for key, value in raw.items() if key in common}, keys)
        component = None
        if registration:
            options = {key: value for key, value in raw.items() if key in own}
            component = self.with_options("format", name, registration, options, keys, model)
        path, stage = self._origin(raw, keys, keys if short else (*keys, "path"))
        if values is None or (name and registration is None) or len(self.problems) > before:
            return None
        shared = values.model_dump(exclude={"path", "stage"})
        return DataSource(format=component, path=path, stage=stage, **shared)

    def _origin(self, raw: Mapping[str, Any], keys: Keys, path_keys: Keys) -> tuple[Path | None, str | None]:
        given = [name for name in ("path", "hub", "stage") if raw.get(name) is not None]
        if not all(isinstance(raw[name], str) for name in given):
            return None, None  # told before
        if len(given) != 1:
            got = f"both {' and '.join(given)}" if given else "none of them"
            message = f"{path_text(keys)}: expected one of 'path', 'hub' and 'stage', got {got}"
            self.wrong(keys, message, at_key=not given)
            return None, None
        stage = self.real(raw.get("stage"))
        if stage is not None:
            self.data_stage(stage, (*keys, "stage"))
        path = raw.get("path")
        return self.file(path, path_keys) if path is not None else None, stage

    def data_stage(self, name: str, keys: Keys) -> bool:
        """Data made by another stage: only steps make data."""
        if not self.stage_ref(name, keys):
            return False
        entry = self.registrations.get(name)
        if name == "base" or "@" in name or (entry and entry[0] != "step"):
            self.wrong(keys, f"'{name}' makes no data: only steps do")
            return False
        return True

    def file(self, text: str, keys: Keys, also: Iterable[str] = ()) -> Path | None:
        path = self.locate(text, keys)
        if path.exists():
            return path
        near = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        guess = did_you_mean(path.name, [*near, *also])
        what = f"no such file: {text}" if not also else f"no such file or stage: {text}"
        self.wrong(keys, what, help=guess or f"looked in {path.parent}")
        return None

    # rewards

    def reward(self, raw: Any, keys: Keys) -> RewardSpec | None:
        if isinstance(raw, RewardSpec):  # already replaced in a combination's options
            return raw
        raw = self.real(raw)
        if isinstance(raw, str) and raw.partition("@")[0] in self.registrations:
            return self.reward_stage(raw, keys)
        if isinstance(raw, dict) and list(raw) == ["folder"]:
            return self.reward_folder(raw["folder"], (*keys, "folder"))
        parts = self.split("reward", raw, keys)
        if parts is None:
            return None
        name, options, path = parts
        at_key = isinstance(raw, dict)
        if name in self.registrations:
            self.wrong(path, f"'{name}' is a stage: it takes no options here", at_key=True, help=f"write just '{name}'")
            return None
        registration = self.resolve("reward", name, path if at_key else keys, at_key=at_key, also=self.registrations)
        component = self.with_options("reward", name, registration, options, path) if registration else None
        return self._combined(component, path) if component else None

    def reward_stage(self, name: str, keys: Keys) -> RewardSpec | None:
        if not self.stage_ref(name, keys):
            return None
        trains = self.trains_reward(name)
        if trains is False:
            help = "a reward is a stage whose algorithm trains a reward model, a reward plugin, or {folder: PATH}"
            self.wrong(keys, f"stage '{name.partition('@')[0]}' gives no reward: it trains no reward model", help=help)
            return None
        return RewardSpec("stage", name) if trains else None

    def reward_folder(self, raw: Any, keys: Keys) -> RewardSpec | None:
        if not isinstance(raw, str):
            self.wrong(keys, f"{path_text(keys)}: expected a path, got {shown(raw)}")
            return None
        path = self.locate(raw, keys)
        if not path.is_dir():
            self.wrong(keys, f"no such folder: {raw}", help=f"looked in {path.parent}")
            return None
        return RewardSpec("folder", str(path))

    def _combined(self, component: Component, keys: Keys) -> RewardSpec | None:
        if not issubclass(component.registration.implementation, RewardCombination):
            return RewardSpec("reward", component.name, component)
        try:
            parts = dict(component.registration.implementation(component.options).parts())
        except Exception as error:
            self.wrong(keys, f"combination '{component.name}' cannot name its rewards: {type(error).__name__}: {error}")
            return None
        # `parts` may give values that no RewardRef field held; they are read as if they stood in the options.
        children = {name: self.reward(value, (*keys, name)) for name, value in parts.items()}
        good = {name: child for name, child in children.items() if child is not None}
        return RewardSpec("combine", component.name, component, good) if len(good) == len(children) else None


def options_of(registration: Registration) -> type[Options]:
    options: type[Options] = getattr(registration.implementation, "Options", Options)
    return options


def _is_path(annotation: Any) -> bool:
    return annotation is Path or (get_origin(annotation) in (Union, UnionType) and Path in get_args(annotation))


def _belongs(value: Any, plain: Any) -> bool:
    """Whether a value, or the plain data that an options object would be made from, is of a type."""
    if plain is Any or not isinstance(plain, type):
        return False
    return isinstance(value, plain) or (isinstance(value, dict) and issubclass(plain, Options))


def _fitting(arms: Sequence[Any], value: Any) -> Any:
    """The arm of a union that a validated value belongs to; plain types first, `Any` references last."""
    for arm in arms:
        if get_origin(arm) is Literal and value in get_args(arm):
            return arm
        plain = get_origin(arm) or arm
        if get_origin(arm) is not Annotated and _belongs(value, plain):
            return arm
    marked = [arm for arm in arms if get_origin(arm) is Annotated]
    for arm in marked:
        plain = get_args(arm)[0]
        if _belongs(value, get_origin(plain) or plain):
            return arm
    return marked[-1] if marked else None
