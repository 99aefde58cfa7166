"""Reads a training stage: its algorithm's options, its settings, and whether they are compatible."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from alignkit.algorithm import Needs, Source, StageDefaults, Trains
from alignkit.calls import blame, create
from alignkit.errors import PluginError
from alignkit.external import ExternalTrainer
from alignkit.monitor import REWARD_HACKING, Monitor
from alignkit.recipe.advice import common_name
from alignkit.recipe.components import find, options_of, read_component, read_options
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import path_text
from alignkit.recipe.schema import BASE, Stage, allowed_keys, specs
from alignkit.recipe.scope import Declared, Scope
from alignkit.registry import Component, Registry
from alignkit.settings import Rollout, Settings

# Keys that only algorithms of the other kind use, with the help that explains it.
_SAMPLED = ("prompts", "rollout", "gold_prompts", "monitors", "environment", "engine")
ONLY_ONLINE = {
    **dict.fromkeys((*_SAMPLED, "prompts_per_iteration"), "it learns from 'data' and samples nothing"),
    **dict.fromkeys(("reward", "gold"), "it learns from 'data', so there are no samples to score"),
    "stop": "it makes 'epochs' passes over 'data'; with 'validation', the best epoch is kept",
    "iterations": "it makes 'epochs' passes over 'data'",
    "replay_from": "it learns from 'data' and has no rollouts to replay",
}
# Keys under `rollout` that change or compare rewards, with the reason why they have no effect without one.
_ONLY_WITH_REWARD = {
    "missing_eos_penalty": "it is subtracted from a reward, and {name} learns from none",
    "learn_from": "it chooses the responses with the best and the worst reward, and {name} learns from none",
}
_ONLY_OFFLINE = {
    "data": "it learns from its own responses to 'prompts'; to add a data set, use 'mix: {data: ...}'",
    "max_steps": "'iterations' sets its length",
    "validation": "the reward measures its progress; to evaluate its result, add a step",
}


_WATCHED = ("gold", "gold_prompts", "stop", "monitors")


@dataclass(frozen=True)
class _Draft:
    """A training stage as written. Any key may have a value of the wrong type.

    written: its keys, without those set to null. filled: the same, with the algorithm's defaults.
    """

    name: str
    algorithm: Any
    written: Mapping[str, Any]
    filled: Mapping[str, Any]
    keys: Keys
    scope: Scope

    @property
    def online(self) -> bool:
        """Whether the algorithm learns from rollouts."""
        return self.algorithm.source is Source.ROLLOUTS

    def error(self, path: Keys, message: str, help: str = "", *, at_key: bool = False) -> None:
        """Report a problem at a key of the stage."""
        self.scope.problems.error((*self.keys, *path), message, at_key=at_key, help=help)


def read_algorithm(declared: Declared, raw: Mapping[str, Any], keys: Keys, scope: Scope) -> Stage | None:
    """Return a training stage, or None if anything is wrong with it."""
    before = len(scope.problems)
    registration = declared.registration
    written = {key: value for key, value in raw.items() if key not in ("algorithm", "step") and value is not None}
    filled = _with_defaults(written, registration.implementation.defaults)
    draft = _Draft(registration.name, registration.implementation, written, filled, keys, scope)
    component = read_component("algorithm", raw["algorithm"], (*keys, "algorithm"), scope, registration)
    refused = _refused_keys(draft)
    needs, log_odds, chooses = _said_by(component, draft)
    _check_keys(draft, refused, needs)
    options = allowed_keys(options_of(registration))

    def hint(key: str) -> str:
        return _hint(key, draft, options, refused)

    settings = read_options(Settings, filled, keys, scope, hint=hint, hidden=refused)
    if settings is not None:
        settings._optimizer_defaults = dict(registration.implementation.defaults.optimizer)
        _check_optimizer(draft, settings)
    _check_roles(draft, needs)
    _check_unsupported(draft)
    if draft.online:
        _check_rollout(draft, needs)
        _check_batches(draft, chooses)
        _check_environment(draft, settings)
        _check_watched(draft)
    if draft.online and settings is not None and settings.prompts is not None:
        _check_next_prompts(draft, settings)
    if needs is not None and component is not None and settings is not None:
        _check_teacher(draft, component.options, settings, needs.teacher)
    if component is None or settings is None or len(scope.problems) > before:
        return None
    upstream, folders, roles = tuple(scope.upstream), tuple(scope.folders), tuple(scope.roles)
    return Stage(
        scope.stage, "algorithm", component, settings, upstream, needs, folders, roles, settings.engine, log_odds
    )


def _with_defaults(written: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """Return a stage's keys with the algorithm's own defaults for those that it does not set."""
    filled = dict(written)
    rollout = filled.get("rollout", {})
    if isinstance(rollout, dict):
        rollout = {key: value for key, value in rollout.items() if value is not None}
    for key, value in vars(defaults).items():
        if value is None or key in ("learning_rate", "optimizer"):  # what they mean depends on others
            continue
        if key not in Rollout.model_fields:
            filled.setdefault(key, value)
        elif isinstance(rollout, dict):
            rollout.setdefault(key, value)
    return {**filled, "rollout": rollout}


def _said_by(component: Component | None, draft: _Draft) -> tuple[Needs | None, bool, bool]:
    """Return an algorithm's `needs`, `log_odds` and `chooses`; no needs if its options are wrong, which decide them."""
    if component is None:
        return None, False, True
    try:
        algorithm = create(component)
        with blame(algorithm, "needs"):
            needs: Needs = algorithm.needs
            return needs, bool(algorithm.log_odds), bool(algorithm.chooses)
    except PluginError as error:
        draft.scope.problems.error((*draft.keys, "algorithm"), str(error), plugin=True)
        return None, False, True


