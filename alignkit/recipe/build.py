"""A document becomes a Recipe, checked before anything is loaded, with all mistakes told at once."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from alignkit.algorithm import ROLLOUTS, Needs, StageDefaults, Trains
from alignkit.data.chat_templates import TEMPLATES
from alignkit.errors import RecipeError, did_you_mean
from alignkit.recipe.document import Document, Keys
from alignkit.recipe.references import References, options_of
from alignkit.recipe.rounds import expand
from alignkit.recipe.schema import Recipe, Stage, TopKeys
from alignkit.recipe.validation import allowed_keys, path_text, shown
from alignkit.registry import Component, Registration, Registry
from alignkit.settings import ModelSpec, Rollout, Settings

# What stage-level keys mean to algorithms that read a data set; the reason is the error's help.
_ONLY_ROLLOUTS = {
    "prompts": "it learns from 'data' and samples nothing",
    "reward": "it learns from 'data': nothing is sampled that could be scored",
    "rollout": "it learns from 'data' and samples nothing",
    "iterations": "it passes over its data 'epochs' times",
    "prompts_per_iteration": "it learns from 'data' and has no prompts",
    "replay_from": "it learns from 'data' and has no rollouts",
}
_ONLY_DATASET = {
    "data": "it learns from its own responses to 'prompts'; a second stream is 'mix: {data: ...}'",
    "max_steps": "iterations sets the length",
    "validation": "progress is measured by its reward; use a step to evaluate",
}


def validate(document: Document, registry: Registry) -> Recipe:
    """The recipe of a document; raises RecipeError with every problem found."""
    expanded, rounds, problems = expand(document)
    builder = Builder(expanded, registry, rounds)
    builder.problems += problems
    recipe = builder.recipe(document.data)
    if builder.problems or recipe is None:
        error = RecipeError(sorted(builder.problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        if builder.plugin_problems == len(builder.problems):
            error.exit_code = 3  # nothing is wrong but a plugin
        raise error
    return recipe


class Builder(References):
    """Reads a document into a Recipe; a part that has a problem is None."""

    def recipe(self, written: dict[str, Any]) -> Recipe | None:
        """written: the recipe before its rounds were written out, to be kept beside the run."""
        top = self.validate(TopKeys, self.document.data, ())
        raw_stages = self.document.data.get("stages")
        stages: dict[str, Stage] = {}
        names: list[str] = []
        if isinstance(raw_stages, dict):
            self.declare(raw_stages)
            stages = self.stages(raw_stages)
            self.check_versions(stages)
            names = self.order(list(raw_stages))
        model = self.model(self.document.data["model"]) if "model" in self.document.data else None
        if top is not None:
            self.requires(top.requires)
        if self.problems or top is None or model is None:
            return None
        return Recipe(
            name=top.name or _name_of(self.document),
            path=self.document.path,
            folder=self.document.path.parent.resolve(),
            seed=top.seed,
            description=top.description,
            model=model,
            stages={name: stages[name] for name in names},
            resolved=self.resolved(written, top.name),
        )

    def resolved(self, written: dict[str, Any], name: str | None) -> dict[str, Any]:
        """The recipe as plain data that means the same in any file: with its name and absolute paths."""
        named = {} if name else {"name": _name_of(self.document)}
        return {**named, **self.movable(written)}

    # stages

    def declare(self, stages: Mapping[str, Any]) -> None:
        """First pass: which stages there are and what each is, so that references can be judged."""
        for name, raw in stages.items():
            self.registrations[name] = None
            keys: Keys = ("stages", name)
            self._check_stage_name(name, keys)
            if not isinstance(raw, dict):
                self.wrong(keys, f"stage '{name}': expected a mapping, got {shown(raw)}")
                continue
            self.registrations[name] = self._stage_registration(name, raw, keys)

    def _check_stage_name(self, name: str, keys: Keys) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            message = f"stage name '{name}': expected letters, digits, '_' and '-' (it becomes a folder)"
            self.wrong(keys, message, at_key=True)
        elif name in ("base", "none", "folder"):
            self.wrong(keys, f"a stage cannot be called '{name}': the word means something else", at_key=True)
        elif self.registry.has("reward", name):
            message = f"stage '{name}' has the name of an installed reward"
            help = f"'reward: {name}' would be ambiguous; rename the stage"
            self.wrong(keys, message, at_key=True, help=help)

    def _stage_registration(
        self, name: str, raw: dict[str, Any], keys: Keys
    ) -> tuple[Literal["algorithm", "step"], Registration] | None:
        kinds: tuple[Literal["algorithm", "step"], ...] = ("algorithm", "step")
        given = [kind for kind in kinds if raw.get(kind) is not None]
        if len(given) != 1:
            got = "has both 'algorithm' and 'step'" if given else "names neither an algorithm nor a step"
            guess = next((did_you_mean(key, ["algorithm", "step"]) for key in raw), "") if not given else ""
            self.wrong(keys, f"stage '{name}' {got}", at_key=True, help=guess or "a stage is one or the other")
            return None
        kind = given[0]
        parts = self.split(kind, raw[kind], (*keys, kind))
        if parts is None:
            return None
        at_key = isinstance(raw[kind], dict)
        registration = self.resolve(kind, parts[0], parts[2] if at_key else (*keys, kind), at_key=at_key)
        if registration is not None and kind == "algorithm":
            registration = replace(registration, implementation=registration.implementation.specialize(parts[1]))
        return (kind, registration) if registration else None

    def stages(self, stages: Mapping[str, Any]) -> dict[str, Stage]:
        """Second pass: options, settings and references of each stage."""
        result = {}
        for name, raw in stages.items():
            self.stage = name
            self.upstream[name] = []
            entry = self.registrations[name]
            if entry is None:
                self._settings_alone(raw, ("stages", name))
                continue
            kind, registration = entry
            read = self._algorithm if kind == "algorithm" else self._step
            stage = read(name, registration, raw, ("stages", name))
            if stage is not None:
                result[name] = stage
        return result

    def _settings_alone(self, raw: Any, keys: Keys) -> None:
        """Check what can be checked of a training stage whose algorithm is unknown, so that all is told at once."""
        if isinstance(raw, dict) and raw.get("algorithm") is not None and raw.get("step") is None:
            given = {key: value for key, value in raw.items() if key not in ("algorithm", "step") and value is not None}
            settings = self.validate(Settings, given, keys)
            if settings is not None:
                self.references(settings, keys)

    def _step(self, name: str, registration: Registration, raw: dict[str, Any], keys: Keys) -> Stage | None:
        named = raw["step"]
        beside = {key: value for key, value in raw.items() if key not in ("step", "algorithm")}
        if isinstance(named, dict):
            for key in beside:
                self.unknown((*keys, key), (), f"options stand beside 'step: {next(iter(named))}', or all inside it")
            component = self.component("step", named, (*keys, "step"), registration)
        else:
            component = self.with_options("step", named, registration, beside, keys)
        return Stage(name, "step", component, None, tuple(self.upstream[name])) if component else None

    def _algorithm(self, name: str, registration: Registration, raw: dict[str, Any], keys: Keys) -> Stage | None:
        before = len(self.problems)
        component = self.component("algorithm", raw["algorithm"], (*keys, "algorithm"), registration)
        given = {key: value for key, value in raw.items() if key not in ("step", "algorithm") and value is not None}
        refused = self._check_keys(registration, given, keys)
        wanted = set(allowed_keys(options_of(registration)))

        def hint(key: str) -> str:
            if key in wanted:
                return (
                    f"'{key}' is an option of {registration.name}: 'algorithm: {{{registration.name}: {{{key}: ...}}}}'"
                )
            near = next(iter(difflib.get_close_matches(key, allowed_keys(Settings), 1)), "")
            return f"did you mean '{near}'? {registration.name} takes none: {refused[near]}" if near in refused else ""

        filled = _filled(given, registration.implementation.defaults)
        settings = self.validate(Settings, filled, keys, hint=hint, refused=refused)
        if settings is not None:
            settings = self.references(settings, keys)
        self._check_roles(registration, component, given, keys)
        self._check_refused(registration, given, keys)
        self._check_rollout(registration, component, filled, keys)
        if component is None or settings is None or len(self.problems) > before:
            return None
        return Stage(name, "algorithm", component, settings, tuple(self.upstream[name]))

    def _check_keys(self, registration: Registration, given: Mapping[str, Any], keys: Keys) -> dict[str, str]:
        """Which keys a stage needs and refuses follows from where its algorithm's groups come from.

        Gives the keys that it refuses, with the reason.
        """
        rollouts = registration.implementation.source is ROLLOUTS
        refused = dict(_ONLY_DATASET if rollouts else _ONLY_ROLLOUTS)
        if registration.implementation.trains is Trains.REWARD:
            refused["mix"] = "a reward model has no language head to train on it"
        for key, reason in refused.items():
            if key in given:
                self.wrong((*keys, key), f"{registration.name} takes no '{key}'", at_key=True, help=reason)
        for key in ("prompts", "reward") if rollouts else ("data",):
            if key not in given:
                self.wrong(
                    (*keys, key), f"'{path_text((*keys, key))}' is missing: {registration.name} needs it", at_key=True
                )
        return refused

    def _check_refused(self, registration: Registration, given: Mapping[str, Any], keys: Keys) -> None:
        """Keys that an algorithm would take no notice of; `rollout.stop` is the key `stop` under `rollout`."""
        for path, reason in registration.implementation.unsupported_keys.items():
            *above, key = path.split(".")
            inner: Any = given
            for part in above:
                inner = inner.get(part) if isinstance(inner, Mapping) else None
            if isinstance(inner, Mapping) and inner.get(key) is not None:
                message = f"{registration.name} takes no '{path}'"
                self.wrong((*keys, *above, key), message, at_key=True, help=reason)

    # The stage's other keys may be wrong, so these read plain data and pass over what has the wrong type.

    def _check_roles(
        self, registration: Registration, component: Component | None, given: Mapping[str, Any], keys: Keys
    ) -> None:
        """Whether the stages that a stage starts from are of the kind that it needs."""
        names = ("value_from", "from", "reference")
        refs = {key: self.real(given[key]) for key in names if isinstance(given.get(key), str)}
        values = refs.pop("value_from", None)
        if values and self.trains_reward(values) is False:
            self.wrong((*keys, "value_from"), f"'{values}' trains no reward model")
        for key, ref in refs.items():
            if registration.implementation.trains is Trains.POLICY and self.trains_reward(ref):
                self.wrong((*keys, key), f"'{ref}' is a reward model: {registration.name} needs a policy here")
        if component is None:  # what it needs may depend on its options, which are wrong
            return
        needs: Needs = registration.implementation(component.options).needs
        if values and (not needs.values or needs.shared_values):
            reason = "has its values from the policy" if needs.values else "trains no value role"
            self.wrong((*keys, "value_from"), f"{registration.name} {reason}", at_key=True)
        known = refs.get("reference") == "base" or self.trains_reward(refs.get("reference", "")) is not None
        if known and registration.implementation.source is not ROLLOUTS and not needs.reference_logprobs:
            self.wrong((*keys, "reference"), f"{registration.name} compares with no reference here", at_key=True)

    def _check_rollout(
        self, registration: Registration, component: Component | None, filled: Mapping[str, Any], keys: Keys
    ) -> None:
        """Whether what is sampled can be learned from; filled: the stage's keys and the algorithm's defaults."""
        if registration.implementation.source is not ROLLOUTS:
            return
        rollout = filled["rollout"] if isinstance(filled["rollout"], dict) else {}
        needs: Needs = (
            registration.implementation(component.options).needs if component is not None else Needs(min_samples=0)
        )
        least = needs.min_samples
        samples = rollout.get("samples_per_prompt", Rollout().samples_per_prompt)
        if _whole(samples) and 0 < samples < least:
            message = f"{registration.name} needs at least {least} responses to each prompt, not {samples}"
            self.wrong((*keys, "rollout", "samples_per_prompt"), message, help="rollout: {samples_per_prompt: ...}")
        new = rollout.get("max_new_tokens", Rollout().max_new_tokens)
        if needs.max_new_tokens is not None and _whole(new) and new != needs.max_new_tokens:
            message = (
                f"{registration.name}'s max_tokens is {needs.max_new_tokens}, but the rollout's max_new_tokens is {new}"
            )
            self.wrong((*keys, "rollout", "max_new_tokens"), message, help="the two must be equal")
        longest = filled.get("max_length", Settings().max_length)
        if _whole(new) and _whole(longest) and longest > 1 and new >= longest:
            places: list[Keys] = [(*keys, "rollout", "max_new_tokens"), (*keys, "max_length")]
            written = [place for place in places if place in self.document.places]
            place = next((place for place in written if self.document.overridden(place)), (written or places)[0])
            message = f"max_new_tokens {new} leaves no room for a prompt in max_length {longest}"
            self.wrong(place, message, help="max_length counts a prompt with its response, in tokens")

    def check_versions(self, stages: Mapping[str, Stage]) -> None:
        """`stage@k` needs a stage that keeps its versions, and at least k of them."""
        for keys, ref in self.versions:
            name, _, version = ref.partition("@")
            entry = self.registrations.get(name)
            if entry is None:
                continue
            if entry[0] == "step":
                self.wrong(keys, f"'{ref}': stage '{name}' is a step and has no versions")
                continue
            unit = "iterations" if entry[1].implementation.source is ROLLOUTS else "epochs"
            kept, count = self._versions_of(name, unit, stages.get(name))
            if not kept:
                message = f"'{ref}': stage '{name}' keeps only its last version"
                self.wrong(keys, message, help=f"write 'keep_versions: true' in stage '{name}'")
            elif count is not None and int(version) > count:
                self.wrong(keys, f"'{ref}': stage '{name}' has only {count} {unit}")

    def _versions_of(self, name: str, unit: str, stage: Stage | None) -> tuple[bool, int | None]:
        """Whether a stage keeps its versions, and how many it has (None: not known, because it has mistakes)."""
        if stage is not None and stage.settings is not None:
            return stage.settings.keep_versions, getattr(stage.settings, unit)
        raw = self.document.data["stages"][name]
        meant = difflib.get_close_matches("keep_versions", [key for key in raw if key != "keep_versions"], 1, 0.8)
        kept = raw.get("keep_versions") not in (None, False) or bool(meant)
        count = raw.get(unit)
        return kept, count if _whole(count) and count > 0 else None

    def order(self, names: Sequence[str]) -> list[str]:
        """Stages in an order in which they can run, the declared one where possible; a cycle is a problem."""
        done: list[str] = []
        waiting = list(names)
        while waiting:
            ready = next((n for n in waiting if all(up in done for up in self.upstream.get(n, ()))), None)
            if ready is None:
                cycle = self._cycle(waiting, done)
                text = " -> ".join([*cycle, cycle[0]])
                self.wrong(("stages", cycle[0]), f"stages wait for each other: {text}", at_key=True)
                return list(names)
            waiting.remove(ready)
            done.append(ready)
        return done

    def _cycle(self, waiting: list[str], done: list[str]) -> list[str]:
        path = [waiting[0]]
        while True:
            following = next(up for up in self.upstream[path[-1]] if up not in done)
            if following in path:
                return path[path.index(following) :]
            path.append(following)

    # the rest

    def model(self, raw: Any) -> ModelSpec | None:
        keys: Keys = ("model",)
        if isinstance(raw, str):
            self.wrong(keys, "model: expected a mapping", help=f"write 'model: {{base: {raw}}}'")
            return None
        spec = self.validate(ModelSpec, raw, keys)
        if spec is None:
            self._model_files(raw, keys)
            return None
        if spec.quantization != "none" and spec.lora is None:
            message = f"{spec.quantization} weights cannot be trained: use lora, or 'quantization: none'"
            # Laid at the override, where one of the two was made by an override.
            culprit = "lora" if self.document.overridden((*keys, "lora")) else "quantization"
            self.wrong((*keys, culprit), message)
        if spec.dtype == "float16":
            message = "model.dtype: float16 loses small gradients without loss scaling, which alignkit does not do"
            self.wrong((*keys, "dtype"), message, help="'auto' chooses bfloat16 where the hardware has it")
        elif spec.dtype == "bfloat16" and spec.lora is None:
            message = "model.dtype: weights in bfloat16 lose most updates of a fine-tuning learning rate"
            self.wrong((*keys, "dtype"), message, help="leave 'dtype' out, or train an adapter")
        found: dict[str, Any] = {"base": self._model_files(raw, keys)}
        if spec.chat_template is not None and spec.chat_template not in TEMPLATES:
            found["chat_template"] = str(self.path(Path(spec.chat_template), (*keys, "chat_template"), told=True))
        return spec.model_copy(update=found)

    def _model_files(self, raw: Any, keys: Keys) -> str:
        """Check the model's template and base, of which the latter is given; other keys may be wrong."""
        written = raw if isinstance(raw, dict) else {}
        template, base = written.get("chat_template"), written.get("base")
        if isinstance(template, str) and template not in TEMPLATES:
            path = self.locate(template, (*keys, "chat_template"))
            if not path.is_file():
                known = " nor ".join(f"'{name}'" for name in TEMPLATES)
                message = f"model.chat_template: '{template}' is neither {known} nor a Jinja file"
                self.wrong((*keys, "chat_template"), message, help=f"looked for {path}")
        return self._base(base, (*keys, "base")) if isinstance(base, str) and base else ""

    def _base(self, base: str, keys: Keys) -> str:
        """A model plugin's name and a hub id stay as they are; a folder becomes absolute."""
        if self.registry.has("model", base):
            self.resolve("model", base, keys)  # two claims are an error
            return base
        path = self.locate(base, keys)
        if path.is_dir():
            return str(path)
        if base.startswith((".", "/", "~")):
            self.wrong(keys, f"no such folder: {base}", help=f"looked for {path}")
        elif "/" not in base:
            near = difflib.get_close_matches(base, self.registry.names("model"), 1, 0.85)
            # Hub ids without a namespace are few; a misspelt plugin is likelier.
            if near or self.registry.likely_providers(base):
                self.resolve("model", base, keys)
        return base

    def requires(self, items: Sequence[str]) -> None:
        from packaging.requirements import InvalidRequirement, Requirement

        for index, text in enumerate(items):
            keys: Keys = ("requires", index)
            try:
                requirement = Requirement(text)
                installed = importlib.metadata.version(requirement.name)
            except InvalidRequirement:
                self.wrong(keys, f"'{text}' is no requirement", help="like 'alignkit-x>=0.2'")
            except importlib.metadata.PackageNotFoundError:
                self.wrong(keys, f"the recipe requires {text}, which is not installed", help=f"pip install '{text}'")
            else:
                if not requirement.specifier.contains(installed, prereleases=True):
                    message = f"the recipe requires {text}, installed is {installed}"
                    self.wrong(keys, message, help=f"pip install '{text}'")


def _name_of(document: Document) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", document.path.stem)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _filled(given: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """A stage's keys with the algorithm's own defaults where the recipe is silent."""
    raw = dict(given)
    rollout = raw.get("rollout", {})
    if isinstance(rollout, dict):
        rollout = {key: value for key, value in rollout.items() if value is not None}
    for key, value in vars(defaults).items():
        if value is None:
            continue
        if key not in Rollout.model_fields:
            raw.setdefault(key, value)
        elif isinstance(rollout, dict):
            rollout.setdefault(key, value)
    raw["rollout"] = rollout
    return raw
