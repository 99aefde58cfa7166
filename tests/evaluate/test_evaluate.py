"""The step that compares policies: against scripted models, with numbers worked out apart from the
step.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_policy import by_policy
from by_role import ByRole
from pydantic import ValidationError
from scipy import stats

import alignkit_plugins.algorithms.llama2 as llama2
import alignkit_plugins.evaluate.step as evaluate
from alignkit import Artifact, Group, Judge, Options, Response, RunFailed, StepContext, Verdict
from alignkit.data.group import Origin, Pair, read_groups
from alignkit.data.sources import DataSource, DataSpec
from alignkit.errors import DataError, OtherTokenizer
from alignkit.evaluation import statistics
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component, Registration
from alignkit.sampling import Sampling
from alignkit.training.rewards import Rewards
from alignkit_plugins.compare.comparison import short_names, together, unit_of
from alignkit_plugins.compare.rows import rows_of

HELPFUL = RewardSpec("stage", "helpful")
SAFETY = RewardSpec("stage", "safety")

# Rewards and lengths of three policies at six prompts; differences vary less than prompts do, and
# so pair well.
BASE = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
GAIN = [0.5, 0.7, 0.2, 0.9, -0.1, 0.6]
SCORES = {
    "base": BASE,
    "sft": [b + 1 for b in BASE],
    "align": [b + 1 + g for b, g in zip(BASE, GAIN, strict=True)],
}
LENGTHS = {"base": [5] * 6, "sft": [4, 6, 5, 4, 6, 5], "align": [5, 9, 4, 7, 3, 8]}


def prompts(count: int = 6, **meta: Any) -> list[Group]:
    return [
        Group(({"role": "user", "content": f"question {i}"},), id=str(i), meta=meta)
        for i in range(count)
    ]


class Scripted(ByRole):
    """Models whose answer k of a policy to prompt i scores SCORES[policy][i] and has
    LENGTHS[policy][i] tokens.
    """

    def __init__(
        self, scores: Any = SCORES, lengths: Any = LENGTHS, texts: str = "{policy} says {i}"
    ):
        self.scripted, self.lengths, self.texts = scores, lengths, texts
        self.full: set[tuple[str, int]] = set()  # (policy, prompt): no room for an answer
        self.sampled: list[dict[str, Any]] = []
        self.measured: list[tuple[str, float]] = []
        self.tools: list[Any] = []
        self.per_token = {"base": -3.0, "sft": -2.5, "align": -2.0}  # nats of log-probability
        self.safety = 5.0
        self.cut = 0

    def sample(self, role: str, prompts: Any, **sampling: Any) -> list[Group]:
        self.tools = [group.tools for group in prompts][:1]
        prompts = [group.prompt for group in prompts]
        self.sampled.append({"role": role, **sampling})
        groups = []
        for prompt in prompts:
            i = int(prompt[-1]["content"].split()[-1])
            n = 0 if (role, i) in self.full else sampling["samples_per_prompt"]
            answers = tuple(self._answer(role, i, k) for k in range(n))
            groups.append(Group(tuple(prompt), answers))  # as the engine does: no id, no meta
        return groups

    def _answer(self, role: str, i: int, k: int) -> Response:
        text = self.texts.format(policy=role, i=i)
        return Response(text, tokens=(k,) * self.lengths[role][i], truncated=i == 0, source="other")

    def prompt_lengths(self, role: str, prompts: Any) -> list[int]:
        return [7 for _ in prompts]

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        if stage == "safety":
            return [self.safety for group in groups for _ in group.responses]
        values: list[float | None] = []
        for group in groups:
            i = int(group.prompt[-1]["content"].split()[-1])
            for r in group.responses:
                value = self.scripted[r.source][i]
                # Sample k lies 10 k off, half up and half down, so that a prompt's mean is the
                # scripted value.
                values.append(
                    None
                    if value is None
                    else value + (10 if r.tokens[0] % 2 else -10) * (r.tokens[0] > 1)
                )
        return values

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0
    ) -> list[torch.Tensor]:
        self.measured.append((role, temperature))
        assert {str(group.tools) for group in groups} <= set(map(str, self.tools or [()]))
        tokens = [r.tokens or () for group in groups for r in group.responses]
        values = [torch.full((len(t),), self.per_token[role]) for t in tokens]
        return [v[: len(v) - self.cut] if n == 0 else v for n, v in enumerate(values)]


class TwoBases(Scripted):
    """The policies other than `base` have another tokenizer."""

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0
    ) -> list[torch.Tensor]:
        if role == "base":
            raise OtherTokenizer(f"'{role}' has another tokenizer")
        return super().logprobs(role, groups, temperature=temperature)


def context(
    models: Any, folder: Path, groups: Sequence[Group] | None = None, seed: int = 7
) -> StepContext:
    def scorer(spec: RewardSpec) -> Rewards:
        return Rewards(spec, made)

    made = StepContext(
        base_of=lambda policy: "base",
        models=models,
        cache=folder / "cache",
        folder=folder,
        seed=seed,
        out=folder / "out",
        load=lambda spec: list(prompts() if groups is None else groups),
        scorer=scorer,
        map=lambda name, rows, f: list(f(rows)),
        log=lambda **values: None,
        say=lambda text: None,
    )
    return made


def step(**options: Any) -> evaluate.Evaluate:
    options = {
        "policies": ["base", "sft", "align"],
        "rewards": [HELPFUL],
        "prompts": DataSpec((DataSource(path=Path("x")),)),
        **options,
    }
    return evaluate.Evaluate(evaluate.Evaluate.Options(**options))


def summary(
    folder: Path, models: Any = None, groups: Sequence[Group] | None = None, **options: Any
) -> dict[str, Any]:
    artifact = step(**options).run(context(models or Scripted(), folder, groups))
    return by_policy(artifact.summary or {})


def said(artifact: Artifact, width: int = 300) -> str:
    """All that a run prints of the step."""
    assert artifact.report is not None
    return f"{artifact.report.text(width)}\n\n{artifact.text}"


def combined() -> RewardSpec:
    options = llama2.Llama2.Options(helpful="helpful", safety="safety")
    component = Component("reward", "x", Registration("llama2", llama2.Llama2), options)  # type: ignore[arg-type]
    return RewardSpec("combine", "llama2", component, {"helpful": HELPFUL, "safety": SAFETY})


class SaysNothing(Judge):
    """A judge that prefers the first answer, and fails at every third comparison."""

    def compare(self, items: Any) -> list[Verdict]:
        return [
            Verdict(None, reason="error: no route") if n % 3 == 0 else Verdict(0.9, (0.95, 0.85))
            for n, _ in enumerate(items)
        ]


def judge_component(kind: type[Judge], options: Any = None, name: str = "judge") -> Component:
    return Component(
        "judge", name, Registration(name, kind), Options() if options is None else options
    )


def hand_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and t interval by the textbook's formula."""
    n = len(values)
    middle = sum(values) / n
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1))
    half = stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
    return middle, middle - half, middle + half


