"""The step `evaluate`: policies compared on held-out prompts by one or several rewards, with intervals.

Every policy answers the same prompts with the same random streams, and every reward scores all answers. A prompt is
the unit of all statistics: samples of one prompt are averaged first, policies are compared prompt by prompt, and all
intervals are at 95% (`scipy.stats`). Reported against a baseline as in Llama 2 (Touvron et al. 2023, arXiv:2307.09288,
section 3.4 and figure 11): mean difference and win rate; and beside them what the difference owes to longer answers,
the usual way to fool a reward (Singhal et al. 2023, arXiv:2310.03716), and the distance from the reference in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import alignkit
from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    PolicyRef,
    Register,
    Response,
    RewardRef,
    RunFailed,
    Step,
    hookimpl,
    statistics,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from alignkit import StepContext

WIDTH = 110  # of the printed tables, in characters
ABREAST = 4  # policies beside each other in one table
CUT = 300  # characters of a sample that are shown


class Evaluate(Step):
    """Samples from each policy, scores with each reward, compares each policy with the baseline."""

    class Options(alignkit.Options):
        policies: list[PolicyRef] = Field(min_length=1, description="who answers: `base`, stages or `stage@k`")
        rewards: list[RewardRef] = Field(min_length=1, description="what scores the answers; a combination's parts too")
        prompts: DataRef = Field(description="held-out prompts; of equal ones the first counts")
        baseline: PolicyRef | None = Field(
            None, description="the policy that the others are compared with; default: the last but one of `policies`"
        )
        reference: PolicyRef | None = Field(None, description="KL is measured to this policy; default: the baseline")
        samples_per_prompt: int = Field(1, ge=1, le=1024, description="answers of each policy to each prompt")
        max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
        temperature: float = Field(1.0, gt=0, description="of sampling; the KL is that of the policies at it")
        limit: int | None = Field(None, ge=1, description="use the first so many prompts")
        show: int = Field(3, ge=0, description="prompts whose answers are printed side by side")
        seed: int | None = Field(None, ge=0, description="default: the recipe's")
        next: str = Field("", description="a command to try next, printed last")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            for what, names in (("policies", self.policies), ("rewards", [label(spec) for spec in self.rewards])):
                twice = sorted({name for name in names if names.count(name) > 1})
                if twice:
                    raise ValueError(f"{what}: {', '.join(twice)} more than once; each needs a name of its own")
            if self.baseline is not None and self.baseline not in self.policies:
                raise ValueError(f"baseline '{self.baseline}' must be one of the policies: {', '.join(self.policies)}")
            return self

    options: Options

    @property
    def baseline(self) -> str | None:
        """Whom the others are compared with; a single policy is compared with nobody."""
        policies = self.options.policies
        return self.options.baseline or (policies[-2] if len(policies) > 1 else None)

    @property
    def reference(self) -> str | None:
        return self.options.reference or self.baseline

    def run(self, context: StepContext) -> Artifact:
        from alignkit.data.group import write_groups

        # Before anything is sampled: a reward that cannot work (a missing key or file) shows now.
        scorers = [context.scorer(spec) for spec in self.options.rewards]
        groups, left_out = self._sample(context)
        groups, columns = self._score(groups, scorers, context)
        summary = self._summary(groups, columns, left_out, context)
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("evaluation.json", summary)
        context.write_json("figure.json", figure(summary, [column.name for column in columns if column.single]))
        return Artifact(summary=summary, text=self._text(summary, groups))

    # Samples and scores

    def _sample(self, context: StepContext) -> tuple[list[Group], int]:
        """One group a prompt with the answers of all policies, `source` saying whose; and how many prompts were left
        out, for all policies alike, because one of them had no room for an answer.
        """
        from alignkit.data.group import prompts_of

        options = self.options
        prompts = prompts_of(context.load(options.prompts))[: options.limit]
        answers = []
        for number, policy in enumerate(options.policies, 1):
            context.say(f"evaluate: {policy} answers {len(prompts)} prompts ({number} of {len(options.policies)})")
            sampled = context.models.sample(
                policy,
                [group.prompt for group in prompts],
                seed=context.seed,  # the same for all: equal policies give equal answers, like ones differ in less
                samples_per_prompt=options.samples_per_prompt,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
            )
            answers.append([tuple(replace(r, source=policy, scores={}) for r in g.responses) for g in sampled])
        # The prompt's own group, not the sampled one: its columns (`safety`) decide how some rewards combine.
        groups = [
            replace(group, responses=tuple(itertools.chain(*said)), pairs=None)
            for group, *said in zip(prompts, *answers, strict=True)
            if all(said)
        ]
        if not groups:
            raise RunFailed(f"evaluate: none of {len(prompts)} prompts could be answered by all policies")
        return groups, len(prompts) - len(groups)

    def _score(
        self, groups: Sequence[Group], scorers: Sequence[Any], context: StepContext
    ) -> tuple[list[Group], list[Column]]:
        """The groups with every column in their responses' scores, and the columns."""
        columns: list[Column] = []
        scores: list[list[dict[str, float | None]]] = [[{} for _ in group.responses] for group in groups]
        for spec, scorer in zip(self.options.rewards, scorers, strict=True):
            context.say(f"evaluate: scoring with {label(spec)}")
            scored: list[Group] = scorer.score(groups)
            found = columns_of(spec, scored[0].responses[0].scores, self.options.rewards)
            for group, rows in zip(scored, scores, strict=True):
                for response, row in zip(group.responses, rows, strict=True):
                    row.update({column.name: response.scores[column.key] for column in found})
            columns += found
        named = [
            replace(group, responses=tuple(replace(r, scores=s) for r, s in zip(group.responses, rows, strict=True)))
            for group, rows in zip(groups, scores, strict=True)
        ]
        return named, columns

    # Numbers

    def _summary(
        self, groups: Sequence[Group], columns: Sequence[Column], left_out: int, context: StepContext
    ) -> dict[str, Any]:
        options, names = self.options, [column.name for column in columns]
        headline = next((column.name for column in columns if not column.single), names[0])
        return {
            "prompts": len(groups),
            "left_out": left_out,
            "sampling": {
                "samples_per_prompt": options.samples_per_prompt,
                "max_new_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "seed": context.seed,
            },
            "baseline": self.baseline,
            "reference": self.reference,
            "headline": headline,
            "rewards": names,
            "policies": {policy: self._alone(groups, policy, names, context) for policy in options.policies},
            "against": {
                policy: {name: against(groups, policy, self.baseline, name) for name in names}
                for policy in options.policies
                if self.baseline not in (None, policy)
            },
        }

    def _alone(
        self, groups: Sequence[Group], policy: str, names: Sequence[str], context: StepContext
    ) -> dict[str, Any]:
        """What can be said of a policy without a comparison."""
        said = [response for group in groups for response in answers_of(group, policy)]
        rewards = {}
        for name in names:
            means = [place.score for place in places(groups, policy, name) if place is not None]
            rewards[name] = {
                **statistics.estimate(means),
                "unscored": sum(response.scores[name] is None for response in said),
            }
        lengths = [statistics.mean([length(r) for r in answers_of(group, policy)]) for group in groups]
        return {
            "rewards": rewards,
            "length": statistics.estimate(lengths),
            "truncated": sum(response.truncated for response in said) / len(said),
            "kl": self._kl(groups, policy, context) if self.reference is not None else None,
        }

    def _kl(self, groups: Sequence[Group], policy: str, context: StepContext) -> dict[str, Any]:
        """KL(policy || reference) in nats per response: mean of log p - log q over the policy's own samples, both at
        the sampling temperature because the samples are drawn at it (k1 of Schulman 2020, "Approximating KL
        divergence": unbiased, may be negative by chance). `unmeasured`: responses that the models could not read
        whole.
        """
        if policy == self.reference:
            return {**statistics.estimate([0.0] * len(groups)), "unmeasured": 0}
        own = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
        context.say(f"evaluate: KL of {policy} to {self.reference}")
        temperature = self.options.temperature
        by_policy, by_reference = (
            iter(context.models.logprobs(role, own, temperature=temperature)) for role in (policy, str(self.reference))
        )
        means, unmeasured = [], 0
        for group in own:
            ratios = []
            for response in group.responses:
                ours, theirs = next(by_policy), next(by_reference)
                if len(ours) == len(theirs) == len(response.tokens or ()):
                    ratios.append(float((ours.double() - theirs.double()).sum()))
                else:
                    unmeasured += 1
            means += [statistics.mean(ratios)] if ratios else []
        return {**statistics.estimate(means), "unmeasured": unmeasured}

    # Words

    def _text(self, summary: Mapping[str, Any], groups: Sequence[Group]) -> str:
        show = self.options.show
        parts = [render(table) for table in tables(summary)]
        parts += [side_by_side(group, self.options.policies, summary["headline"]) for group in groups[:show]]
        parts += ["\n".join(verdict(summary, policy) for policy in summary["against"])]
        parts += [f"next: {self.options.next}" if self.options.next else ""]
        return "\n\n".join(part for part in parts if part)


