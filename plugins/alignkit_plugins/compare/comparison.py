"""Several policies compared on the same prompts: their answers side by side, and the scores of
these.

A prompt is the unit of all statistics, because samples of one prompt are not independent, in
whichever rows they are (`units_of`). `Response.source` names the policy that wrote an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import field_validator

from alignkit import DataRef, Field, PolicyRef, Sampling, SamplingOptions
from alignkit.contract.step import StepContext, StepData
from alignkit.data.group import (
    Group,
    Response,
    group_from_json,
    prompts_of,
    with_responses,
)
from alignkit.errors import DataError
from alignkit.evaluation.answers import normalized
from alignkit.evaluation.split import connected, held_together, loose_key, prompt_key
from alignkit.io.results import (
    RESULTS,
    damage_of,
    json_lines,
    other_runs,
    read_record,
    stage_folder,
)
from alignkit.io.text import Say
from alignkit.recipe.schema import BASE, RewardSpec
from alignkit_plugins.command_line.find import folders_of, is_result_name
from alignkit_plugins.text.rows import with_score

TEMPERATURE = 0.7  # the default of `evaluate`, chat and serve
# Column of prompts: what they share with others, on which their scores then depend
UNIT = "drawn together"


def distinct_prompts(groups: Iterable[Group]) -> list[Group]:
    """The prompts of the rows, without repeated ones (words, tools and columns), which are no
    further evidence.
    """
    prompts: dict[str, Group] = {}
    for prompt in prompts_of(groups):
        prompts.setdefault(prompt.id, prompt)
    return list(prompts.values())


def together(prompts: Iterable[Group]) -> list[Group]:
    """Prompts that know what they share by their source's `group`, also when they are read again.

    Raises DataError for a prompt without that column.
    """
    grouped = list[Group]()
    for group in prompts:
        if shared := held_together(group):
            column, value = shared
            group = replace(group, meta={UNIT: f"{column} {value!r}", **group.meta})
        grouped.append(group)
    return grouped


def words_of(group: Group) -> str:
    """The same for groups in which models read the same words and tools, whatever columns say."""
    return f"{prompt_key(group, normalized)} {group.tools}"


def units_of(groups: Iterable[Group]) -> list[int]:
    """The unit of each group in all statistics, as the place of its first group.

    Groups are one unit if they have the same words but for system turns, or share what their source's `group` names.
    Raises DataError as `together`.
    """
    shares = []
    for group in together(groups):
        words = f"{loose_key(group)} {group.tools}"
        unit = group.meta.get(UNIT, words)
        shares.append((words if group.prompt else unit, unit))  # raw texts may not be kept
    return connected(shares)


def units_note(groups: Sequence[Group]) -> list[str]:
    """A note if there are fewer units than groups."""
    rows, units = len(groups), len({*units_of(groups)})
    note = f"intervals are over {units} units: of {rows} rows, those with the same words or `group`"
    return [f"{note} are one"] * (units < rows)


def prompts_to_compare(
    groups: Sequence[Group], limit: int | None = None
) -> tuple[list[Group], list[str]]:
    """The first `limit` distinct prompts of rows, and notes if rows repeat each other, or depend on
    each other.

    Raises DataError if no row has a prompt; it points at the option `prompts`.
    """
    total, prompts = sum(bool(group.prompt) for group in groups), distinct_prompts(groups)
    if not prompts:
        raise DataError("the rows are raw text, without a prompt to answer", option=("prompts",))
    repeated = total - len(prompts)
    note = (
        f"{repeated} of {total} prompts repeat the words and columns of others and do not count "
        "again"
    )
    notes = [note] * bool(repeated)
    if limit is not None and limit < len(prompts):
        notes.append(f"only the first {limit} of {len(prompts)} prompts (limit: {limit})")
    return prompts[:limit], notes + units_note(prompts[:limit])


def checked_prompts(data: StepData, prompts: Any, reward: Any = None) -> list[Group]:
    """The prompts to compare of an option, after the reward of another one has checked them; none
    if they are not known yet.

    Raises DataError as `prompts_to_compare` does, or for what the reward lacks.
    """
    rows = data.load(prompts)
    different = [] if rows is None else prompts_to_compare(rows)[0]
    if different and reward is not None:
        data.check_prompts(reward, different)
    return different


def sample_policies(
    context: StepContext,
    policies: Sequence[str] | Mapping[str, str],
    prompts: Sequence[Group],
    *,
    samples_per_prompt: int = 1,
    kept: Mapping[str, Sequence[Sequence[Response]]] | None = None,
    decoders: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> list[Group]:
    """One group per prompt with the answers of all policies, in order.

    Every policy samples from the same random streams, so equal policies give equal answers. A
    prompt is left out for all policies if any policy has no room for an answer. policies: or the
    model of each, by its name in results. kept: answers of policies, see `kept_answers`. decoders:
    what samples instead of a policy's model, by its name. `sampling` takes the keys of a recipe's
    `rollout`.
    """
    if not isinstance(policies, Mapping):
        policies = dict(zip(policies, policies, strict=True))
    answers = []
    for policy, model in policies.items():
        if kept and policy in kept:
            context.say(f"{context.out.name}: {policy}: {len(prompts)} kept answers")
            answers.append(kept[policy])
            continue
        context.say(f"{context.out.name}: {policy} answers {len(prompts)} prompts")
        sampler = (decoders or {}).get(policy) or context.models[model]
        sampled = sampler.sample(
            prompts, seed=context.seed, samples_per_prompt=samples_per_prompt, **sampling
        )
        answers.append([group.responses for group in sampled])
    answered = list[Group]()
    for group, *responses in zip(prompts, *answers, strict=True):
        every = list[Response]()
        for policy, own in zip(policies, responses, strict=True):
            every += [replace(response, source=policy, scores={}) for response in own]
        if all(responses):
            # Keep the prompt's own group: some rewards depend on its columns, such as `safety`.
            answered.append(with_responses(group, every, pairs=None))
    return answered


def kept_answers(
    context: StepContext,
    policies: Mapping[str, str],
    prompts: Sequence[Group],
    sampling: Mapping[str, Any],
) -> dict[str, list[list[Response]]]:
    """The answers of policies in another result of this stage, also of a run whose results this one
    reuses, from which only other policies differ, by their names. policies: the model of each.
    sampling: as in the result's summary.
    """
    found, other = dict[str, list[list[Response]]](), dict.fromkeys(("upstream", "files"))
    run, now = context.out.parent, read_record(context.out).get("depends_on", {})
    folders = [
        folder for one in (run, *other_runs(run)) for folder in folders_of(one, context.out.name)
    ]
    for folder in folders:
        record, groups = read_record(folder), list[Group]()
        then = record.get("depends_on", {})
        same = {**then, **other} == {**now, **other} and record["summary"]["sampling"] == sampling
        if same and not damage_of(folder):
            groups += map(group_from_json, json_lines(folder / "samples.jsonl"))
        if [group.id for group in groups] == [group.id for group in together(prompts)]:
            for policy, model in policies.items():
                stage, named = model.partition("@")[0], is_result_name(model)  # with another key
                if not named and then["upstream"].get(stage) == now["upstream"].get(stage):
                    found[policy] = [answers_of(group, policy) for group in groups]
    return found


def check_unique(option: str, names: Sequence[str]) -> None:
    """Raise ValueError if an option names something twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{option} has duplicates: {', '.join(repeated)}; names must be unique")


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """Names for tables: a stage's own, and RUN/STAGE for the folder of another run, if that tells
    all of them apart.
    """
    names = {policy: short_name(policy) for policy in policies}
    if len(set(names.values())) < len(names):
        return dict(zip(policies, policies, strict=True))
    return names