def triple(found: Any) -> tuple[float, float, float]:
    return found["mean"], found["low"], found["high"]


# --- numbers


def test_means_and_paired_differences(tmp_path: Path) -> None:
    found = summary(tmp_path)
    assert triple(found["policies"]["align"]["rewards"]["helpful"]) == pytest.approx(
        hand_interval(SCORES["align"])
    )
    against = found["against"]["align"]["helpful"]
    test = stats.ttest_rel(SCORES["align"], SCORES["sft"])
    interval = test.confidence_interval(0.95)
    expected = (sum(GAIN) / 6, interval.low, interval.high)
    assert triple(against["difference"]) == pytest.approx(expected)
    assert triple(against["difference"]) == pytest.approx(hand_interval(GAIN))
    # Paired: unpaired, the spread of the prompts would hide the gain.
    unpaired = stats.ttest_ind(SCORES["align"], SCORES["sft"]).confidence_interval(0.95)
    assert unpaired.low < 0 < against["difference"]["low"]


def test_win_rate_has_wilsons_interval_and_counts_ties_apart(tmp_path: Path) -> None:
    scores = {**SCORES, "align": [2.0, 4.0, 5.0, 7.0, 8.0, 12.0]}  # against sft: + + = = - +
    found = summary(tmp_path, Scripted(scores))["against"]["align"]["helpful"]
    assert (found["wins"], found["losses"], found["ties"]) == (3, 1, 2)
    z, p, n = stats.norm.ppf(0.975), 0.75, 4
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert triple(found["win_rate"]) == pytest.approx((p, middle - half, middle + half))