# --- rewards and their columns


@dataclass(frozen=True)
class Column:
    """One number a response: its name here, the scorer's key, and whether it is a single reward (no combination)."""

    name: str
    key: str
    single: bool


def label(spec: Any) -> str:
    """What a reward is called in the tables; `spec` as the recipe has it, or validated."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, dict):
        ((name, value),) = list(spec.items())[:1] or [("", "")]
        return Path(str(value)).name if name == "folder" else str(name)
    return Path(spec.name).name if spec.kind == "folder" else str(spec.name)


def columns_of(spec: Any, keys: Sequence[str] | Mapping[str, Any], rewards: Sequence[Any]) -> list[Column]:
    """The columns of a reward, given the keys that its scorer wrote: of a combination its parts too, but for those
    that are among `rewards` themselves.
    """
    from alignkit.reward import REWARD_KEY

    if spec.kind != "combine":
        return [Column(label(spec), REWARD_KEY, single=True)]
    parts = [key for key in keys if key != REWARD_KEY and spec.children.get(key) not in rewards]
    return [
        *(Column(f"{label(spec)}/{key}", key, single=True) for key in parts),
        Column(label(spec), REWARD_KEY, single=False),
    ]


# --- statistics


@dataclass(frozen=True)
class Place:
    """A policy at one prompt: means over its scored responses. length: in tokens."""

    score: float
    length: float


def answers_of(group: Group, policy: str) -> list[Response]:
    return [response for response in group.responses if response.source == policy]


def length(response: Response) -> int:
    """Tokens that the policy wrote, its end of turn included."""
    return sum(response.written) if response.written is not None else len(response.tokens or ())


def places(groups: Sequence[Group], policy: str, name: str) -> list[Place | None]:
    """The policy at each prompt by one reward; None where no response has a score."""
    found: list[Place | None] = []
    for group in groups:
        scored = [(score, length(r)) for r in answers_of(group, policy) if (score := r.scores[name]) is not None]
        found.append(
            Place(statistics.mean([s for s, _ in scored]), statistics.mean([n for _, n in scored])) if scored else None
        )
    return found


def against(groups: Sequence[Group], policy: str, baseline: str | None, name: str) -> dict[str, Any]:
    """A policy compared with the baseline by one reward, over the prompts where both have a score.

    unpaired: prompts where one lacks it. at_equal_length: see `alignkit.statistics`. win_rate: of the prompts that one
    of the two won, ties are counted apart (a sign test's view: the interval needs independent wins and losses).
    """
    assert baseline is not None
    both = zip(places(groups, policy, name), places(groups, baseline, name), strict=True)
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    differences = [ours.score - theirs.score for ours, theirs in pairs]
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return {
        "difference": statistics.estimate(differences),
        "at_equal_length": statistics.at_equal_length(
            differences, [ours.length - theirs.length for ours, theirs in pairs]
        ),
        "win_rate": statistics.share(wins, wins + losses),
        "wins": wins,
        "losses": losses,
        "ties": len(pairs) - wins - losses,
        "unpaired": len(groups) - len(pairs),
    }


def figure(summary: Mapping[str, Any], singles: Sequence[str]) -> dict[str, Any]:
    """Data of a figure like Llama 2's 11: each single reward of each policy, and its win rate against the baseline
    (null for the baseline itself).
    """
    versions = [
        {
            "policy": policy,
            "rewards": {
                name: {
                    **found["rewards"][name],
                    "win_rate": summary["against"][policy][name]["win_rate"] if policy in summary["against"] else None,
                }
                for name in singles
            },
        }
        for policy, found in summary["policies"].items()
    ]
    return {"baseline": summary["baseline"], "rewards": list(singles), "versions": versions}


# --- words


def shown(found: Mapping[str, Any] | None, *, sign: bool = False, percent: bool = False) -> str:
    """`0.42 [0.21, 0.63]`: with as many digits as the interval deserves."""
    if found is None or found["mean"] is None:
        return "-"
    scale, digits = (100, 0) if percent else (1, decimals(found))
    middle = f"{found['mean'] * scale:{'+' if sign else ''}.{digits}f}{'%' if percent else ''}"
    low, high = found["low"], found["high"]
    return middle if low is None else f"{middle} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def decimals(found: Mapping[str, Any]) -> int:
    """Decimals that show two digits of half the interval's width."""
    width = math.nan if found["low"] is None else found["high"] - found["low"]
    if not math.isfinite(width) or width <= 0:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(width / 2))))