def short_name(policy: str) -> str:
    """RUN/STAGE of a folder, or RUN/STAGE@PLUGIN of an earlier result; any other name stays."""
    if not policy.startswith("/"):
        return policy
    folder = Path(policy)
    stage, name = stage_folder(folder), ""
    if folder.parent.name == "kept":
        name = f"@{folder.name}"
    elif folder.parent.parent.name == RESULTS and stage.resolve() != folder.parent.resolve():
        name = f"@{read_record(folder.parent).get('plugin', '')}"
    return f"{stage.parent.name}/{stage.name}{name}"


def answers_of(group: Group, policy: str) -> list[Response]:
    """The responses that a policy wrote."""
    return [response for response in group.responses if response.source == policy]


def of_policy(groups: Sequence[Group], policy: str) -> list[Group]:
    """The groups with the responses of one policy."""
    own = list[Group]()
    for group in groups:
        own.append(with_responses(group, answers_of(group, policy)))
    return own


# Scores by several rewards


def label(spec: Any) -> str:
    """The name of a reward or judge in tables: RUN/STAGE for a reward model of another run."""
    if isinstance(spec, RewardSpec) and spec.kind == "folder":
        return short_name(spec.name) if Path(spec.name).name == "adapter" else Path(spec.name).name
    return str(spec.name)