# --- keys


def _refused_keys(draft: _Draft) -> dict[str, str]:
    """Return the keys that the algorithm does not use, with the reason."""
    refused = dict(_ONLY_OFFLINE if draft.online else ONLY_ONLINE)
    if issubclass(draft.algorithm, ExternalTrainer):
        refused |= dict.fromkeys(("environment", *_WATCHED), "it does its own sampling")
    if draft.algorithm.trains is Trains.REWARD:
        refused["mix"] = "a reward model has no language-model head, which 'mix' would train"
    return refused


def _check_keys(draft: _Draft, refused: Mapping[str, str], needs: Needs | None) -> None:
    """Report keys that the algorithm does not use, and missing keys that it requires."""
    if wrong := wrong_kind(draft.name, draft.algorithm, draft.written, draft.scope.registry):
        draft.error(("algorithm",), *wrong)
        return
    for key, reason in refused.items():
        if key in draft.written:
            draft.error((key,), f"{draft.name} does not use '{key}'", reason, at_key=True)
    for key in required_keys(draft.algorithm, needs):
        if key not in draft.written:
            help = Settings.model_fields[key].description or ""
            draft.scope.problems.missing((*draft.keys, key), f": {draft.name} requires it", help)


def required_keys(algorithm: Any, needs: Needs | None = None) -> tuple[str, ...]:
    """The stage keys that an algorithm requires. needs: with its options; None: as far as they are known without."""
    if algorithm.source is not Source.ROLLOUTS:
        return ("data",)
    rewarded = _reward(algorithm) if needs is None else needs.reward
    return ("prompts", "reward") if rewarded else ("prompts",)


def _hint(key: str, draft: _Draft, options: list[str], refused: Mapping[str, str]) -> str:
    """Return the help for an unknown key of a stage: an algorithm's option, or a misspelled key that it refuses."""
    name, option = draft.name, common_name(key)
    if option in options:
        path = path_text((*draft.keys, "algorithm", name, option))
        return f"'{option}' is an option of {name}: write 'algorithm: {{{name}: {{{option}: ...}}}}' ({path})"
    near = next(iter(difflib.get_close_matches(key, allowed_keys(Settings), 1)), "")
    return f"did you mean '{near}'? {name} does not use it: {refused[near]}" if near in refused else ""


def _check_unsupported(draft: _Draft) -> None:
    """Report keys that the algorithm says it would ignore; `rollout.stop` is the key `stop` under `rollout`."""
    for path, reason in draft.algorithm.unsupported_keys.items():
        *parents, key = path.split(".")
        inner: Any = draft.written
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and inner.get(key) is not None:
            draft.error((*parents, key), f"{draft.name} does not support '{path}'", reason, at_key=True)


