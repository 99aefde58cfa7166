"""Which keys of a recipe go together. A rule is a row of a table: where, when it is broken, what to say, what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from alignkit.algorithm import ExternalTrainer, Needs, Source, Trains
from alignkit.data.sources import DataSpec
from alignkit.engine import LOCAL, EngineOptions
from alignkit.monitor import Monitor
from alignkit.recipe.mistakes import PATH, Mistake
from alignkit.recipe.references import Reading
from alignkit.recipe.schema import BASE, Stage, specs, walk
from alignkit.recipe.yaml import Keys
from alignkit.registry import Component
from alignkit.sampling import SamplingOptions
from alignkit.settings import ModelSpec, Rollout, Settings


@dataclass(frozen=True)
class Rule:
    """A relation of keys. message, help: texts in which `{x}` is what is checked.

    place: its key, such as `rollout.ahead`. key: point at the key instead of its value. other: a key that is to blame
    instead if an override wrote it.
    """

    place: str
    broken: Callable[[Any], Any]
    message: str
    help: str = ""
    key: bool = False
    other: str = ""


def broken(rules: Sequence[Rule], subject: Any, without: Collection[str | int] = ()) -> Iterator[Mistake]:
    """The mistakes of what is checked. without: keys that are wrong, so that no rule can be applied to them."""
    for rule in rules:
        place, others = tuple(rule.place.split(".")), ((rule.other,),) if rule.other else ()
        if not {place[0], rule.other} & {*without} and rule.broken(subject):
            message, help = rule.message.format(x=subject, path=PATH), rule.help.format(x=subject)
            yield Mistake(message, help, place, at_key=rule.key, others=others)


# --- the model

MODEL = (
    Rule(
        "quantization",
        lambda x: x.quantization != "none" and x.lora is None,
        PATH + ": {x.quantization} weights cannot be trained",
        "train a LoRA adapter, or set 'quantization: none'",
        other="lora",
    ),
    Rule(
        "mixed_precision",
        lambda x: x.mixed_precision != "none" and x.lora is not None,
        PATH + ": with a LoRA adapter the base is frozen, so 'dtype: bfloat16' does the same",
        "leave 'mixed_precision' out, or train all weights with 'lora: none'",
    ),
    Rule(
        "dtype",
        lambda x: x.dtype == "float16",
        PATH + ": float16 would lose small gradients, because alignkit does no loss scaling",
        "'dtype: auto' chooses bfloat16 if the hardware is fast at it",
    ),
    Rule(
        "dtype",
        lambda x: x.dtype == "bfloat16" and x.lora is None,
        PATH + ": bfloat16 weights would lose most updates at the learning rates of fine-tuning",
        "leave 'dtype' out and write 'mixed_precision: bf16', or train a LoRA adapter",
    ),
)

# --- a training stage


@dataclass(frozen=True)
class Draft:
    """A training stage whose keys are checked. settings: without the keys that are wrong. needs: None: unknown."""

    name: str
    algorithm: Any
    written: Mapping[str, Any]
    settings: Settings
    reading: Reading
    options: Any = None
    needs: Needs | None = None
    chooses: bool = True

    @property
    def rollout(self) -> Rollout:
        """How it samples."""
        return self.settings.rollout

    @property
    def online(self) -> bool:
        """Whether the algorithm learns from rollouts."""
        return bool(self.algorithm.source is Source.ROLLOUTS)

    @property
    def external(self) -> bool:
        """Whether another library trains."""
        return issubclass(self.algorithm, ExternalTrainer)

    @property
    def start(self) -> str:
        """The weights that it starts from."""
        return self.settings.from_ or self.settings.base or BASE

    @property
    def choosing(self) -> str:
        """What chooses the next prompts by the scores of those before; empty if nothing does."""
        for monitor in specs(self.settings.monitors, Component):
            if monitor.registration.implementation.next_prompts is not Monitor.next_prompts:
                return f"monitor '{monitor.name}'"
        return ""

    def is_reward(self, key: str) -> bool | None:
        """Whether a key names a stage that trains a reward model; None if it names no stage."""
        return self.reading.trains_reward(getattr(self.settings, key) or "")


def _is_no_policy(key: str, draft: Draft) -> bool:
    return draft.algorithm.trains is Trains.POLICY and bool(draft.is_reward(key))


def _lacks_episodes(key: str, draft: Draft) -> bool:
    """Whether a reward or a part of it is that of an episode, and there are none."""
    kinds = [component.registration.implementation for component in specs(getattr(draft.settings, key), Component)]
    return "environment" not in draft.written and any(getattr(kind, "of_episodes", False) for kind in kinds)


def _too_few(key: str, draft: Draft) -> bool:
    count = getattr(draft.rollout, key)
    return count is not None and draft.needs is not None and count < draft.needs.min_samples


def _learns_nothing(draft: Draft) -> bool:
    """Whether reference and start are the same, and nothing else is learned from; see `Needs.teacher`."""
    teacher = draft.needs.teacher if draft.needs else False
    option = isinstance(teacher, str) and getattr(draft.options, teacher, None)
    return bool(teacher) and draft.settings.reference in (None, draft.start) and not option


_GOLD = "name a reward that is not learned from, as in 'gold: REWARD'"
STAGE = (
    *(
        Rule(
            key,
            partial(_is_no_policy, field),
            f"'{{x.settings.{field}}}' is a reward model, but {{x.name}} needs a policy here",
        )
        for key, field in (("from", "from_"), ("reference", "reference"))
    ),
    Rule(
        "value_from",
        lambda x: x.is_reward("value_from") is False,
        "'{x.settings.value_from}' does not train a reward model",
        "name a stage that trains a reward model",
    ),
)
ONLINE = (
    Rule(
        "rollout.max_new_tokens",
        lambda x: x.rollout.max_new_tokens and x.rollout.max_new_tokens >= x.settings.max_length,
        "max_new_tokens {x.rollout.max_new_tokens} leaves no room for a prompt in max_length {x.settings.max_length}",
        "max_length covers a prompt and its response, in tokens",
        other="max_length",
    ),
    Rule(
        "rollout.max_num_gen_batches",
        lambda x: x.rollout.max_num_gen_batches and not (x.rollout.filters or x.chooses or x.external),
        "'max_num_gen_batches' has no effect: {x.name} keeps every group, and there are no 'filters'",
        "add 'filters: [spread]', for grpo set 'dynamic_sampling: true', or leave it out",
        key=True,
    ),
    *(
        Rule(
            key,
            partial(_lacks_episodes, key),
            f"'{key}' has the reward of an episode, but the stage has no environment",
            "add 'environment: NAME', or use another reward",
        )
        for key in ("reward", "gold")
    ),
    Rule(
        "gold_prompts",
        lambda x: {"gold_prompts", "gold"} & {*x.written} == {"gold_prompts"},
        "'gold_prompts' needs 'gold'",
        _GOLD,
        key=True,
    ),
    Rule(
        "stop.gold",
        lambda x: x.settings.stop and x.settings.stop.gold and "gold" not in x.written,
        "'stop.gold' needs 'gold'",
        _GOLD,
        key=True,
    ),
    Rule(
        "stop.gold",
        lambda x: x.settings.stop and x.settings.stop.gold and x.rollout.ahead and "gold_prompts" not in x.written,
        # Its samples would say how good the policy was one update before the one that the stage goes back to.
        "'stop.gold' would judge a policy by what the one before it wrote, as with 'rollout.ahead'",
        "name held-out prompts in 'gold_prompts', which the current policy answers, or leave 'ahead' out",
        key=True,
    ),
    Rule(
        "gold_prompts",
        lambda x: {"environment", "gold_prompts"} <= {*x.written},
        "'gold_prompts' cannot be played with an environment",
        "leave it out: gold is then measured on the episodes of the stage",
        key=True,
    ),
    Rule(
        "rollout.ahead",
        lambda x: x.rollout.ahead and (x.choosing or x.rollout.max_num_gen_batches),
        "what is sampled next waits for the scores of the samples before, and 'ahead' does not",
        "leave 'ahead' out, or 'max_num_gen_batches' and monitors that choose the prompts",
        key=True,
    ),
)
# With what an algorithm needs, which its options decide.
NEEDS = (
    Rule(
        "value_from",
        lambda x: x.settings.value_from and x.needs.shared_values,
        "{x.name} computes its values from the policy",
        "leave 'value_from' out",
        key=True,
    ),
    Rule(
        "value_from",
        lambda x: x.settings.value_from and not (x.needs.values or x.needs.shared_values),
        "{x.name} does not use values",
        "leave 'value_from' out",
        key=True,
    ),
    Rule(
        "reference",
        lambda x: x.settings.reference and not (x.online or x.needs.reference_logprobs),
        "{x.name} does not use a reference",
        "leave 'reference' out",
        key=True,
    ),
    Rule(
        "reference",
        _learns_nothing,
        "{x.name} learns from where its reference differs from the policy's start, but both are '{x.start}'",
        "name the model to learn from, as in 'reference: STAGE', or set the option that lets it read another prompt",
    ),
)
NEEDS_ONLINE = (
    *(
        Rule(
            f"rollout.{key}",
            partial(_too_few, key),
            f"{{x.name}} needs at least {{x.needs.min_samples}} responses to each prompt, got {{x.rollout.{key}}}",
            "set 'rollout: {{samples_per_prompt: {x.needs.min_samples}}}' or more",
        )
        for key in ("samples_per_prompt", "learn_from")
    ),
    Rule(
        "rollout.importance",
        lambda x: x.rollout.importance and x.needs.advantages is None,
        "{x.name} does not use 'rollout.importance'",
        "it weights advantages, and {x.name} declares none that it learns from (`Needs(advantages=...)`)",
        key=True,
    ),
    Rule(
        "rollout.importance.level",
        lambda x: x.needs.advantages == "sequence" and x.rollout.importance and x.rollout.importance.level == "token",
        "{x.name} learns from whole responses, so tokens cannot have weights",
        "write 'level: sequence', or leave it out",
    ),
    Rule(
        "rollout.max_new_tokens",
        lambda x: x.needs.max_new_tokens not in (None, x.rollout.max_new_tokens),
        "the options of {x.name} imply max_new_tokens {x.needs.max_new_tokens}, but 'rollout' has "
        "{x.rollout.max_new_tokens}",
        "set 'rollout: {{max_new_tokens: {x.needs.max_new_tokens}}}', or change the options of {x.name}",
    ),
)


def stage_mistakes(draft: Draft, without: Collection[str | int]) -> Iterator[Mistake]:
    """What does not go together in a training stage. without: the keys that are wrong."""
    tables = [STAGE, *([ONLINE] if draft.online else [])]
    if draft.needs is not None:
        tables += [NEEDS, *([NEEDS_ONLINE] if draft.online else [])]
    for table in tables:
        yield from broken(table, draft, without)
    for path, reason in draft.algorithm.unsupported_keys.items():
        keys = tuple(path.split("."))
        value: Any = draft.written
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            yield Mistake(f"{draft.name} does not support '{path}'", reason, keys, at_key=True)
    if draft.online and draft.needs is not None and not draft.needs.reward and "reward" not in draft.written:
        for index, component in enumerate(draft.rollout.filters or ()):
            if component.registration.implementation.reads_rewards:
                message = f"filter '{component.name}' reads rewards, but {draft.name} learns from none"
                yield Mistake(message, "name a 'reward', or leave the filter out", ("rollout", "filters", index))


# --- the keys of the other kind of algorithm

_SAMPLED = ("prompts", "rollout", "gold_prompts", "monitors", "environment", "engine", "prompts_per_iteration")
ONLY_ONLINE = {
    **dict.fromkeys(_SAMPLED, "it learns from 'data' and samples nothing"),
    **dict.fromkeys(("reward", "gold"), "it learns from 'data', so there are no samples to score"),
    "stop": "it makes 'epochs' passes over 'data'; with 'validation', the best epoch is kept",
    "iterations": "it makes 'epochs' passes over 'data'",
    "replay_from": "it learns from 'data' and has no rollouts to replay",
}
_ONLY_OFFLINE = {
    "data": "it learns from its own responses to 'prompts'; to add a data set, use 'mix: {data: ...}'",
    "max_steps": "'iterations' sets its length",
    "validation": "the reward measures its progress; to evaluate its result, add a step",
}


def unused_keys(algorithm: Any) -> dict[str, str]:
    """The keys that an algorithm does not use, with the reason."""
    unused = dict(_ONLY_OFFLINE if algorithm.source is Source.ROLLOUTS else ONLY_ONLINE)
    if issubclass(algorithm, ExternalTrainer):
        watched = ("environment", "gold", "gold_prompts", "stop", "monitors")
        unused |= dict.fromkeys(watched, "it does its own sampling")
    if algorithm.trains is Trains.REWARD:
        unused["mix"] = "a reward model has no language-model head, which 'mix' would train"
    return unused


def required_keys(algorithm: Any, needs: Needs | None = None) -> tuple[str, ...]:
    """The stage keys that an algorithm requires. needs: with its options; None: as far as they are known without."""
    if algorithm.source is not Source.ROLLOUTS:
        return ("data",)
    return ("prompts", "reward") if _rewarded(algorithm, needs) else ("prompts",)


def key_mistakes(name: str, algorithm: Any, written: Collection[str], needs: Needs | None) -> Iterator[Mistake]:
    """Keys that the algorithm does not use, and those that are missing."""
    online = algorithm.source is Source.ROLLOUTS
    theirs, own = ("data", "prompts") if online else ("prompts", "data")
    # Which keys another library's trainer reads depends on its options.
    if theirs in written and own not in written and not issubclass(algorithm, ExternalTrainer):
        message = f"{name} learns from '{own}', but the stage has '{theirs}'"
        yield Mistake(message, f"write '{own}: FILE' instead, or choose another algorithm", ("algorithm",))
        return
    for key, reason in unused_keys(algorithm).items():
        if key in written:
            yield Mistake(f"{name} does not use '{key}'", reason, (key,), at_key=True)
    for key in required_keys(algorithm, needs):
        if key not in written:
            help = Settings.model_fields[key].description or ""
            yield Mistake(f"'{PATH}' is missing: {name} requires it", help, (key,), at_key=True, missing=True)


def _rewarded(algorithm: Any, needs: Needs | None = None) -> bool:
    """Whether an algorithm learns from a reward, as far as that is known without its options."""
    needs = needs or getattr(algorithm, "needs", None)
    return needs.reward if isinstance(needs, Needs) else True


# --- data


def data_mistakes(options: Any) -> Iterator[Mistake]:
    """Rows that are held out where nothing reads them. options: of a stage."""
    for keys, spec in walk(options):
        if keys == ("data",) or not isinstance(spec, DataSpec):
            continue
        if any(source.validation and source.part is None for source in spec.sources):
            message = f"{PATH}: 'validation' holds out rows that nothing would read here"
            help = "add 'part: training' or 'part: validation' to say which rows to read"
            yield Mistake(message, help, keys)


# --- engines


@dataclass(frozen=True)
class Sampler:
    """What samples in a stage. engine: None: alignkit itself. samples: whether the stage samples with an engine."""

    stage: Stage
    engine: Component | None
    spec: ModelSpec
    samples: bool

    @property
    def name(self) -> str:
        """The engine."""
        return self.engine.name if self.engine else LOCAL

    @property
    def options(self) -> EngineOptions | None:
        """Those of every engine."""
        return self.engine.options if self.engine and isinstance(self.engine.options, EngineOptions) else None

    @property
    def rollout(self) -> Rollout:
        """How a training stage samples."""
        return self.stage.settings.rollout if self.stage.settings else Rollout()

    @property
    def hidden(self) -> str:
        """The filters with which the engine tells no log-probabilities; empty: it tells them."""
        if not self.engine or self.engine.registration.implementation.tells_filtered:
            return ""
        neutral, keys = Rollout(), ("top_k", "top_p", "min_new_tokens")
        return " and ".join(key for key in keys if getattr(self.rollout, key) != getattr(neutral, key))

    @property
    def weighs_kl(self) -> Any:
        """Whether the KL budget reads log-probabilities of older weights."""
        stop = self.stage.settings.stop if self.stage.settings else None
        return self.rollout.ahead and stop and stop.kl


ENGINE = (
    Rule(
        "engine",
        lambda x: x.engine and x.spec.lora is None and not x.engine.registration.implementation.whole_models,
        "engine '{x.name}' takes adapters, but with 'model.lora: none' there are none",
        "leave 'lora' out, or write 'engine: local'",
    ),
    Rule(
        "engine",
        lambda x: x.options and x.options.lacks_quantization and x.spec.quantization != "none",
        "engine '{x.name}' would sample from the whole weights, and the quantized ones are trained",
        "{x.options.lacks_quantization}, or write 'engine: local'",
    ),
    Rule(
        "rollout.ahead",
        lambda x: x.rollout.ahead and not (x.options and x.options.samples_ahead),
        "stage '{x.stage.name}': engine '{x.name}' cannot sample while the stage learns, as with 'ahead'",
        "let an engine sample elsewhere, such as vllm on other devices, or leave 'ahead' out",
        key=True,
    ),
    *(
        Rule(
            key,
            uses,
            "stage '{x.stage.name}': engine '{x.name}' tells no log-probabilities with {x.hidden}, "
            f"which '{key}' needs",
            f"leave {{x.hidden}} out, or '{key}'",
            key=True,
        )
        for key, uses in {
            "rollout.importance": lambda x: x.hidden and x.rollout.importance,
            "stop.kl": lambda x: x.hidden and x.weighs_kl,
        }.items()
    ),
)

# --- base models

# Keys of a training stage whose weights or tokens become its own -> what to do about another base.
_OWN = {
    "from": "start from a stage on the same base, or leave 'from' out",
    "value_from": "leave 'value_from' out: the values then start from the policy",
    "replay_from": "replay only rollouts of stages on the same base, whose tokens are the same",
}


def bases_of(reference: str, stages: Mapping[str, Stage], bases: Collection[str]) -> set[str]:
    """The base models that a reference may be on; empty for a folder, and for a stage with problems.

    A step is on those of the policies that it samples: it may choose one of them.
    """
    name = reference.partition("@")[0]
    if name in bases:
        return {name}
    stage = stages.get(name)
    if stage is None or stage.kind == "algorithm":
        return {stage.base} if stage else set()
    return set().union(*(bases_of(policy, stages, bases) for policy in sampled_by(stage)))


def sampled_by(stage: Stage) -> list[str]:
    """The policies that a step samples."""
    options = stage.component.options
    return list(options.policies_to_sample()) if isinstance(options, SamplingOptions) else []


def base_mistakes(stage: Stage, stages: Mapping[str, Stage], bases: Collection[str]) -> Iterator[Mistake]:
    """References that would mix base models: weights, values and tokens of one mean nothing to another."""
    if len(bases) < 2:
        return
    for key, reference in _own_references(stage):
        others = bases_of(reference, stages, bases) - {stage.base}
        if others:
            message = (
                f"'{reference}' is on {_listed(others)}, but stage '{stage.name}' is on {_listed([stage.base])}; "
                f"'{key[0]}' must be on the stage's own base model"
            )
            yield Mistake(message, _OWN[str(key[0])], key)
    for reference in stage.roles:
        mixed = bases_of(reference, stages, bases)
        if len(mixed) > 1:
            message = f"'{reference}' may be on {_listed(mixed)}: its policies are on several base models"
            help = f"name policies of one base model in stage '{reference.partition('@')[0]}'"
            yield Mistake(message, help, at_key=True)


def _own_references(stage: Stage) -> Iterable[tuple[Keys, str]]:
    if stage.settings is None:
        return
    if stage.settings.from_ is not None:
        yield ("from",), stage.settings.from_
    if stage.settings.value_from is not None:
        yield ("value_from",), stage.settings.value_from
    for index, value in enumerate(stage.settings.replay_from):
        yield ("replay_from", index), value


def _listed(bases: Iterable[str]) -> str:
    """`model and base 'small'`"""
    return " and ".join("'model'" if base == BASE else f"base '{base}'" for base in sorted(bases))
