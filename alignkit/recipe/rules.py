"""Rules for keys of a recipe that go together. A rule is a row of a table: where it applies,
when it is broken, what to say, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.contract.algorithm import Needs, Source
from alignkit.contract.settings import Settings
from alignkit.host.registry import Component
from alignkit.recipe.mistakes import PATH, Mistake
from alignkit.recipe.schema import BASE, Stage, specs
from alignkit.recipe.yaml import children


@dataclass(frozen=True)
class Rule:
    """A relation of keys. message, help: texts in which `{x}` is what is checked.

    place: its key, such as `rollout.async_level`. key: point at the key instead of its value.
    """

    place: str
    broken: Callable[[Any], Any]
    message: str
    help: str
    key: bool = False


def broken(
    rules: Sequence[Rule], subject: Any, without: Collection[str | int] = ()
) -> Iterator[Mistake]:
    """The mistakes of what is checked. without: keys that are wrong, so that no rule can be applied
    to them.
    """
    for rule in rules:
        place = tuple(rule.place.split("."))
        if place[0] not in without and rule.broken(subject):
            message, help = rule.message.format(x=subject, path=PATH), rule.help.format(x=subject)
            yield Mistake(message, help, place, at_key=rule.key)


# --- the model

MODEL = (
    Rule(
        "quantization",
        lambda x: x.quantization != "none" and x.lora is None,
        PATH + ": {x.quantization} weights cannot be trained",
        "train a LoRA adapter, or set 'quantization: none'",
    ),
    Rule(
        "dtype",
        lambda x: x.dtype == "bfloat16" and x.lora is None,
        PATH + ": bfloat16 weights would lose most updates at the learning rates of fine-tuning",
        "leave 'dtype' out and write 'mixed_precision: bf16', or train a LoRA adapter",
    ),
    Rule(
        "mixed_precision",
        lambda x: x.mixed_precision != "none" and x.lora is not None,
        PATH + ": a LoRA adapter multiplies in the dtype of the base, which learns nothing",
        "write 'dtype: bfloat16' instead, or train all weights with 'lora: none'",
    ),
)

# --- a training stage, whose plugin is `{x.registration.name}`


def _lacks_episodes(stage: Stage) -> bool:
    """Whether a reward, or a part of it, is that of an episode, and there are none."""
    kinds = [
        component.registration.implementation for component in specs(stage.settings, Component)
    ]
    return "environment" not in stage.written and any(
        getattr(kind, "of_episodes", False) for kind in kinds
    )


def _reads_rewards(filters: Sequence[Component] | None) -> bool:
    return any(each.registration.implementation.reads_rewards for each in filters or ())


def _learns_nothing(stage: Stage) -> bool:
    """Whether reference and start are the same, and nothing else is learned from; see
    `Needs.teacher`.
    """
    if stage.needs is None or stage.settings is None or not stage.needs.teacher:
        return False
    option = isinstance(stage.needs.teacher, str) and getattr(
        stage.component.options, stage.needs.teacher, None
    )
    return stage.settings.reference in (None, stage.settings.from_ or BASE) and not option


STAGE = (
    Rule(
        "reference",
        _learns_nothing,
        "{x.registration.name} learns from where its reference differs from the policy's start, "
        "but both are the same",
        "name the model to learn from, as in 'reference: STAGE', or set the option that lets it "
        "read another prompt",
    ),
)
ONLINE = (
    Rule(
        "rollout.max_new_tokens",
        lambda x: x.rollout.max_new_tokens and x.rollout.max_new_tokens >= x.settings.max_length,
        "max_new_tokens {x.rollout.max_new_tokens} leaves no room for a prompt in max_length "
        "{x.settings.max_length}",
        "max_length covers a prompt and its response, in tokens",
    ),
    Rule(
        "reward",
        _lacks_episodes,
        "the reward is that of an episode, but the stage has no environment",
        "add 'environment: NAME', or use another reward",
    ),
    Rule(
        "rollout.async_level",
        lambda x: x.rollout.async_level and x.rollout.max_num_gen_batches,
        "what is sampled next waits for the scores of the samples before, and 'async_level' does not",
        "leave 'async_level' or 'max_num_gen_batches' out",
        key=True,
    ),
    Rule(
        "rollout.filters",
        lambda x: (
            x.needs
            and not x.needs.reward
            and "reward" not in x.written
            and _reads_rewards(x.rollout.filters)
        ),
        "a filter reads rewards, but {x.registration.name} learns from none",
        "name a 'reward', or leave the filter out",
    ),
    Rule(
        "rollout.missing_eos_penalty",
        lambda x: x.rollout.missing_eos_penalty and x.needs and not x.needs.reward,
        "missing_eos_penalty is subtracted from rewards, and {x.registration.name} learns from none",
        "leave missing_eos_penalty out",
    ),
    Rule(
        "rollout.samples_per_prompt",
        lambda x: x.needs and x.rollout.samples_per_prompt < x.needs.min_samples,
        "{x.registration.name} needs at least {x.needs.min_samples} responses to each prompt, not "
        "{x.rollout.samples_per_prompt}",
        "set 'rollout: {{samples_per_prompt: {x.needs.min_samples}}}' or more",
    ),
    Rule(
        "rollout.max_new_tokens",
        lambda x: x.needs and x.needs.max_new_tokens not in (None, x.rollout.max_new_tokens),
        "the options of {x.registration.name} imply max_new_tokens {x.needs.max_new_tokens}, but "
        "'rollout' has {x.rollout.max_new_tokens}",
        "set 'rollout: {{max_new_tokens: {x.needs.max_new_tokens}}}', or change the options of "
        "{x.registration.name}",
    ),
)


def stage_mistakes(stage: Stage, without: Collection[str | int]) -> Iterator[Mistake]:
    """What does not go together in a training stage. without: the keys that are wrong."""
    yield from broken(STAGE, stage, without)
    if stage.online:
        yield from broken(ONLINE, stage, without)
    for path, reason in stage.plugin.unsupported_keys.items():
        keys = tuple(path.split("."))
        value: Any = stage.written
        for key in keys:
            value = children(value).get(key)
        if value is not None:
            yield Mistake(
                f"{stage.registration.name} does not support '{path}'", reason, keys, at_key=True
            )


# --- the keys of the other kind of algorithm

# Keys that are to be left out -> why.
ONLY_ONLINE = dict.fromkeys(
    (
        "prompts",
        "rollout",
        "monitors",
        "environment",
        "engine",
        "prompts_per_iteration",
        "reward",
        "iterations",
        "replay_from",
    ),
    "it learns from 'data' and samples nothing",
)
_ONLY_OFFLINE = {
    "data": (
        "it learns from its own responses to 'prompts'; to add a data set, use 'mix: {data: ...}'"
    ),
    "max_steps": "'iterations' sets its length",
    "validation": "the reward measures its progress; to evaluate its result, add a step",
}
_OF_POLICIES = {"mix": "a reward model has no language-model head, which 'mix' would train"}


def required_keys(algorithm: Any, needs: Needs | None = None) -> tuple[str, ...]:
    """The stage keys that an algorithm requires. needs: with its options; None: as far as they are
    known without.
    """
    if algorithm.source is not Source.ROLLOUTS:
        return ("data",)
    needs = needs or getattr(algorithm, "needs", None)
    if isinstance(needs, Needs) and not needs.reward:
        return ("prompts",)
    return ("prompts", "reward")


def key_mistakes(stage: Stage) -> Iterator[Mistake]:
    """Keys that the algorithm does not use, and those that are missing."""
    name, needs, unused, wanted, others = (
        stage.registration.name,
        stage.needs,
        dict(ONLY_ONLINE),
        "data",
        "prompts",
    )
    if stage.online:
        unused, wanted, others = dict(_ONLY_OFFLINE), "prompts", "data"
    if others in stage.written and wanted not in stage.written:
        message = f"{name} learns from '{wanted}', but the stage has '{others}'"
        yield Mistake(
            message, f"write '{wanted}: FILE' instead, or choose another algorithm", ("algorithm",)
        )
        return
    if stage.trains_reward:
        unused |= _OF_POLICIES
    if needs is not None and (needs.shared_values or not needs.values):
        unused["value_from"] = "it has no value function of its own"
    if needs is not None and not (stage.online or needs.reference_logprobs):
        unused["reference"] = "it compares its policy with no other one"
    for key, reason in unused.items():
        if key in stage.written:
            yield Mistake(f"{name} does not use '{key}'", reason, (key,), at_key=True)
    for key in required_keys(stage.plugin, needs):
        if key not in stage.written:
            help = Settings.model_fields[key].description or ""
            yield Mistake(f"'{PATH}' is missing: {name} requires it", help, (key,), at_key=True)


# --- engines


ENGINE = (
    Rule(
        "engine",
        lambda x: (
            x.engine
            and x.model.lora is None
            and not x.engine.registration.implementation.whole_models
        ),
        "engine '{x.engine.name}' takes adapters, but with 'model.lora: none' there are none",
        "leave 'lora' out, or write 'engine: local'",
    ),
    Rule(
        "engine",
        lambda x: (
            x.engine
            and x.model.quantization != "none"
            and getattr(x.engine.options, "lacks_quantization", "")
        ),
        "engine '{x.engine.name}' would sample from the whole weights, and the quantized ones "
        "are trained",
        "{x.engine.options.lacks_quantization}, or write 'engine: local'",
    ),
    Rule(
        "rollout.async_level",
        lambda x: (
            x.rollout.async_level
            and not (x.engine and getattr(x.engine.options, "samples_ahead", False))
        ),
        "the stage's engine cannot sample while the stage learns, as with 'async_level'",
        "let an engine sample elsewhere, such as vllm on other devices, or leave 'async_level' out",
        key=True,
    ),
    Rule(
        "engine",
        lambda x: (
            x.engine
            and getattr(x.engine.options, "importance", None)
            and x.needs
            and x.needs.advantages is None
        ),
        "{x.registration.name} does not use the engine's 'importance': it weights advantages, of "
        "which it has none",
        "leave 'importance' out",
    ),
)