def _check_optimizer(draft: _Draft, settings: Settings) -> None:
    """Try the schedule and the optimizer, unless they are alignkit's own."""
    named = (settings.optimizer, settings.lr_scheduler_type)
    if None in named or all(isinstance(one, str) for one in named):  # None: already reported
        return
    from alignkit.optimizers import why_unusable  # it imports torch

    for key, why in why_unusable(settings):
        draft.error((key,), why)


# --- roles


def _check_roles(draft: _Draft, needs: Needs | None) -> None:
    """Check that `from`, `reference` and `value_from` name stages of the right kind."""
    refs = {
        key: draft.scope.resolve_name(draft.written[key])
        for key in ("value_from", "from", "reference")
        if isinstance(draft.written.get(key), str)
    }
    if draft.algorithm.trains is Trains.POLICY:
        for key in ("from", "reference"):
            if key in refs and draft.scope.trains_reward(refs[key]):
                draft.error((key,), f"'{refs[key]}' is a reward model, but {draft.name} needs a policy here")
    _check_values(refs.get("value_from"), draft, needs)
    _check_reference(refs.get("reference"), draft, needs)


def _check_values(stage: str | None, draft: _Draft, needs: Needs | None) -> None:
    if stage is None:
        return
    if draft.scope.trains_reward(stage) is False:
        help = "name a stage that trains a reward model"
        draft.error(("value_from",), f"'{stage}' does not train a reward model", help)
    if needs is not None and needs.shared_values:
        help = "leave 'value_from' out"
        draft.error(("value_from",), f"{draft.name} computes its values from the policy", help, at_key=True)
    elif needs is not None and not needs.values:
        draft.error(("value_from",), f"{draft.name} does not use values", "leave 'value_from' out", at_key=True)


def _check_reference(stage: str | None, draft: _Draft, needs: Needs | None) -> None:
    if stage is None or needs is None or draft.online or needs.reference_logprobs:
        return
    if stage in draft.scope.bases or draft.scope.trains_reward(stage) is not None:  # otherwise already reported
        draft.error(("reference",), f"{draft.name} does not use a reference", "leave 'reference' out", at_key=True)


def _check_teacher(draft: _Draft, options: Any, settings: Settings, teacher: bool | str) -> None:
    """Check that the reference says something else than the policy's start, if nothing else is learned from.

    teacher: see `Needs`.
    """
    option = teacher if isinstance(teacher, str) else ""
    start = settings.from_ or settings.base or BASE
    if not teacher or settings.reference not in (None, start) or (option and getattr(options, option, None)):
        return
    message = f"{draft.name} learns from where its reference differs from the policy's start, but both are '{start}'"
    more = f", or set the option '{option}' of {draft.name}" if option else ""
    draft.error(("reference",), message, f"name the model to learn from, as in 'reference: STAGE'{more}")


# --- rollouts


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_rollout(draft: _Draft, needs: Needs | None) -> None:
    """Check that the rollouts have the samples that the algorithm needs."""
    rollout = draft.filled["rollout"] if isinstance(draft.filled["rollout"], dict) else {}
    longest = rollout.get("max_new_tokens", Rollout().max_new_tokens)
    _check_room(draft, longest)
    if needs is None:
        return
    samples = rollout.get("samples_per_prompt", Rollout().samples_per_prompt)
    if _is_integer(samples) and 0 < samples < needs.min_samples:
        message = f"{draft.name} needs at least {needs.min_samples} responses to each prompt, got {samples}"
        help = f"set 'rollout: {{samples_per_prompt: {needs.min_samples}}}' or more"
        draft.error(("rollout", "samples_per_prompt"), message, help)
    for key, reason in _ONLY_WITH_REWARD.items() if not needs.reward else ():
        if rollout.get(key):
            message = f"{draft.name} does not use 'rollout.{key}'"
            draft.error(("rollout", key), message, reason.format(name=draft.name), at_key=True)
    _check_filters(draft, needs, rollout)
    _check_importance(draft, needs, rollout.get("importance"))
    learned = rollout.get("learn_from")
    if _is_integer(learned) and learned < needs.min_samples:
        message = f"{draft.name} needs at least {needs.min_samples} responses to each prompt, got {learned}"
        draft.error(("rollout", "learn_from"), message)
    required = needs.max_new_tokens
    if required is not None and _is_integer(longest) and longest != required:
        message = f"the options of {draft.name} imply max_new_tokens {required}, but 'rollout' has {longest}"
        help = f"set 'rollout: {{max_new_tokens: {required}}}', or change the options of {draft.name}"
        draft.error(("rollout", "max_new_tokens"), message, help)