def scored_by(
    groups: Sequence[Group],
    scorers: Mapping[str, Any],
    say: Say,
    metrics: Mapping[str, Any] | None = None,
) -> list[Group]:
    """The groups with a score of each reward among their responses' scores.

    scorers: of each reward (`StepContext.scorer`), by its name; they see no scores of the data.
    say: called with the name of a reward before it scores. metrics: of the rewards that score only
    the prompts that a `Metric` counts.
    """
    merged = list(groups)
    for name, scorer in scorers.items():
        say(name)
        places = list(range(len(groups)))
        if metrics and name in metrics:
            places = [place for place in places if metrics[name].counts(groups[place])]
        counted = bare([groups[place] for place in places])
        for place, scored in zip(places, scorer.score(counted), strict=True):
            merged[place] = with_score(merged[place], scored, name)
    return merged


def bare(groups: Sequence[Group]) -> list[Group]:
    """The groups without scores."""
    unscored = list[Group]()
    for group in groups:
        responses = tuple(replace(response, scores={}) for response in group.responses)
        unscored.append(with_responses(group, responses))
    return unscored


# How answers are sampled that people read or that are compared: not at the temperature of training


def sampled_at(temperature: float) -> Any:
    """The field `sampling` of options, with a temperature for recipes that set none."""
    other = "other keys that are left out: as in training"
    return Field(
        default_factory=partial(Sampling, temperature=temperature),
        description=f"how responses are sampled; default temperature: {temperature:g}; {other}",
    )


class AnswerOptions(SamplingOptions):
    """Options of what samples answers at a temperature of its own, unless a recipe sets another
    one.
    """

    sampling: Sampling = sampled_at(TEMPERATURE)

    @field_validator("sampling")
    @classmethod
    def _own_temperature(cls, sampling: Sampling) -> Sampling:
        default = cls.model_fields["sampling"].get_default(call_default_factory=True)
        keys = sampling.model_dump(exclude_unset=True)
        return sampling.model_copy(update={"temperature": default.temperature} | keys)


class PoliciesOptions(AnswerOptions):
    """Options of what compares the answers of several policies to the same prompts."""

    policies: list[PolicyRef] = Field(
        min_length=1, description="policies to compare: `base`, stages or `STAGE@k`"
    )
    prompts: DataRef = Field(
        description="held-out prompts; rows with the same words and columns count once"
    )
    baseline: PolicyRef | None = Field(
        None, "policy to compare the others with; default: the first but `base`, or else `base`"
    )

    def check_values(self) -> None:
        names = list(map(str, self.policies))
        check_unique("policies", names)
        if self.baseline not in (None, *names):
            policies = ", ".join(names)
            raise ValueError(f"baseline '{self.baseline}' must be one of the policies: {policies}")

    @property
    def baseline_name(self) -> str | None:
        """The baseline as tables name it; None if there is only one policy."""
        if self.baseline is None and len(self.policies) < 2:
            return None
        plain = [policy for policy in self.policies if isinstance(policy, str)]
        others = [policy for policy in self.policies[:-1] if policy in plain and policy != BASE]
        first = next(iter(others), plain[0])
        return short_names(plain)[self.baseline or first]

    @property
    def named(self) -> dict[str, str]:
        """The model of each policy, by its name in tables."""
        return {name: policy for policy, name in short_names(self.policies).items()}

    def policies_to_sample(self) -> list[str]:
        return self.policies