def overlapping(count: int = 40) -> Scripted:
    """Models whose answers score a tenth of a nat per token, and half more if they are the aligned
    policy's.
    """
    lengths = {"base": [5] * count, "sft": [20 + i % 7 for i in range(count)]}
    lengths["align"] = [22 + (3 * i) % 8 for i in range(count)]
    noise = [0.2 * math.sin(7 * i) for i in range(count)]
    scores = {policy: [0.1 * n for n in values] for policy, values in lengths.items()}
    scores["align"] = [s + 0.5 + e for s, e in zip(scores["align"], noise, strict=True)]
    return Scripted(scores, lengths)


def test_the_difference_at_equal_length(tmp_path: Path) -> None:
    models = overlapping()
    artifact = step(policies=["sft", "align"]).run(context(models, tmp_path, prompts(40)))
    found = by_policy(artifact.summary or {})["against"]["align"]["helpful"]
    gains, longer, theirs = (
        [a - b for a, b in zip(models.scripted["align"], models.scripted["sft"], strict=True)],
        [a - b for a, b in zip(models.lengths["align"], models.lengths["sft"], strict=True)],
        models.lengths["sft"],
    )
    assert found["at_equal_length"] == statistics.at_equal_length(gains, longer, theirs)
    assert found["difference"]["mean"] > 0.7  # longer answers
    assert triple(found["at_equal_length"])[0] == pytest.approx(0.5, abs=0.15)
    assert found["at_equal_length"]["low"] > 0


def test_nothing_is_said_about_equal_length_where_lengths_hardly_overlap(tmp_path: Path) -> None:
    found = summary(tmp_path)
    assert found["against"]["align"]["helpful"]["at_equal_length"] is None
    assert not any(row.kind == "equal length" for row in rows_of(found))


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-1.0, 1.0)])
def test_binary_rewards_have_intervals_of_rates(
    levels: tuple[float, float], tmp_path: Path
) -> None:
    low, high = levels
    scores = {"base": [low] * 6, "sft": [high] * 6, "align": [high] * 5 + [low]}
    found = summary(tmp_path, Scripted(scores))
    means = {policy: numbers["rewards"]["helpful"] for policy, numbers in found["policies"].items()}
    assert means["sft"] == {**statistics.rate(scores["sft"], levels=levels), "unscored": 0}
    assert means["sft"]["low"] < high == means["sft"]["high"]
    against = found["against"]["align"]["helpful"]["difference"]
    assert against == statistics.paired_rates(scores["align"], scores["sft"], levels=levels)
    same = summary(tmp_path, Scripted({**scores, "align": scores["sft"]}))["against"]["align"][
        "helpful"
    ]["difference"]
    assert same["mean"] == 0 and same["low"] < 0 < same["high"]


# Of tokens that are 0.5 nats likelier for the policy than for the reference
K3 = math.exp(-0.5) - 1 + 0.5


