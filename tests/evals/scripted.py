"""One scripted policy and one scripted judge for all steps that compare policies, and what surrounds
such a step without a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from alignkit import Artifact, Group, Judge, Message, Response, StepContext, Verdict
from alignkit.host.registry import Component, Registration
from alignkit.recipe.schema import RewardSpec
from alignkit.recipe.sources import DataSource, DataSpec
from alignkit.training.rewards import Rewards
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.evals.step import Evaluate
from alignkit_plugins.rewards.honesty import HonestyAccuracy
from tests.by_role import ByRole

HELPFUL = RewardSpec("stage", "helpful")
X = DataSpec((DataSource(path=Path("x")),))

# Rewards and lengths of three policies at six prompts; differences vary less than prompts do, and
# so pair well.
BASE = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
GAIN = [0.5, 0.7, 0.2, 0.9, -0.1, 0.6]
SFT = [score + 1 for score in BASE]
ALIGN = [score + gain for score, gain in zip(SFT, GAIN, strict=True)]
SCORES: dict[str, Sequence[float | None]] = {"base": BASE, "sft": SFT, "align": ALIGN}
NATS = {"base": -3.0, "sft": -2.5, "align": -2.0}  # of log-probability per token
LENGTHS = {"base": [5] * 6, "sft": [4, 6, 5, 4, 6, 5], "align": [5, 9, 4, 7, 3, 8]}


def prompts(count: int = 6, **meta: Any) -> list[Group]:
    return [
        Group((Message(role="user", content=f"question {i}"),), id=str(i), meta=meta)
        for i in range(count)
    ]


def number(prompt: Sequence[Message]) -> int:
    """Which of `prompts` a conversation begins with."""
    return int(prompt[0]["content"].splitlines()[0].split()[-1])


class Answering(ByRole):
    """Policies whose answer k to a prompt is `answer(role, prompt, k)`; None: there is no room."""

    def __init__(self, answer: Callable[[str, Sequence[Message], int], Response | None]):
        self.answer = answer
        self.sampled: list[dict[str, Any]] = []

    def sample(self, role: str, groups: Sequence[Group], **sampling: Any) -> list[Group]:
        self.sampled.append({"role": role, **sampling})
        found = []
        for group in groups:
            every = range(sampling["samples_per_prompt"])
            answers = [self.answer(role, group.prompt, k) for k in every]
            # As the engine does: no id, no meta
            found.append(Group(group.prompt, tuple(answer for answer in answers if answer)))
        return found


class Scripted(Answering):
    """Policies whose answer to prompt i scores scores[policy][i] and has lengths[policy][i] tokens;
    sample 2 scores 10 less and sample 3 scores 10 more. full: policies and prompts without room.
    """

    def __init__(
        self, scores: Any = SCORES, lengths: Any = LENGTHS, texts: str = "{policy} says {i}"
    ):
        super().__init__(self._answer)
        self.scripted, self.lengths, self.texts = scores, lengths, texts
        self.full: set[tuple[str, int]] = set()
        self.cut = 0  # tokens of the first answer that models cannot read
        self.measured: list[tuple[str, float]] = []
        self.columns: list[Any] = []
        self.tools: list[Any] = []

    def _answer(self, role: str, prompt: Sequence[Message], k: int) -> Response | None:
        i = number(prompt)
        if (role, i) in self.full:
            return None
        text = self.texts.format(policy=role, i=i, k=k)
        return Response(text, tokens=(k,) * self.lengths[role][i], truncated=i == 0, source="other")

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        self.columns += [group.meta for group in groups]
        return [self._score(group, answer) for group in groups for answer in group.responses]

    def _score(self, group: Group, answer: Response) -> float | None:
        score, k = self.scripted[answer.source][number(group.prompt)], (answer.tokens or (0,))[0]
        return None if score is None else score + {2: -10, 3: 10}.get(k, 0)

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0
    ) -> list[torch.Tensor]:
        self.measured.append((role, temperature))
        self.tools += [group.tools for group in groups]
        tokens = [len(answer.tokens or ()) for group in groups for answer in group.responses]
        tokens[0] -= self.cut
        return [torch.full((count,), NATS[role]) for count in tokens]


def context(
    models: Any, folder: Path, groups: Sequence[Group] | None = None, **more: Any
) -> StepContext:
    made: StepContext
    own = {
        "base_of": lambda policy: "base",
        "load": lambda spec: list(prompts() if groups is None else groups),
        "scorer": lambda spec: Rewards(spec, made),
        "map": lambda name, rows, f: list(f(rows)),
        "log": lambda **values: None,
        "say": lambda text: None,
        **more,
    }
    places = {"cache": folder / "cache", "folder": folder, "out": folder / "out"}
    made = StepContext(models=models, seed=7, **{**places, **own})
    made.out.mkdir(parents=True, exist_ok=True)
    return made


def component(kind: str, name: str, plugin: Any, options: Any = None) -> Component:
    return Component(kind, name, Registration(name, plugin), options or plugin.Options())


# Whether an answer is among the known ones of its prompt
CORRECT = RewardSpec(
    "reward", "honesty_accuracy", component("reward", "honesty_accuracy", HonestyAccuracy)
)


class Told(Judge):
    """Says `options.decide(number of the prompt, first answer, second answer)`, and keeps in
    `options.asked` what it was asked.
    """

    def compare(self, items: Any) -> list[Verdict]:
        self.options.asked.extend(items)
        return [self.options.decide(number(prompt), one, other) for prompt, one, other in items]


def told(decide: Callable[[int, str, str], Verdict]) -> tuple[Component, list[Any]]:
    """A judge, and the list of what it is asked."""
    options: Any = SimpleNamespace(decide=decide, asked=[])
    return component("judge", "judge", Told, options), options.asked


def step(**options: Any) -> Evaluate:
    own = {"policies": ["base", "sft", "align"], "rewards": [HELPFUL], "prompts": X}
    return Evaluate(Evaluate.Options(**{**own, **options}))


def summary(
    folder: Path, models: Any = None, groups: Sequence[Group] | None = None, **options: Any
) -> Mapping[str, Any]:
    """The evaluation.json of a step."""
    return step(**options).run(context(models or Scripted(), folder, groups)).summary or {}


def figures(found: Mapping[str, Any]) -> str:
    keys = [key for key in ("mean", "low", "high", "n", "p") if key in found]
    return " ".join("-" if found[key] is None else f"{found[key]:.4g}" for key in keys)


def lines(evaluation: Mapping[str, Any]) -> list[str]:
    """The rows of an evaluation: what of whom, against whom, mean, difference, the low end of
    the share of prompts won, and how many are won, lost, tied and missing. Numbers are `mean low
    high n p`.
    """
    found = []
    for one in rows_in(evaluation):
        head = f"{one.policy} {one.metric} {one.value}".strip()
        won = figures({"low": one.win_rate["low"]} if one.win_rate else {})
        numbers = figures(one.estimate), figures(one.difference), won
        counts = f"{one.counts} {one.missing}".strip()
        found.append(" | ".join([head, one.baseline, *numbers, counts]))
    return found


def said(artifact: Artifact, width: int = 300) -> str:
    """All that a run prints of the step."""
    assert artifact.report is not None
    return f"{artifact.report.text(width)}\n\n{artifact.text}"
