"""Fills in the sampling options that steps and rewards leave out, from the stages that train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit.algorithm import ROLLOUTS
from alignkit.recipe.schema import RewardSpec, Stage, specs
from alignkit.sampling_options import ResponseOptions, SamplingOptions

_KEYS = [key for key in SamplingOptions.model_fields]


def fill_sampling(stages: Mapping[str, Stage]) -> None:
    """Fill the options of all stages, before anything depends on them: they are part of the stages' hashes."""
    online = {name: stage for name, stage in stages.items() if _is_online(stage)}
    for stage in stages.values():
        options = stage.component.options
        if isinstance(options, ResponseOptions):
            _fill_step(options, online)
            _fill_rewards(stage, options.sampling(), f"stage {stage.name}")
        elif stage.name in online:
            _fill_rewards(stage, _rollout(stage), f"stage {stage.name}")


def _is_online(stage: Stage) -> bool:
    return stage.kind == "algorithm" and stage.component.registration.implementation.source is ROLLOUTS


def _rollout(stage: Stage) -> dict[str, Any]:
    """The sampling options of an online stage."""
    return {key: getattr(stage.settings.rollout, key) for key in _KEYS} if stage.settings else {}


def _fill_step(options: ResponseOptions, online: Mapping[str, Stage]) -> None:
    policies = [reference.partition("@")[0] for reference in options.policies_to_sample()]
    if not policies:
        return
    own = [online[name] for name in dict.fromkeys(policies) if name in online]
    source = next(iter([*own, *online.values()]), None)
    values = {} if source is None else _rollout(source)
    written = {key for key in _KEYS if getattr(options, key, None) is not None}
    options.follow(values, f"stage {source.name}" if source else "", [*_differences(own, written), *_penalties(own)])


def _differences(stages: Sequence[Stage], written: Iterable[str]) -> list[str]:
    """Notes on policies that were trained with other samples than those of the first, except for the written keys."""
    notes = []
    for stage in stages[1:]:
        first, other = _rollout(stages[0]), _rollout(stage)
        different = [f"{key} {other[key]}" for key in _KEYS if key not in written and other[key] != first[key]]
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
        if spec.component is not None and isinstance(spec.component.options, ResponseOptions):
            spec.component.options.follow(values, source, [])
