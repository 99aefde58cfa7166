"""What samples in a stage, and the sampling options that steps and rewards leave out: those of stages that train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit.algorithm import Source
from alignkit.engine import LOCAL, EngineOptions
from alignkit.external import ExternalTrainer
from alignkit.recipe.components import read_component
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import Problems
from alignkit.recipe.schema import RewardSpec, Stage, specs
from alignkit.recipe.scope import Scope
from alignkit.registry import Component
from alignkit.sampling_options import KEYS, SamplingOptions
from alignkit.settings import ModelSpec, Rollout


def fill_sampling(stages: Mapping[str, Stage]) -> None:
    """Fill the options of all stages, before anything depends on them: they are part of the stages' hashes."""
    online = {name: stage for name, stage in stages.items() if _is_online(stage)}
    for stage in stages.values():
        options = stage.component.options
        if isinstance(options, SamplingOptions):
            _fill_step(options, online)
            _fill_rewards(stage, options.sampled(), f"stage {stage.name}")
        elif stage.name in online:
            _fill_rewards(stage, _rollout(stage), f"stage {stage.name}")


def _is_online(stage: Stage) -> bool:
    return stage.kind == "algorithm" and stage.component.registration.implementation.source is Source.ROLLOUTS


def _rollout(stage: Stage) -> dict[str, Any]:
    """The sampling options of an online stage."""
    return {key: getattr(stage.settings.rollout, key) for key in KEYS} if stage.settings else {}


def _fill_step(options: SamplingOptions, online: Mapping[str, Stage]) -> None:
    policies = [reference.partition("@")[0] for reference in options.policies_to_sample()]
    if not policies:
        return
    own = [online[name] for name in dict.fromkeys(policies) if name in online]
    source = next(iter([*own, *online.values()]), None)
    values = {} if source is None else _rollout(source)
    written = set(options.sampling.model_fields_set)
    options.follow(values, f"stage {source.name}" if source else "", [*_differences(own, written), *_penalties(own)])


def _differences(stages: Sequence[Stage], written: Iterable[str]) -> list[str]:
    """Notes on policies that were trained with other samples than those of the first, except for the written keys."""
    notes = []
    for stage in stages[1:]:
        first, other = _rollout(stages[0]), _rollout(stage)
        different = [f"{key} {other[key]}" for key in KEYS if key not in written and other[key] != first[key]]
        if different:
            notes.append(f"{stage.name} was trained on samples with {', '.join(different)}")
    return notes


def _penalties(stages: Sequence[Stage]) -> list[str]:
    """Notes on policies that were trained with another reward than the one that a step reports."""
    penalties = {stage.name: stage.settings.rollout.missing_eos_penalty for stage in stages if stage.settings}
    return [
        f"rewards are shown without the missing_eos_penalty {penalty:g} that {name} was trained with"
        for name, penalty in penalties.items()
        if penalty
    ]


def _fill_rewards(stage: Stage, values: Mapping[str, Any], source: str) -> None:
    for spec in specs([stage.settings, stage.component.options], RewardSpec):
        if spec.component is not None and isinstance(spec.component.options, SamplingOptions):
            spec.component.options.follow(values, source, [])


def read_engine(raw: Any, keys: Keys, scope: Scope) -> Any:
    """Return an engine with its options, or LOCAL; None if it is wrong."""
    return LOCAL if raw == LOCAL else read_component("engine", raw, keys, scope)


def fill_engines(
    stages: dict[str, Stage], engine: Component | str | None, bases: Mapping[str, ModelSpec], problems: Problems
) -> None:
    """Give every stage its engine: its own, or if it samples the recipe's. None is alignkit itself."""
    for name, stage in stages.items():
        chosen = (stage.engine or engine) if _samples(stage) else stage.engine
        component = chosen if isinstance(chosen, Component) else None
        keys: Keys = ("stages", name, "engine") if stage.engine else ("engine",)
        if component and bases[stage.base].lora is None and not component.registration.implementation.whole_models:
            message = f"engine '{component.name}' takes adapters, but with 'model.lora: none' there are none"
            problems.error(keys, message, help="leave 'lora' out, or write 'engine: local'")
        if component and stage.settings is not None and not _samples(stage):
            message = f"stage '{name}': {stage.component.name} does its own sampling, so 'engine' would have no effect"
            problems.error(("stages", name, "engine"), message, at_key=True, help="leave 'engine' out")
        _check_logprobs(stage, component, problems)
        options = component.options if component else None
        lacking = options.lacks_quantization if isinstance(options, EngineOptions) else ""
        if component and lacking and bases[stage.base].quantization != "none":
            message = (
                f"engine '{component.name}' would sample from the whole weights, and the quantized ones are trained"
            )
            problems.error(keys, message, help=f"{lacking}, or write 'engine: local'")
        apart = isinstance(options, EngineOptions) and options.samples_ahead
        if stage.settings is not None and stage.settings.rollout.ahead and not apart:
            who = component.name if component else LOCAL
            message = f"stage '{name}': engine '{who}' cannot sample while the stage learns, as with 'ahead'"
            help = "let an engine sample elsewhere, such as vllm on other devices, or leave 'ahead' out"
            problems.error(("stages", name, "rollout", "ahead"), message, at_key=True, help=help)
        stages[name] = replace(stage, engine=component)


def _check_logprobs(stage: Stage, engine: Component | None, problems: Problems) -> None:
    """Check that the engine tells the log-probabilities that weigh samples, by which it or older weights wrote them."""
    if stage.settings is None or engine is None or engine.registration.implementation.tells_filtered:
        return
    rollout, rules, neutral = stage.settings.rollout, stage.settings.stop, Rollout()
    changed = [key for key in ("top_k", "top_p", "min_new_tokens") if getattr(rollout, key) != getattr(neutral, key)]
    filters = " and ".join(changed)
    weighs = {"rollout.importance": rollout.importance, "stop.kl": rollout.ahead and rules and rules.kl}
    for key in [key for key, value in weighs.items() if value and filters]:
        message = f"stage '{stage.name}': engine '{engine.name}' tells no log-probabilities with {filters}, "
        message += f"which '{key}' needs"
        keys = ("stages", stage.name, *key.split("."))
        problems.error(keys, message, at_key=True, help=f"leave {filters} out, or '{key}'")


def _samples(stage: Stage) -> bool:
    """Whether a stage samples: rollouts, or what the options of its plugins say. An engine is part of its hash."""
    if _is_online(stage) and not issubclass(stage.component.registration.implementation, ExternalTrainer):
        return True
    parts = [stage.component, *specs([stage.settings, stage.component.options], Component)]
    return any(part.options.asks_engine() for part in parts)
