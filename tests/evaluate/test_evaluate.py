"""The step that compares policies: against scripted models, with numbers worked out apart from the
step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

import alignkit_plugins.algorithms.llama2 as llama2
import alignkit_plugins.evaluate.step as evaluate
from alignkit import Group, Response, RunFailed, Verdict
from alignkit.data.group import Origin, Pair, read_groups
from alignkit.data.sources import DataSource, DataSpec
from alignkit.errors import DataError, OtherTokenizer
from alignkit.evaluation import statistics
from alignkit.recipe.schema import RewardSpec
from alignkit.sampling import Sampling
from alignkit.step import StepData
from alignkit_plugins.compare.comparison import short_names, together, unit_of
from alignkit_plugins.compare.rows import Row, rows_of
from alignkit_plugins.compare.tables import details
from alignkit_plugins.evaluate.judged import preference
from alignkit_plugins.evaluate.step import judge_names
from tests.documented_keys import documented, paths
from tests.evaluate.scripted import (
    ALIGN,
    GAIN,
    HELPFUL,
    LENGTHS,
    SCORES,
    SFT,
    Scripted,
    component,
    context,
    hand_interval,
    number,
    prompts,
    row,
    said,
    step,
    summary,
    told,
    triple,
)
from tests.rows import cells


def close(found: Any, expected: Sequence[float]) -> bool:
    return triple(found) == pytest.approx(tuple(expected))


# --- numbers


def told_of(row: Row) -> list[str]:
    """The mean, the difference from the baseline, the win rate, and prompts won, lost and tied."""
    texts = []
    for found in (row.estimate, row.difference, row.win_rate):
        texts.append("{mean:.4g} [{low:.4g}, {high:.4g}] {n}".format(**found) if found else "")
    return [*texts, row.counts]


# What is different in a run
PASSAGES = DataSpec((DataSource(path=Path("x"), group="passage"),))
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "base": {"baseline": "base"},
    "wins": {"scores": {**SCORES, "align": [2.0, 4.0, 5.0, 7.0, 8.0, 12.0]}},
    "gaps": {"scores": {**SCORES, "align": [None, *ALIGN[1:]], "sft": [*SFT[:5], None]}},
    "full": {"full": {("base", 2)}},
    "cut": {"cut": 2},
    "passages": {"prompts": PASSAGES},
}
# By the textbook: t intervals, paired, and Wilson's; the KL by k3 of half a nat per token. Three
# passages with two prompts each count as three values, whose mean is that of six.
NUMBERS = """
plain    align helpful | 6.467 [2.589, 10.34] 6 | 0.4667 [0.08732, 0.846] 6   | 0.8333 [0.4365, 0.9699] 6 | 5/1/0
base     align helpful | 6.467 [2.589, 10.34] 6 | 1.467 [1.087, 1.846] 6      | 1 [0.6097, 1] 6           | 6/0/0
wins     align helpful | 6.333 [2.658, 10.01] 6 | 0.3333 [-0.5235, 1.19] 6    | 0.75 [0.3006, 0.9544] 4   | 3/1/2
gaps     align helpful | 7.46 [3.6, 11.32] 5    | 0.425 [-0.3027, 1.153] 4    | 0.75 [0.3006, 0.9544] 4   | 3/1/0
full     align helpful | 6.72 [1.664, 11.78] 5  | 0.52 [0.05211, 0.9879] 5    | 0.8 [0.3755, 0.9638] 5    | 4/1/0
passages align helpful | 6.467 [-3.037, 15.97] 6 | 0.4667 [-0.003573, 0.9369] 6 |                         | 5/1/0
plain    align length, tokens | 6 [3.517, 8.483] 6 | | |
plain    align KL, nats | 0.6392 [0.3746, 0.9037] 6 | | |
plain    sft KL, nats   | 0 [0, 0] 6                | | |
cut      align KL, nats | 0.6605 [0.3181, 1.003] 5  | | |
"""


@pytest.mark.parametrize(("name", "mean", "difference", "win_rate", "counts"), cells(NUMBERS))
def test_numbers_are_those_of_the_textbook(
    name: str, mean: str, difference: str, win_rate: str, counts: str, tmp_path: Path
) -> None:
    what, policy, metric = name.split(maxsplit=2)
    changed, models = dict(RUNS[what]), Scripted(RUNS[what].get("scores", SCORES))
    models.full, models.cut = changed.pop("full", set()), changed.pop("cut", 0)
    changed.pop("scores", None)
    groups = [replace(group, meta={"passage": at // 2}) for at, group in enumerate(prompts())]
    found = summary(tmp_path, models, groups, **changed)
    one = row(found, policy, metric)
    for expected, value in zip((mean, difference, win_rate, counts), told_of(one), strict=True):
        assert not expected or value == expected
    assert one.missing == (what in ("gaps", "cut"))
    assert ("share passage" in "".join(found["notes"])) == (what == "passages")


def overlapping(count: int = 40) -> Scripted:
    """Answers score a tenth per token, and half more if they are the aligned policy's."""
    lengths = {"base": [5] * count, "sft": [20 + i % 7 for i in range(count)]}
    lengths["align"] = [22 + (3 * i) % 8 for i in range(count)]
    scores = {policy: [0.1 * n for n in values] for policy, values in lengths.items()}
    scores["align"] = [n + 0.5 + 0.2 * math.sin(7 * i) for i, n in enumerate(scores["align"])]
    return Scripted(scores, lengths)