@pytest.mark.silent_bug(
    "statistics: KL",
    "The KL of an evaluation is the mean log ratio, which may be negative.",
    "It is k3, which is not.",
)
def test_kl_is_policy_minus_reference_per_response(tmp_path: Path) -> None:
    models = Scripted()
    found = summary(tmp_path, models, sampling={"temperature": 0.7})["policies"]
    assert found["align"]["kl"]["mean"] == pytest.approx(K3 * sum(LENGTHS["align"]) / 6)
    assert triple(found["align"]["kl"]) == pytest.approx(
        hand_interval([K3 * n for n in LENGTHS["align"]])
    )
    # K1 would be -2.5
    assert found["base"]["kl"]["mean"] == pytest.approx((math.exp(0.5) - 1 - 0.5) * 5)
    assert triple(found["sft"]["kl"]) == (0, 0, 0)
    assert models.measured == [("base", 0.7), ("sft", 0.7), ("align", 0.7), ("sft", 0.7)]


def test_kl_is_of_what_was_read_when_sampling(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    found = summary(tmp_path, groups=[replace(group, tools=(tool,)) for group in prompts()])[
        "policies"
    ]
    assert found["align"]["kl"]["mean"] == pytest.approx(K3 * sum(LENGTHS["align"]) / 6)


def test_intervals_are_over_groups_where_the_data_names_them(tmp_path: Path) -> None:
    """Three passages with two questions each: as three values, whose mean is that of six."""
    rows = [replace(group, meta={"passage": at // 2}) for at, group in enumerate(prompts())]
    data = DataSpec((DataSource(path=Path("x"), group="passage"),))
    found = summary(tmp_path, groups=rows, prompts=data)
    gains = [(a + b) / 2 for a, b in zip(GAIN[::2], GAIN[1::2], strict=True)]
    difference = found["against"]["align"]["helpful"]["difference"]
    assert triple(difference) == pytest.approx(hand_interval(gains)) and difference["n"] == 6
    assert difference["p"] == pytest.approx(statistics.p_value(gains))
    assert "intervals are over groups of prompts that share passage" in found["notes"]
    assert summary(tmp_path, groups=rows)["against"]["align"]["helpful"]["difference"] != difference


def test_groups_are_those_of_the_prompts_that_are_asked_and_of_their_own_column(
    tmp_path: Path,
) -> None:
    rows = [
        replace(group, meta={"a": at // 2}, origin=Origin("x", at + 1))
        for at, group in enumerate(prompts())
    ]
    data = DataSpec((DataSource(path=Path("x"), group="a"), DataSource(path=Path("y"), group="b")))
    others = [
        replace(g, meta={"b": g.meta["a"]}, origin=Origin("y", 1, source=1)) for g in rows[3:]
    ]
    found, notes = together([*rows[:3], *others], data)
    assert [*map(unit_of, found)] == ["a 0", "a 0", "a 1", "b 1", "b 2", "b 2"]
    assert notes == ["intervals are over groups of prompts that share a, b"]
    typo = DataSpec((DataSource(path=Path("x"), group="passsage"),))
    wrong = [replace(group, meta={"passage": 1}) for group in rows]
    with pytest.raises(DataError, match="x:1: the row has no 'passsage'"):
        together(wrong, typo)


def test_kl_leaves_out_what_the_models_could_not_read_whole(tmp_path: Path) -> None:
    models = Scripted()
    models.cut = 2
    found = summary(tmp_path, models)["policies"]["align"]["kl"]
    assert (found["unmeasured"], found["n"]) == (1, 5)
    assert found["mean"] == pytest.approx(K3 * sum(LENGTHS["align"][1:]) / 5)


@pytest.mark.parametrize(
    ("baseline", "expected"), [(None, "sft"), ("base", "base"), ("align", "align")]
)
def test_baseline(tmp_path: Path, baseline: str | None, expected: str) -> None:
    found = summary(tmp_path, baseline=baseline)
    assert found["baseline"] == expected
    assert set(found["against"]) == {"base", "sft", "align"} - {expected}
    sign = {"sft": 1.0, "base": 2.0}.get(expected)
    if sign:
        other = sum(SCORES[expected]) / 6
        gain = found["against"]["align"]["helpful"]["difference"]["mean"]
        assert gain == pytest.approx(sum(SCORES["align"]) / 6 - other)


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (["base", "sft"], "base"),
        (["sft", "align"], "sft"),
        (["base", "sft", "align"], "sft"),
        (["sft", "best", "align"], "sft"),
        (["base", "sft", "best", "align"], "sft"),
    ],
)
def test_the_baseline_is_where_training_began(policies: list[str], expected: str) -> None:
    assert step(policies=policies).baseline == expected


def test_a_single_policy_is_compared_with_nobody(tmp_path: Path) -> None:
    artifact = step(policies=["align"]).run(context(Scripted(), tmp_path))
    found = by_policy(artifact.summary or {})
    assert (found["baseline"], found["against"], found["policies"]["align"]["kl"]) == (
        None,
        {},
        None,
    )
    assert not any(row.difference or row.metric == "KL, nats" for row in rows_of(found))


@pytest.mark.silent_bug(
    "evaluation: intervals",
    "Samples of the same prompt count as independent, and intervals are too narrow.",
    "They are averaged first.",
    "UKGovernmentBEIS/inspect_ai#1113",
    "UKGovernmentBEIS/inspect_ai#1251",
)
def test_samples_of_a_prompt_are_averaged_first(tmp_path: Path) -> None:
    # Samples 2 and 3 are 10 below and above: means stay, and more samples are no more prompts.
    found = summary(tmp_path, samples_per_prompt=4)
    align = found["policies"]["align"]["rewards"]["helpful"]
    assert align["n"] == 6
    assert triple(align) == pytest.approx(hand_interval(SCORES["align"]))
    assert found["against"]["align"]["helpful"]["difference"]["n"] == 6


def test_lengths_and_shares_cut_off(tmp_path: Path) -> None:
    found = summary(tmp_path)["policies"]["align"]
    assert triple(found["length"]) == pytest.approx(hand_interval(LENGTHS["align"]))
    assert found["truncated"]["mean"] == pytest.approx(1 / 6)


# --- what is missing


def test_a_missing_score_is_left_out_in_pairs_and_counted(tmp_path: Path) -> None:
    scores = {**SCORES, "align": [None, *SCORES["align"][1:]], "sft": [*SCORES["sft"][:5], None]}
    found = summary(tmp_path, Scripted(scores))
    align, sft = (found["policies"][p]["rewards"]["helpful"] for p in ("align", "sft"))
    assert (align["n"], align["unscored"], sft["n"], sft["unscored"]) == (5, 1, 5, 1)
    against = found["against"]["align"]["helpful"]
    assert triple(against["difference"]) == pytest.approx(hand_interval(GAIN[1:5]))
    assert against["difference"]["n"] == 4


def test_nothing_scored(tmp_path: Path) -> None:
    artifact = step().run(context(Scripted({**SCORES, "align": [None] * 6}), tmp_path))
    found = by_policy(artifact.summary or {})["against"]["align"]["helpful"]
    assert found["difference"] == {"mean": None, "low": None, "high": None, "n": 0, "p": 1.0}
    assert found["win_rate"] is None and found["at_equal_length"] is None
    assert "align and sft cannot be compared: no prompt has a score for both" in said(artifact)


def test_a_prompt_without_room_is_left_out_for_all(tmp_path: Path) -> None:
    models = Scripted()
    models.full = {("base", 2)}
    found = summary(tmp_path, models)
    assert (found["prompts"], found["left_out"]) == (5, 1)
    assert all(policy["length"]["n"] == 5 for policy in found["policies"].values())
    assert found["against"]["align"]["helpful"]["difference"]["mean"] == pytest.approx(
        (sum(GAIN) - GAIN[2]) / 5
    )
    models.full = {("base", i) for i in range(6)}
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        summary(tmp_path, models)


def test_a_repeated_prompt_counts_once_and_is_reported(tmp_path: Path) -> None:
    groups = [*prompts(), *prompts(2), *prompts(1, safety=True)]
    found = summary(tmp_path, groups=groups)
    assert found["prompts"] == 7  # other columns make another prompt
    note = "2 of 9 prompts repeat the words and columns of others and do not count again"
    assert note in found["notes"]
    assert not any("repeat" in note for note in summary(tmp_path)["notes"])


def test_one_prompt_gives_no_interval(tmp_path: Path) -> None:
    artifact = step(limit=1).run(context(Scripted(), tmp_path))
    found = by_policy(artifact.summary or {})["against"]["align"]["helpful"]
    assert found["difference"] == {
        "mean": pytest.approx(0.5),
        "low": None,
        "high": None,
        "n": 1,
        "p": 1.0,
    }
    assert "No clear difference between align and sft in the reward helpful, +0.5" in said(artifact)


# --- sampling and scoring


def test_all_policies_get_the_same_prompts_and_streams(tmp_path: Path) -> None:
    models = Scripted()
    twice = [*prompts(3), *prompts(3)]  # equal prompts are not independent
    found = summary(
        tmp_path,
        models,
        twice,
        sampling={"max_new_tokens": 9, "temperature": 0.5},
        samples_per_prompt=2,
        limit=4,
    )
    assert found["prompts"] == 3
    assert summary(tmp_path, models, limit=2)["prompts"] == 2
    common = {"seed": 7, "samples_per_prompt": 2, "max_new_tokens": 9, "temperature": 0.5}
    assert models.sampled[:3] == [{"role": role, **common} for role in ("base", "sft", "align")]


def test_examples_that_compare_nothing_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.examples, "measured", lambda groups, *_: list(groups))
    monkeypatch.setattr(evaluate.examples, "rows", lambda *_, **__: [])
    pair = replace(prompts()[0], responses=(Response("a"), Response("b")), pairs=(Pair(0, 1),))
    around = context(Scripted(), tmp_path, [pair, replace(pair, responses=(), pairs=None)])
    around.out.mkdir(exist_ok=True)
    notes: list[str] = []
    asked = step(examples=DataSpec((DataSource(path=Path("x")),)))
    assert len(asked._of_examples({}, None, notes, around)[0]) == 1
    assert notes == ["1 of 2 examples compare nothing and are left out"]


@pytest.mark.parametrize("of_base", [False, None, True])
def test_known_answers_that_the_base_may_have_learned_are_no_proof(
    of_base: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {"base": of_base, "align": True}
    monkeypatch.setattr(evaluate, "learned_from", lambda model, *_: learned[model])
    monkeypatch.setattr(evaluate, "trained_prompts", lambda *_: {})
    monkeypatch.setattr(evaluate.metrics, "verifies", lambda rater: True)
    around = replace(context(Scripted(), tmp_path), recipe=object())  # type: ignore[arg-type]
    (found,) = step()._trained_on({"align": "align"}, prompts(), around).values()
    assert found == {"align": of_base is not False}


def test_answers_are_sampled_as_asked_and_the_report_says_how(tmp_path: Path) -> None:
    models = Scripted()
    asked = {
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "stop": ["\n"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
    }
    text = said(step(sampling=asked).run(context(models, tmp_path)))
    assert models.sampled[0] == {"role": "base", "seed": 7, "samples_per_prompt": 1, **asked}
    assert text.startswith(
        "sampled with max_new_tokens 9, temperature 0.5, min_new_tokens 2, top_p 0.9, top_k 3, stop"
    )
    assert "the KL is biased: it is of all tokens, and samples leave some out" in text
    followed = step(sampling={"max_new_tokens": 9})
    followed.options.follow(Sampling(temperature=0.9, max_new_tokens=4))
    artifact = followed.run(context(models, tmp_path))
    wanted = "sampled with max_new_tokens 9, temperature 0.7"
    assert said(artifact).splitlines()[0] == wanted
    # The KL is that of the distribution that was sampled
    assert models.measured[-1] == ("sft", 0.7)
    sampling = {"samples_per_prompt": 1, "max_new_tokens": 9, "temperature": 0.7, "seed": 7}
    assert by_policy(artifact.summary or {})["sampling"] == sampling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ["sft", "sft"]}, "policies has duplicates: sft"),
        ({"rewards": [HELPFUL, HELPFUL]}, "rewards and judges has duplicates: helpful"),
        ({"rewards": []}, "name at least one metric, reward or judge"),
        ({"judges": [judge_component(SaysNothing)], "policies": ["sft"]}, "name at least two"),
        ({"baseline": "best"}, "baseline 'best' must be one of the policies"),
        ({"policies": []}, "at least 1"),
        ({"sampling": {"temperature": 0}}, "the KL is measured at the sampling temperature"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step(**options)


# --- what is left behind


def test_files(tmp_path: Path) -> None:
    artifact = step(rewards=[HELPFUL, combined()]).run(context(Scripted(), tmp_path))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found == artifact.summary  # so the summary is JSON, too
    assert "NaN" not in json.dumps(found)
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    assert [g.prompt for g in samples] == [g.prompt for g in prompts()]
    first = samples[1].responses[2]
    assert (first.source, first.text) == ("align", "align says 1")
    assert first.scores == {
        "helpful": pytest.approx(3.7),
        "llama2": pytest.approx(3.7),
    }


def paths(value: Any, names: dict[str, str], path: str = "") -> set[str]:
    """The places of all keys in JSON, with policies, rewards and sampling options by their
    kinds.
    """
    if isinstance(value, list):
        return set().union(*(paths(item, names, path) for item in value), set())
    if not isinstance(value, dict):
        return set()
    found: set[str] = set()
    for key, below in value.items():
        place = f"{path}.{'OPTION' if path == 'sampling' else names.get(key, key)}".lstrip(".")
        found |= {place} | paths(below, names, place)
    return found


def documented(file: str) -> dict[str, str]:
    """What docs/plugins/api/files.md says of each key of a file."""
    page = (Path(__file__).parents[2] / "docs/plugins/api/files.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:3]
        for line in page.split(f"| `{file}` | meaning |")[1].split("\n\n")[0].splitlines()[2:]
    ]
    return {key: meaning for keys, meaning in rows for key in re.findall("`(.+?)`", keys)}


def test_every_key_of_evaluation_json_is_documented(tmp_path: Path) -> None:
    models = overlapping()  # lengths overlap, and so there is a difference at equal length
    models.scripted["align"] = [*models.scripted["align"][:-1], None]
    options = {"rewards": [HELPFUL], "judges": [judge_component(SaysNothing)], "by": ["language"]}
    options["metrics"] = {"metric": {"reward": HELPFUL, "where": {}, "better": "lower"}}
    groups = [replace(group, meta={"language": "en"}) for group in prompts(40)]
    step(sampling={"top_k": 5}, **options).run(context(models, tmp_path, groups))
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    written["judge_cards"] = {}  # test_judge_card.py
    found, known = set(paths(written, {})), documented("evaluation.json")
    fields = {key for key in known if known[key].strip().startswith("of an estimate")}
    estimates = {
        f"{key}.{field}" for key in known if "estimate of" in known[key] for field in fields
    }
    assert found - known.keys() - estimates == set()
    # Nothing says here what a policy learned from.
    assert known.keys() - found - fields == {"results.trained_on"}


def test_the_report_is_written_as_text_and_markdown_for_any_width(tmp_path: Path) -> None:
    artifact = step().run(context(Scripted(), tmp_path))
    assert artifact.report is not None
    for width in (80, 100, 120):
        assert max(map(len, artifact.report.text(width).splitlines())) <= width
    low, high = hand_interval(GAIN)[1:]
    for text in (artifact.report.text(80), artifact.report.text(50), artifact.report.markdown()):
        assert f"[{low:.1f}, {high:.1f}]" in text


def test_text(tmp_path: Path) -> None:
    text = said(step(next="alignkit chat runs/x").run(context(Scripted(), tmp_path)))
    lines = text.splitlines()
    assert "mean and 95% interval over 6 prompts" in text
    assert text.count("prompt: question") == 3
    assert [lines.count(f"  {name} says 1") for name in ("base", "sft", "align")] == [1, 1, 1]
    low, high = hand_interval(GAIN)[1:]
    assert f"the reward helpful, +0.5 [{low:.1f}, {high:.1f}]: 6.47 against 6.00." in text
    assert next(line for line in lines if line.startswith("KL, nats")).endswith("0.64 [0.37, 0.90]")
    assert lines[-1] == "next: alignkit chat runs/x"


def test_answers_cannot_act_on_the_terminal_or_as_markup(tmp_path: Path) -> None:
    models = Scripted(texts="\x1b[31mred[/red] [bold]x\x07{i}" + "long " * 100)
    text = said(step().run(context(models, tmp_path)))
    assert "\x1b" not in text and "\x07" not in text
    assert "[/red] [bold]x" in text.replace("\n", " ")
    assert text.count("long") < 9 * 70


WIDTHS = [
    (0.21, 0.63, 2),
    (0.2, 0.8, 1),
    (-1, 5, 0),
    (-2, 2, 1),
    (-50, 50, 0),
    (0, 2e-5, 6),
    (1, 1, 2),
]


@pytest.mark.parametrize(("low", "high", "digits"), WIDTHS)
def test_digits_follow_the_interval(low: float, high: float, digits: int) -> None:
    assert statistics.decimals({"low": low, "high": high}) == digits


def test_the_plugin_is_light_to_import() -> None:
    code = (
        "import sys; from alignkit_plugins.evaluate import select_best, step; "
        "print(sys.modules.keys() & {'torch', 'scipy', 'rich'})"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )


def test_the_name_of_a_reward_model_of_another_run() -> None:
    assert evaluate.label(RewardSpec("folder", "/r/one/helpful/adapter")) == "one/helpful"
    assert evaluate.label(RewardSpec("folder", "models/mine")) == "mine"


def test_short_names() -> None:
    assert short_names(["base", "sft@2"]) == {"base": "base", "sft@2": "sft@2"}
    assert short_names(["/r/one/sft/adapter", "sft"]) == {
        "/r/one/sft/adapter": "one/sft",
        "sft": "sft",
    }
    two = ["/r/a/x/sft/adapter", "/r/b/x/sft/adapter"]
    assert list(short_names(two).values()) == two
    assert short_names(["/r/one/sft/kept/2", "sft"])["/r/one/sft/kept/2"] == "one/sft@2"
    same = ["/x/align", "/x/align/adapter"]
    # A table with one name twice would lose a policy
    assert short_names(same) == {name: name for name in same}


def test_policies_without_a_kl_are_told(tmp_path: Path) -> None:
    heard: list[str] = []
    around = replace(context(TwoBases(), tmp_path), say=heard.append)
    found = by_policy(
        step(policies=["base", "sft", "align"], baseline="base").run(around).summary or {}
    )
    told = [text for text in heard if "no KL" in text]
    assert told == [
        f"out: no KL of {name}: 'base' has another tokenizer" for name in ("sft", "align")
    ]
    assert [found["policies"][name]["kl"]["unmeasured"] for name in ("base", "sft", "align")] == [
        0,
        6,
        6,
    ]