def _check_importance(draft: _Draft, needs: Needs, importance: Any) -> None:
    """Check that the algorithm learns from advantages, of the level that the weights have."""
    if not isinstance(importance, Mapping):
        return
    if needs.advantages is None:
        message = f"{draft.name} does not use 'rollout.importance'"
        reason = f"it weights advantages, and {draft.name} declares none that it learns from (`Needs(advantages=...)`)"
        draft.error(("rollout", "importance"), message, reason, at_key=True)
    elif needs.advantages == "sequence" and importance.get("level") == "token":
        message = f"{draft.name} learns from whole responses, so tokens cannot have weights"
        draft.error(("rollout", "importance", "level"), message, "write 'level: sequence', or leave it out")


def _check_filters(draft: _Draft, needs: Needs, rollout: Mapping[str, Any]) -> None:
    """Check that the filters have the rewards that they read."""
    if needs.reward or "reward" in draft.written:
        return
    filters = rollout.get("filters")
    for index, raw in enumerate(filters if isinstance(filters, list) else ()):
        name = next(iter(raw), "") if isinstance(raw, dict) else raw
        known = isinstance(name, str) and draft.scope.registry.has("filter", name)
        if known and draft.scope.registry.get("filter", name).implementation.reads_rewards:
            message = f"filter '{name}' reads rewards, but {draft.name} learns from none"
            draft.error(("rollout", "filters", index), message, "name a 'reward', or leave the filter out")


def _check_batches(draft: _Draft, chooses: bool) -> None:
    """Check that something may leave out groups, for which more batches of prompts would be sampled."""
    rollout = draft.filled["rollout"] if isinstance(draft.filled["rollout"], dict) else {}
    external = issubclass(draft.algorithm, ExternalTrainer)
    if rollout.get("max_num_gen_batches") and not rollout.get("filters") and not chooses and not external:
        message = f"'max_num_gen_batches' has no effect: {draft.name} keeps every group, and there are no 'filters'"
        help = "add 'filters: [spread]', for grpo set 'dynamic_sampling: true', or leave it out"
        draft.error(("rollout", "max_num_gen_batches"), message, help, at_key=True)


def _check_environment(draft: _Draft, settings: Settings | None) -> None:
    """Check that what only episodes have is used with an environment."""
    if "environment" in draft.written:
        return
    rollout = draft.filled["rollout"] if isinstance(draft.filled["rollout"], dict) else {}
    help = "add 'environment: NAME', or leave it out"
    if "max_turns" in rollout:
        draft.error(("rollout", "max_turns"), "'max_turns' needs an environment", help, at_key=True)
    for key in ("reward", "gold"):
        for component in specs(getattr(settings, key, None), Component):
            if getattr(component.registration.implementation, "of_episodes", False):
                message = f"reward '{component.name}' is the reward of an episode, but the stage has no environment"
                draft.error((key,), message, "add 'environment: NAME', or use another reward")


def _check_watched(draft: _Draft) -> None:
    """Check that what is measured by gold has a gold, and that held-out prompts can be answered without an episode."""
    find("monitor", REWARD_HACKING, draft.keys, draft.scope, at_key=True)
    rules = draft.written.get("stop")
    rules = rules if isinstance(rules, Mapping) else {}
    if "stop" in draft.written and not any(rules.values()) and isinstance(draft.written["stop"], Mapping):
        draft.error(("stop",), "'stop' has no rule", "write one, such as {kl: 8}, or leave it out")
    if "gold" not in draft.written:
        help = "name a reward that is not learned from, as in 'gold: REWARD'"
        if "gold_prompts" in draft.written:
            draft.error(("gold_prompts",), "'gold_prompts' needs 'gold'", help, at_key=True)
        if rules.get("gold"):
            draft.error(("stop", "gold"), "'stop.gold' needs 'gold'", help, at_key=True)
    rollout = draft.filled["rollout"] if isinstance(draft.filled["rollout"], dict) else {}
    if rollout.get("ahead") and "gold_prompts" not in draft.written:
        # Its samples would say how good the policy was one update before the one that the stage goes back to.
        held_out = "name held-out prompts in 'gold_prompts', which the current policy answers, or "
        help = f"{'' if 'environment' in draft.written else held_out}leave 'ahead' out"
        if rules.get("gold"):
            message = "'stop.gold' would judge a policy by what the one before it wrote, as with 'rollout.ahead'"
            draft.error(("stop", "gold"), message, help, at_key=True)
    if "environment" in draft.written and "gold_prompts" in draft.written:
        help = "leave it out: gold is then measured on the episodes of the stage"
        draft.error(("gold_prompts",), "'gold_prompts' cannot be played with an environment", help, at_key=True)