def verdict(summary: Mapping[str, Any], policy: str) -> str:
    """One line: what the policy gained over the baseline, and for what."""
    name, baseline = summary["headline"], summary["baseline"]
    found = summary["against"][policy][name]
    difference = found["difference"]
    if difference["mean"] is None:
        return f"{policy} against {baseline}: no prompt has a score by {name} for both"
    text = f"{policy} against {baseline}: {name} {shown(difference, sign=True)}"
    equal = found["at_equal_length"]
    if equal is not None:
        far = ", extrapolated" if equal["extrapolated"] else ""
        text += f" (at equal length {shown(equal, sign=True)}{far})"
    text += f", wins {shown(found['win_rate'], percent=True)}" if found["win_rate"] else ", every prompt a tie"
    kl = summary["policies"][policy]["kl"]
    if kl and kl["mean"] is not None:
        text += f", KL {'' if summary['reference'] == baseline else 'to ' + summary['reference'] + ' '}"
        text += f"{kl['mean']:.{decimals(kl)}f} nats"
    unclear = difference["low"] is None or difference["low"] <= 0 <= difference["high"]
    return text + ("; no clear difference" if unclear else "")


def tables(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Each policy's numbers, then each comparison with the baseline."""
    for names in batches(list(summary["policies"])):
        yield policy_table(summary, names)
    if summary["against"]:
        yield comparison_table(summary)


def policy_table(summary: Mapping[str, Any], names: Sequence[str]) -> RenderableType:
    left_out = f", {summary['left_out']} left out for lack of room" if summary["left_out"] else ""
    found = [summary["policies"][name] for name in names]
    table = new_table(f"mean and {statistics.CONFIDENCE:.0%} interval over {summary['prompts']} prompts{left_out}")
    for name in ("", *names):
        header = f"{name}, before" if name and name == summary["baseline"] else name
        table.add_column(header, justify="right" if name else "left", overflow="fold")
    for reward in summary["rewards"]:
        table.add_row(reward, *(shown(policy["rewards"][reward]) for policy in found))
        if any(policy["rewards"][reward]["unscored"] for policy in found):
            table.add_row("  without a score", *(str(policy["rewards"][reward]["unscored"]) for policy in found))
    table.add_row("length, tokens", *(shown(policy["length"]) for policy in found))
    table.add_row("cut off", *(f"{policy['truncated']:.0%}" for policy in found))
    if summary["reference"] is not None:
        table.add_row(f"KL to {summary['reference']}, nats", *(shown(policy["kl"]) for policy in found))
        if any(policy["kl"]["unmeasured"] for policy in found):
            table.add_row("  not measured", *(str(policy["kl"]["unmeasured"]) for policy in found))
    return table


def comparison_table(summary: Mapping[str, Any]) -> RenderableType:
    table = new_table(f"against {summary['baseline']}, prompt by prompt")
    for name in ("policy", "reward"):
        table.add_column(name, overflow="fold")
    for name in ("difference", "at equal length", "win rate", "won/lost/tied"):
        table.add_column(name, justify="right", overflow="fold")
    for policy, rewards in summary["against"].items():
        for reward, found in rewards.items():
            table.add_row(
                policy,
                reward,
                shown(found["difference"], sign=True),
                shown(found["at_equal_length"], sign=True),
                shown(found["win_rate"], percent=True),
                f"{found['wins']}/{found['losses']}/{found['ties']}",
            )
    if any(found["at_equal_length"] is None for rewards in summary["against"].values() for found in rewards.values()):
        table.caption = "at equal length: '-' where lengths do not vary, or prompts are too few for a line through them"
    return table


def side_by_side(group: Group, policies: Sequence[str], headline: str) -> str:
    """A prompt's last turn, and the first answer of each policy with its score."""
    from rich.text import Text

    parts = [f"prompt: {short(group.prompt[-1]['content'])}"]
    for names in batches(policies):
        table = new_table("")
        cells = []
        for name in names:
            answer = answers_of(group, name)[0]
            score = answer.scores[headline]
            table.add_column(
                f"{name} ({headline} {'-' if score is None else f'{score:.3g}'})", ratio=1, overflow="fold"
            )
            cells.append(Text(short(answer.text)))  # Text: brackets in an answer are no markup
        table.add_row(*cells)
        parts.append(render(table))
    return "\n".join(parts)


def short(text: str) -> str:
    """A text cut to what is shown. Control characters would act on the terminal: they become blanks."""
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return plain if len(plain) <= CUT else f"{plain[: CUT - 3].rstrip()}..."


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + ABREAST] for start in range(0, len(names), ABREAST))


def new_table(title: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(
        title=title or None,
        title_justify="left",
        title_style="",
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        expand=not title,
    )


def render(thing: RenderableType) -> str:
    """Plain text of a fixed width, the same in a terminal, a pipe and a file."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(thing)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


@hookimpl
def register_steps(register: Register) -> None:
    register("evaluate", Evaluate, summary="compare policies on held-out prompts by rewards, length and KL")
