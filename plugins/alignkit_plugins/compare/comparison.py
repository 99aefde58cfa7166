"""Several policies compared on the same prompts: their answers side by side, and a policy's average
at each prompt.

A prompt is the unit of all statistics, because samples of one prompt are not independent.
`Response.source` names the policy that wrote an answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import field_validator

from alignkit import Field, Sampling, SamplingOptions
from alignkit.data.group import Group, Response, prompts_of
from alignkit.data.sources import DataSpec, held_together
from alignkit.errors import DataError
from alignkit.io.results import RESULTS, read_record, stage_folder
from alignkit.recipe.schema import BASE
from alignkit.step import StepContext

TEMPERATURE = 0.7  # of `evaluate`, chat and serve
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


def together(prompts: Sequence[Group], data: Any) -> tuple[list[Group], list[str]]:
    """Prompts that know what they share, and a note. data: where they are from, whose `group` names
    columns.

    Raises DataError for a prompt without its source's column.
    """
    sources = data.sources if isinstance(data, DataSpec) else ()
    if not any(source.group for source in sources):
        return list(prompts), []
    grouped, shared, units = [], dict[str, None](), set()
    for group in prompts:
        number = group.origin.source if group.origin else 0
        if column := sources[number].group:
            shared[column] = None
            unit = f"{column} {held_together(group, column)!r}"
            units.add(unit)
            group = replace(group, meta={**group.meta, UNIT: unit})
        grouped.append(group)
    note = f"intervals are over {len(units)} groups of prompts, which share {', '.join(shared)}"
    return grouped, [note] * bool(shared)


def unit_of(group: Group) -> Any:
    """What a prompt shares with others; None if nothing is known."""
    return group.meta.get(UNIT)


def prompts_to_compare(
    groups: Sequence[Group], limit: int | None = None
) -> tuple[list[Group], list[str]]:
    """The first `limit` distinct prompts of rows, and a note if rows repeat each other.

    Raises DataError if no row has a prompt; it points at the option `prompts`.
    """
    asked, prompts = sum(bool(group.prompt) for group in groups), distinct_prompts(groups)
    if not prompts:
        raise DataError("the rows are raw text, without a prompt to answer", option=("prompts",))
    repeated = asked - len(prompts)
    note = (
        f"{repeated} of {asked} prompts repeat the words and columns of others and do not count "
        "again"
    )
    return prompts[:limit], [note] if repeated else []


@dataclass(frozen=True)
class Prompted:
    """A policy that answers in another way. role: the model's reference. read: the prompt as it
    reads it.

    drafts: how many answers it writes for each of its own. choose: which of them are its own, for
    groups with drafts.
    """

    role: str
    read: Callable[[Group], Group] = lambda group: group
    drafts: int = 1
    choose: Callable[[list[Group]], list[Group]] = lambda groups: groups


def sample_policies(
    context: StepContext,
    policies: Sequence[str] | Mapping[str, Prompted],
    prompts: Sequence[Group],
    *,
    samples_per_prompt: int = 1,
    **sampling: Any,
) -> list[Group]:
    """One group per prompt with the answers of all policies, in order.

    Every policy samples from the same random streams, so equal policies give equal answers. A
    prompt is left out for all policies if any policy has no room for an answer. policies: or how
    each one answers, by its name in results; the groups keep the prompt's own messages. `sampling`
    takes the keys of a recipe's `rollout`.
    """
    if not isinstance(policies, Mapping):
        policies = {policy: Prompted(policy) for policy in policies}
    answers = []
    names = short_names(list(policies))
    for number, (policy, asked) in enumerate(policies.items(), 1):
        context.say(
            f"{context.out.name}: {names[policy]} answers {len(prompts)} prompts ({number} of "
            f"{len(policies)})"
        )
        read, count = [asked.read(group) for group in prompts], samples_per_prompt * asked.drafts
        sampled = context.models[asked.role].sample(
            read, seed=context.seed, samples_per_prompt=count, **sampling
        )
        drafts = []
        for group, one in zip(prompts, sampled, strict=True):
            own = tuple(replace(response, source=policy, scores={}) for response in one.responses)
            # Keep the prompt's own group: some rewards depend on its columns, such as `safety`.
            drafts.append(replace(group, responses=own, pairs=None))
        answers.append([group.responses for group in asked.choose(drafts)])
    found = []
    for group, *responses in zip(prompts, *answers, strict=True):
        if all(responses):
            found.append(replace(group, responses=tuple(itertools.chain(*responses)), pairs=None))
    return found


def default_baseline(policies: Sequence[str]) -> str | None:
    """Whom the other policies are compared with if nothing says so: the first but `base`, or else
    `base`.
    """
    if len(policies) < 2:
        return None
    return next((policy for policy in policies[:-1] if policy != BASE), policies[0])


def check_unique(option: str, names: Sequence[str]) -> None:
    """Raise ValueError if an option names something twice."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{option} has duplicates: {', '.join(repeated)}; names must be unique")


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """Names for tables: a stage's own, and for the folder of another run as many last parts as tell
    it from others.
    """
    parts = {policy: folder_parts(policy) for policy in policies}
    names = {}
    for policy, own in parts.items():
        others = [other for name, other in parts.items() if name != policy]
        count = next(
            (n for n in range(2, len(own)) if all(other[-n:] != own[-n:] for other in others)),
            len(own),
        )
        names[policy] = "/".join(own[-count:]) if policy.startswith("/") else policy
    return (
        names if len(set(names.values())) == len(names) else {policy: policy for policy in policies}
    )


def folder_parts(policy: str) -> list[str]:
    """The parts of a policy's reference or folder that name it: `RUN`, `STAGE`, or `STAGE@PLUGIN`
    of an earlier one.
    """
    if not policy.startswith("/"):
        return policy.split("/")
    folder = Path(policy)
    stage, name = stage_folder(folder), ""
    if folder.parent.name == "kept":
        name = f"@{folder.name}"
    elif folder.parent.parent.name == RESULTS and stage.resolve() != folder.parent.resolve():
        name = f"@{read_record(folder.parent).get('plugin', '')}"
    return [*stage.parts[1:-1], f"{stage.name}{name}"]


def answers_of(group: Group, policy: str) -> list[Response]:
    """The responses that a policy wrote."""
    return [response for response in group.responses if response.source == policy]


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