def _check_next_prompts(draft: _Draft, settings: Settings) -> None:
    """Check that nothing else decides what is sampled next if it depends on the samples before."""
    monitors = [(each.name, each.registration.implementation) for each in specs(settings.monitors, Component)]
    choosing = [f"monitor '{name}'" for name, kind in monitors if kind.next_prompts is not Monitor.next_prompts]
    waiting = choosing or ["'max_num_gen_batches'"] * bool(settings.rollout.max_num_gen_batches)
    if waiting and settings.rollout.ahead:
        message = f"{waiting[0]} waits for the scores of samples before the next are asked for, and 'ahead' does not"
        draft.error(("rollout", "ahead"), message, "leave one of the two out", at_key=True)
    if choosing and any(source.weight is not None for source in settings.prompts.sources):
        message = f"{choosing[0]} chooses the prompts, so 'weight' would have no effect"
        draft.error(("prompts",), message, "leave 'weight' out", at_key=True)


def _check_room(draft: _Draft, longest: Any) -> None:
    """Check that max_length leaves room for a prompt next to the longest response."""
    limit = draft.filled.get("max_length", Settings().max_length)
    if not (_is_integer(longest) and _is_integer(limit) and limit > 1 and longest >= limit):
        return
    document = draft.scope.problems.document
    places = [("rollout", "max_new_tokens"), ("max_length",)]
    written = [place for place in places if (*draft.keys, *place) in document.places]
    overridden = [place for place in written if document.overridden((*draft.keys, *place))]
    message = f"max_new_tokens {longest} leaves no room for a prompt in max_length {limit}"
    help = "max_length covers a prompt and its response, in tokens"
    draft.error((overridden or written or places)[0], message, help)


def wrong_kind(name: str, algorithm: Any, written: Collection[str], registry: Registry) -> tuple[str, str] | None:
    """The message and the help for a stage whose keys are those of the other kind of algorithm; None if they are not.

    algorithm: the class that the stage names. written: the stage's keys.
    """
    if issubclass(algorithm, ExternalTrainer):  # which keys it reads depends on its options
        return None
    online = algorithm.source is Source.ROLLOUTS
    theirs, own = ("data", "prompts") if online else ("prompts", "data")
    if theirs not in written or own in written:
        return None
    if online:
        message = f"{name} learns from its own responses to 'prompts', but the stage has 'data'"
        instead = "'prompts: FILE' and 'reward: REWARD'" if _reward(algorithm) else "'prompts: FILE'"
        first = f"{name} needs {instead} instead of 'data'"
    else:
        message = f"{name} learns from 'data', but the stage has 'prompts', as algorithms do that sample"
        needs = getattr(algorithm, "needs", None)
        what = "pairs in a file" if isinstance(needs, Needs) and needs.pairs else "a file"
        first = f"{name} learns from {what}: 'data: FILE' instead of the stage's keys"
    names = _same_keys(name, not online, "reward" in written, registry)
    if not names:
        return message, first
    closest, *others = names
    also = f", as {'do' if len(others) > 1 else 'does'} {', '.join(others)}" if others else ""
    return message, f"{first}; {closest} takes these keys{also}"


def _same_keys(name: str, online: bool, reward: bool, registry: Registry) -> list[str]:
    """The algorithms that train policies from samples, or from files; those that are named like this one come first."""
    found = [
        one.name
        for one in registry.usable("algorithm")
        if (one.implementation.source is Source.ROLLOUTS) == online
        and one.implementation.trains is Trains.POLICY
        and not issubclass(one.implementation, ExternalTrainer)
        and (not reward or _reward(one.implementation))
    ]
    return sorted(found, key=lambda other: (not (name in other or other in name), other))


def _reward(algorithm: Any) -> bool:
    """Whether an algorithm has a reward, as far as that is known without its options."""
    needs = getattr(algorithm, "needs", None)
    return needs.reward if isinstance(needs, Needs) else True