def test_the_difference_at_equal_length(tmp_path: Path) -> None:
    found = row(summary(tmp_path, overlapping(), prompts(40), policies=["sft", "align"]))
    assert found.difference["mean"] > 0.7  # longer answers
    assert found.equal_length["mean"] == pytest.approx(0.5, abs=0.15)
    assert 0 < found.equal_length["low"] < found.equal_length["high"] < 0.7


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-1.0, 1.0)])
def test_binary_rewards_have_intervals_of_rates(
    levels: tuple[float, float], tmp_path: Path
) -> None:
    """Also where all of them are equal, as at one value of a column."""
    low, high = levels
    scores = {"base": [low] * 6, "sft": [high] * 6, "align": [high] * 5 + [low]}
    groups = [replace(group, meta={"half": n // 3}) for n, group in enumerate(prompts())]
    found = summary(tmp_path, Scripted(scores), groups, by=["half"])
    assert row(found, "sft").estimate == statistics.rate(scores["sft"], levels=levels)
    paired = statistics.paired_rates(scores["align"], scores["sft"], levels=levels)
    assert row(found).difference == paired
    first = statistics.rate(scores["align"][:3], levels=levels)
    assert row(found, value="0").estimate == first and first["low"] < high == first["high"]


# Nats of tokens that are 0.5 nats likelier for the policy than for the reference
K3 = math.exp(-0.5) - 1 + 0.5
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.silent_bug(
    "statistics: KL",
    "The KL of an evaluation is the mean log ratio, which may be negative.",
    "It is k3, which is not.",
)
def test_kl_is_policy_minus_reference_per_response(tmp_path: Path) -> None:
    """At the temperature of the samples, of what was read when sampling."""
    models = Scripted()
    groups = [replace(group, tools=(TOOL,)) for group in prompts()]
    found = summary(tmp_path, models, groups, sampling={"temperature": 0.6})
    kl = {policy: row(found, policy, "KL, nats").estimate for policy in SCORES}
    assert close(kl["align"], hand_interval([K3 * n for n in LENGTHS["align"]]))
    assert kl["base"]["mean"] == pytest.approx((math.exp(0.5) - 1 - 0.5) * 5)  # k1: -2.5
    assert triple(kl["sft"]) == (0, 0, 0)
    roles = ["base", "sft", "align", "sft"]
    assert models.measured == [(role, 0.6) for role in roles]
    assert models.tools == [(TOOL,)] * len(models.tools)


class TwoBases(Scripted):
    """`base` has another tokenizer."""

    def logprobs(self, role: str, *given: Any, **more: Any) -> Any:
        if role == "base":
            raise OtherTokenizer(f"'{role}' has another tokenizer")
        return super().logprobs(role, *given, **more)


def test_policies_without_a_kl_are_told(tmp_path: Path) -> None:
    heard: list[str] = []
    around = context(TwoBases(), tmp_path, say=heard.append)
    found = step(baseline="base").run(around).summary or {}
    assert [text for text in heard if "no KL" in text] == [
        f"out: no KL of {name}: 'base' has another tokenizer" for name in ("sft", "align")
    ]
    assert [row(found, name, "KL, nats").missing for name in SCORES] == [0, 6, 6]


def test_no_kl_if_none_is_wanted(tmp_path: Path) -> None:
    models = Scripted()
    artifact = step(kl=False, sampling={"temperature": 0}).run(context(models, tmp_path))
    assert models.measured == [] and "KL" not in said(artifact)


def test_groups_are_those_of_the_prompts_that_are_asked_and_of_their_own_column() -> None:
    sources = DataSource(path=Path("x"), group="a"), DataSource(path=Path("y"), group="b")
    rows = []
    for at, group in enumerate(prompts()):
        column, source = ("a", 0) if at < 3 else ("b", 1)
        origin = Origin("xy"[source], at + 1, source=source)
        rows.append(replace(group, meta={column: at // 2}, origin=origin))
    found, notes = together(rows, DataSpec(sources))
    assert [*map(unit_of, found)] == ["a 0", "a 0", "a 1", "b 1", "b 2", "b 2"]
    assert notes == ["intervals are over groups of prompts that share a, b"]
    with pytest.raises(DataError, match="x:1: the row has no 'passsage'"):
        together(rows, DataSpec((DataSource(path=Path("x"), group="passsage"),) * 2))


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
    assert row(found).estimate["n"] == row(found).difference["n"] == 6
    assert close(row(found).estimate, hand_interval(ALIGN))
    assert close(row(found, metric="length, tokens").estimate, hand_interval(LENGTHS["align"]))
    assert row(found, metric="truncated").estimate["mean"] == pytest.approx(1 / 6)


# --- who is compared with whom

BASELINES: list[tuple[str, str | None, str | None]] = [
    ("base sft", None, "base"),
    ("sft align", None, "sft"),
    ("base sft align", None, "sft"),
    ("sft best align", None, "sft"),
    ("base sft align", "base", "base"),
    ("base sft align", "align", "align"),
    ("align", None, None),
]


@pytest.mark.parametrize(("policies", "asked", "expected"), BASELINES)
def test_the_baseline_is_where_training_began(
    policies: str, asked: str | None, expected: str | None
) -> None:
    assert step(policies=policies.split(), baseline=asked).baseline == expected


@pytest.mark.parametrize(
    ("policies", "shown", "compared"),
    [
        ("base sft align", "base sft align", {"base", "align"}),
        ("sft align", "base sft align", {"align"}),
        ("align", "base align", set()),
    ],
)
def test_the_base_is_a_column_and_is_compared_only_if_it_is_named(
    policies: str, shown: str, compared: set[str], tmp_path: Path
) -> None:
    found = summary(tmp_path, policies=policies.split())
    assert found["policies"] == shown.split()
    assert {one.policy for one in rows_of(found) if one.difference} == compared
    assert [one for one in rows_of(found) if one.metric == "KL, nats" and not compared] == []


def test_no_base_for_policies_on_several(tmp_path: Path) -> None:
    around = context(Scripted(), tmp_path, base_of=lambda policy: policy)
    found = step(policies=["sft", "align"]).run(around).summary or {}
    assert found["policies"] == ["sft", "align"]


@pytest.mark.parametrize("of_base", [False, None, True])
def test_known_answers_that_the_base_may_have_learned_are_no_proof(
    of_base: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = {"base": of_base, "align": True}
    monkeypatch.setattr(evaluate, "learned_from", lambda model, *_: learned[model])
    monkeypatch.setattr(evaluate, "trained_prompts", lambda *_: {})
    monkeypatch.setattr(evaluate.metrics, "verifies", lambda rater: True)
    around = context(Scripted(), tmp_path, recipe=object())
    (found,) = step()._trained_on({"align": "align"}, prompts(), around).values()
    assert found == {"align": of_base is not False}


def test_names_are_as_short_as_they_can_be_and_stay_different() -> None:
    here = "/r/one/sft/adapter", "/r/one/sft/kept/2", "base"
    assert list(short_names(here).values()) == ["one/sft", "one/sft@2", "base"]
    for same in (["/r/a/x/sft/adapter", "/r/b/x/sft/adapter"], ["/x/align", "/x/align/adapter"]):
        assert list(short_names(same).values()) == same  # or a table would lose a policy
    specs = RewardSpec("folder", "/r/one/helpful/adapter"), RewardSpec("folder", "models/mine")
    assert [*map(evaluate.label, specs)] == ["one/helpful", "mine"]


# --- what is missing


def test_nothing_scored(tmp_path: Path) -> None:
    artifact = step().run(context(Scripted({**SCORES, "align": [None] * 6}), tmp_path))
    found = row(artifact.summary or {})
    assert found.difference == {"mean": None, "low": None, "high": None, "n": 0, "p": 1.0}
    assert (found.win_rate, found.equal_length) == ({}, {})
    assert "align and sft cannot be compared: no prompt has a score for both" in said(artifact)


def test_a_prompt_without_room_is_left_out_for_all(tmp_path: Path) -> None:
    models = Scripted()
    models.full = {("base", 2)}
    found = summary(tmp_path, models)
    assert (found["prompts"], found["left_out"]) == (5, 1)
    models.full = {("base", i) for i in range(6)}
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        summary(tmp_path, models)


def test_a_repeated_prompt_counts_once_and_is_reported(tmp_path: Path) -> None:
    found = summary(tmp_path, groups=[*prompts(), *prompts(2), *prompts(1, safety=True)])
    assert found["prompts"] == 7  # other columns make another prompt
    assert [note[:24] for note in found["notes"] if "repeat" in note] == [
        "2 of 9 prompts repeat th"
    ]
    assert not [note for note in summary(tmp_path)["notes"] if "repeat" in note]


def test_one_prompt_gives_no_interval(tmp_path: Path) -> None:
    artifact = step(limit=1).run(context(Scripted(), tmp_path))
    difference = row(artifact.summary or {}).difference
    assert (difference["low"], difference["high"], difference["p"]) == (None, None, 1.0)
    assert "No clear difference between align and sft in the reward helpful, +0.5" in said(artifact)


def test_examples_that_compare_nothing_are_counted(tmp_path: Path) -> None:
    both = tuple(Response(text, tokens=(1, 2)) for text in "ab")
    pair = replace(prompts()[0], responses=both, pairs=(Pair(0, 1),))
    examples = DataSpec((DataSource(path=Path("examples")),))
    rows = [pair, replace(pair, responses=(), pairs=None)]
    load = lambda spec: rows if spec == examples else prompts()  # noqa: E731
    artifact = step(examples=examples).run(context(Scripted(), tmp_path, load=load))
    found = artifact.summary or {}
    assert found["examples"] == 1
    assert "1 of 2 examples compare nothing and are left out" in found["notes"]


# --- sampling


def test_all_policies_answer_the_same_prompts_as_asked_and_the_report_says_how(
    tmp_path: Path,
) -> None:
    models, twice = Scripted(), [*prompts(3), *prompts(3)]
    asked = {"max_new_tokens": 9, "min_new_tokens": 2, "stop": ["\n"], "temperature": 0.5}
    asked |= {"top_p": 0.9, "top_k": 3}
    options = {"sampling": asked, "samples_per_prompt": 2, "limit": 4}
    artifact = step(**options).run(context(models, tmp_path, twice))
    found, common = artifact.summary or {}, {"seed": 7, "samples_per_prompt": 2, **asked}
    assert models.sampled == [{"role": role, **common} for role in SCORES]
    assert found["prompts"] == 3 and found["sampling"] == common
    assert summary(tmp_path, limit=2)["prompts"] == 2
    notes = "\n".join(found["notes"])
    assert "max_new_tokens 9, temperature 0.5, min_new_tokens 2, top_p 0.9, top_k 3, stop" in notes
    assert "the KL is biased" in notes


def test_the_temperature_of_evaluations_is_their_own(tmp_path: Path) -> None:
    models, followed = Scripted(), step(sampling={"max_new_tokens": 9})
    followed.options.follow(Sampling(temperature=0.9, max_new_tokens=4))
    found = followed.run(context(models, tmp_path)).summary or {}
    sampling = {"samples_per_prompt": 1, "max_new_tokens": 9, "temperature": 0.7, "seed": 7}
    assert found["sampling"] == sampling and models.measured[-1] == ("sft", 0.7)


FIRST, _ = told(lambda n, one, other: Verdict(1.0))
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"policies": ["sft", "sft"]}, "policies has duplicates: sft"),
    ({"policies": []}, "at least 1"),
    ({"rewards": [HELPFUL, HELPFUL]}, "duplicates: helpful"),
    ({"metrics": {"helpful": {"reward": HELPFUL}}}, "duplicates: helpful"),
    ({"metrics": {"x": {"reward": HELPFUL, "better": "more"}}}, "higher"),
    ({"rewards": []}, "at least one metric, reward or judge"),
    ({"judges": [FIRST], "policies": ["sft"]}, "at least two"),
    ({"baseline": "best"}, "baseline 'best'"),
    ({"sampling": {"temperature": 0}}, "kl: false"),
]


@pytest.mark.parametrize(("options", "word"), MISTAKES)
def test_options_that_cannot_be(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        step(**options)


# --- metrics and columns

REFUSAL, EXACT = RewardSpec("reward", "refusal"), RewardSpec("reward", "exact_match")
HARMFUL = {"reward": REFUSAL, "where": {"kind": "harmful"}}
ORDINARY = {"reward": REFUSAL, "where": {"kind": ["ordinary"]}, "better": "lower"}
REFUSED = {"base": 1, "sft": 2, "align": 10}  # of ten harmful prompts
TWENTY = Scripted(dict.fromkeys(SCORES, range(20)), dict.fromkeys(SCORES, [5] * 20))
MIXED = [*prompts(20, kind="harmful")[:10], *prompts(20, kind="ordinary")[10:]]


def refused(groups: Sequence[Group]) -> list[Group]:
    """sft refuses eight ordinary prompts, the others none."""
    rated = []
    for group in groups:
        i, answers = number(group.prompt), []
        for answer in group.responses:
            ordinary = answer.source == "sft" and i < 18
            score = float(ordinary if i >= 10 else i < REFUSED[str(answer.source)])
            answers.append(replace(answer, scores={"reward": score}))
        rated.append(replace(group, responses=tuple(answers)))
    return rated


def test_a_metric_is_a_row_over_its_own_prompts(tmp_path: Path) -> None:
    around = context(TWENTY, tmp_path, MIXED, scorer=lambda spec: SimpleNamespace(score=refused))
    metrics = {"harmful refused": HARMFUL, "ordinary refused": ORDINARY}
    artifact = step(rewards=[], metrics=metrics, policies=["sft", "align"]).run(around)
    found = artifact.summary or {}
    harmful, ordinary = row(found, metric="harmful refused"), row(found, metric="ordinary refused")
    assert found["headline"] == "harmful refused" and harmful.equal_length == {}
    numbers = [(one.difference["mean"], one.difference["n"]) for one in (harmful, ordinary)]
    assert numbers == [pytest.approx((0.8, 10)), pytest.approx((-0.8, 10))]
    assert (harmful.counts, ordinary.counts) == ("8/0/2", "8/0/2")  # less is a win, too
    assert harmful.missing == 0 and ordinary.estimate["n"] == 10
    # All or nothing is not certain
    assert harmful.estimate["mean"] == 1 and 0.6 < harmful.estimate["low"] < 0.8
    assert ordinary.estimate["mean"] == 0 and 0.2 < ordinary.estimate["high"] < 0.4
    over_base = row(found, metric="harmful refused", over_base=True)
    assert over_base.difference["mean"] == pytest.approx(0.9)
    (line,) = [line for line in said(artifact).splitlines() if line.startswith("harmful refused ")]
    assert "20% [" in line and "100% [" in line


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"kin": "harmful"}, "the column kin\nhelp: did you mean 'kind'"),
        ({"kind": "harmfull"}, "kind: harmfull\nhelp: did you mean 'harmful'"),
        ({"kind": ["ordinary", "x"]}, "kind: x\nhelp: there are harmful, ordinary"),
        ({"kind": "harmful", "year": 3}, "the column year"),
    ],
)
def test_a_metric_without_prompts_is_refused_before_any_work(where: Any, said: str) -> None:
    made = step(rewards=[], metrics={"refused": {"reward": REFUSAL, "where": where}})
    with pytest.raises(DataError, match=said) as raised:
        made.check_data(StepData(lambda spec: spec and MIXED, lambda reward, groups: None))
    assert raised.value.option[:2] == ("metrics", "refused")


def test_a_reward_checks_only_the_prompts_of_its_metric() -> None:
    seen: list[tuple[str, int]] = []
    made = step(metrics={"right": {"reward": EXACT, "where": {"kind": "harmful"}}})
    check = lambda reward, groups: seen.append((reward.name, len(groups)))  # noqa: E731
    made.check_data(StepData(lambda spec: spec and MIXED, check))
    assert seen == [("helpful", 20), ("exact_match", 10)]


def test_results_by_column(tmp_path: Path) -> None:
    """The English prompts are 1, 3 and 4; the last one has no language."""
    languages = [{"language": name} for name in ("de", "en", "de", "en", "en")]
    groups = [replace(g, meta=m) for g, m in zip(prompts(), [*languages, {}], strict=True)]
    found = summary(tmp_path, groups=groups, by=["language"], policies=["sft", "align"])
    assert {one.value for one in rows_of(found)} == {"", "(none)", "de", "en"}
    english = row(found, value="en")
    assert close(english.estimate, hand_interval([ALIGN[i] for i in (1, 3, 4)]))
    assert close(english.difference, hand_interval([GAIN[i] for i in (1, 3, 4)]))
    assert english.counts == "2/1/0"
    (table,) = details(rows_of(found))
    assert ["en", "align", statistics.shown(english.estimate)] in [line[:3] for line in table.rows]
    with pytest.raises(DataError, match="the column safety\nhelp: there are language"):
        summary(tmp_path, groups=groups, by=["safety"])


# --- judges

# P(align is better) if shown first, and if shown second, at six prompts; None is an error.
ORDERS = [(0.9, 0.7), (0.6, 0.2), (0.5, 0.5), (0.1, 0.3), None, (1.0, 1.0)]
P = [0.8, 0.4, 0.5, 0.2, 1.0]  # their averages


def decide(n: int, one: str, other: str) -> Verdict:
    orders = ORDERS[n]
    if orders is None:
        return Verdict(None, reason="refused: I am sorry")
    return Verdict(sum(orders) / 2, orders)


@pytest.mark.silent_bug(
    "judges: missing verdicts",
    "A judge that fails counts as a wrong answer or as half a win.",
    "The case is left out and counted by reason.",
    "open-compass/opencompass#2598",
    "NVIDIA-NeMo/Gym#2103",
)
@pytest.mark.parametrize("samples", [1, 3])
def test_every_answer_meets_the_baselines_and_what_has_no_verdict_is_counted(
    samples: int, tmp_path: Path
) -> None:
    judge, asked = told(decide)
    options = {"rewards": [], "judges": [judge], "samples_per_prompt": samples}
    artifact = step(policies=["sft", "align"], **options).run(context(Scripted(), tmp_path))
    found, every = artifact.summary or {}, [i for i in range(6) for _ in range(samples)]
    assert [item[1:] for item in asked] == [(f"align says {i}", f"sft says {i}") for i in every]
    judged, card = row(found, metric="judge"), found["judge_cards"]["judge"]
    p = statistics.p_value([p - 0.5 for p in P])
    assert judged.estimate == pytest.approx({**statistics.estimate(P), "p": p})
    assert judged.counts == "2/2/1" and judged.win_rate == statistics.share(2, 4)
    assert (card["comparisons"], card["unjudged"]) == (6 * samples, {"refused": samples})
    assert judged.missing == 1 and found["headline"] is None
    sentence = "No clear difference between align and sft in judge, which prefers it in 58%"
    assert sentence in said(artifact)


def test_equal_answers_are_a_tie_and_cost_nothing(tmp_path: Path) -> None:
    judge, asked = told(decide)
    found = row(summary(tmp_path, Scripted(texts="the same {i}"), judges=[judge]), metric="judge")
    assert asked == [] and found.counts == "0/0/6"
    assert triple(found.estimate) == (0.5, None, None)


def test_rewards_and_two_judges(tmp_path: Path) -> None:
    judges = [told(decide)[0], told(decide)[0]]
    found = summary(tmp_path, judges=judges)
    assert list(found["judge_cards"]) == judge_names(judges) == ["judge", "judge-2"]
    judged = [(one.policy, one.metric) for one in rows_of(found) if one.kind == "judge"]
    assert judged == [(p, name) for p in ("base", "align") for name in ("judge", "judge-2")]
    assert found["headline"] == "helpful"


def test_probabilities_have_no_interval_beyond_0_and_1() -> None:
    assert triple(preference([0.25, 1.0], [None, None])) == (0.625, 0.0, 1.0)
    assert triple(preference([0.25, 0.25], [None, None])) == (0.25, None, None)


# --- what is left behind


def test_files(tmp_path: Path) -> None:
    options = llama2.Llama2.Options(helpful="helpful", safety="safety")  # type: ignore[arg-type]
    parts = {"helpful": HELPFUL, "safety": RewardSpec("stage", "safety")}
    both = component("reward", "llama2", llama2.Llama2, options)
    rewards = [HELPFUL, RewardSpec("combine", "llama2", both, parts)]
    artifact = step(rewards=rewards).run(context(Scripted(), tmp_path))
    text = (tmp_path / "out" / "evaluation.json").read_text()
    assert json.loads(text) == artifact.summary and "NaN" not in text
    samples = read_groups(tmp_path / "out" / "samples.jsonl")
    assert [group.prompt for group in samples] == [group.prompt for group in prompts()]
    first = samples[1].responses[2]
    assert (first.source, first.text) == ("align", "align says 1")
    assert first.scores == pytest.approx({"helpful": 3.7, "llama2": 3.7})


def test_every_key_of_evaluation_json_is_documented(tmp_path: Path) -> None:
    models = overlapping()  # lengths overlap, and so there is a difference at equal length
    models.scripted["align"] = [*models.scripted["align"][:-1], None]
    options = {"rewards": [HELPFUL], "judges": [FIRST], "by": ["language"]}
    options["metrics"] = {"metric": {"reward": HELPFUL, "where": {}, "better": "lower"}}
    written = dict(
        summary(tmp_path, models, prompts(40, language="en"), sampling={"top_k": 5}, **options)
    )
    written["judge_cards"] = {}  # test_judge_card.py
    found, known = paths(written, {}), documented("evaluation.json")
    fields = {key for key in known if known[key].strip().startswith("of an estimate")}
    estimates = [key for key in known if "estimate of" in known[key]]
    nested = {f"{key}.{field}" for key in estimates for field in fields}
    assert found - known.keys() - nested == set()
    # Nothing says here what a policy learned from.
    assert known.keys() - found - fields == {"results.trained_on"}


def test_the_report_has_intervals_answers_and_what_is_next_at_any_width(tmp_path: Path) -> None:
    artifact = step(next="alignkit chat runs/x").run(context(Scripted(), tmp_path))
    assert artifact.report is not None
    for width in (80, 100, 120):
        assert max(map(len, artifact.report.text(width).splitlines())) <= width
    for text in (artifact.report.text(50), artifact.report.markdown()):
        assert "+0.5 [0.1, 0.8]" in text  # the interval of GAIN
    lines = said(artifact).splitlines()
    assert "mean and 95% interval over 6 prompts" in lines
    assert [lines.count(f"  {name} says 1") for name in SCORES] == [1, 1, 1]
    (kl,) = [line for line in lines if line.startswith("KL, nats")]
    assert kl.endswith("0.64 [0.37, 0.90]") and lines[-1] == "next: alignkit chat runs/x"


def test_answers_cannot_act_on_the_terminal_or_as_markup(tmp_path: Path) -> None:
    models = Scripted(texts="\x1b[31mred[/red] [bold]x\x07{i}" + "long " * 100)
    text = said(step().run(context(models, tmp_path)))
    assert "\x1b" not in text and "\x07" not in text
    assert "[/red] [bold]x" in text.replace("\n", " ")
    assert text.count("long") < 9 * 70
