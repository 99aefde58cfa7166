"""The step `judge_pairs` and the reward `rlaif`: which pairs are asked for, by which principles, and what
becomes of the verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from by_role import ByRole
from pydantic import ValidationError

from alignkit import Group, Response, RunFailed, Verdict
from alignkit.contract.settings import Sampling
from alignkit_plugins.ai_feedback.constitution import Principle
from alignkit_plugins.ai_feedback.judge import LocalJudge
from alignkit_plugins.ai_feedback.panel import RewardJudge
from alignkit_plugins.ai_feedback.rlaif import RLAIF, JudgePairs
from tests.ai_feedback.judge_server import REFUSED, Script, Told, component, context, in_turn
from tests.rows import user

BY_TEXT = Script(compare=lambda item, rubric: 0.8 if item[1] < item[2] else 0.2)


def group(*texts: str, prompt: str = "which") -> Group:
    return Group((user(prompt),), tuple(map(Response, texts)), id=prompt)


def pairs(count: int) -> list[Group]:
    return [group(f"a{n}", f"b{n}", prompt=str(n)) for n in range(count)]


def labeled(
    folder: Path, judge: Any, data: Any, *, models: Any = None, around: Any = None, **options: Any
) -> Any:
    """What the step makes of these groups. around: of its context."""
    chosen = options if "prompts" in options else options | {"data": data}
    step = JudgePairs(JudgePairs.Options(judge=judge, **chosen))
    step.check(folder)
    return step.run(context(folder, models, data, **(around or {})))


# Labels


# Verdicts: P(first is better), or that in both orders, or why there is none. The labels are pairs
# of the better response and P(it is better).
LABELS = yaml.safe_load("""
- verdicts: [[0.6, 0.5], [0.2, 0], [0.9, 0.4], [0.9, 0.1]]
  labels: [[0, 0.55], [1, 0.9], [0, 0.65]]
  dropped: {unsure: 1}
- verdicts: [[0.6, 0.5], [0.2, 0], [0.9, 0.4]]
  clamp: [0.5, 0.6]
  labels: [[0, 0.55], [0, 0.6]]
  dropped: {unsure: 1}
- verdicts: [0.1, 0.95, 0.55, x]
  clamp: [0.3, 0.6]
  labels: [[1, 0.7], [0, 0.6], [0, 0.55]]
  dropped: {x: 1}
# Of each kind of reason the first one, with its details.
- verdicts: ["HTTP 400: long", 0.8, "HTTP 400: odd"]
  labels: [[0, 0.8]]
  dropped: {"HTTP 400: long": 2}
""")


def verdict(said: Any) -> Any:
    if isinstance(said, str):
        return Verdict(None, reason=said)
    return Verdict(sum(said) / 2, tuple(said)) if isinstance(said, list) else said


@pytest.mark.parametrize("row", LABELS)
def test_which_labels_become_of_verdicts(row: dict[str, Any], tmp_path: Path) -> None:
    verdicts, labels, dropped = row["verdicts"], row["labels"], row["dropped"]
    judge = in_turn(*map(verdict, verdicts))
    artifact = labeled(tmp_path, judge, pairs(len(verdicts)), clamp=row.get("clamp"))
    found = [pair for each in artifact.groups for pair in each.pairs]
    assert [(p.better, p.worse) for p in found] == [(better, 1 - better) for better, _ in labels]
    assert [p.p for p in found] == pytest.approx([p for _, p in labels])
    facts = artifact.summary
    assert (facts["n"], facts["labeled"]) == (len(verdicts), len(labels))
    assert facts["dropped"] == dropped
    assert all(reason in artifact.report.text(200) for reason in dropped)


def test_all_different_pairs_of_a_group_are_asked_for(tmp_path: Path) -> None:
    data = [group(*"abcd"), group("b", "a"), group("e", "e"), group("alone"), group()]
    artifact = labeled(tmp_path, component(Told, BY_TEXT), data)
    four, two = ([(p.better, p.worse, p.p) for p in each.pairs] for each in artifact.groups)
    six = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    assert four == [(*each, 0.8) for each in six] and two == [(1, 0, 0.8)]
    assert artifact.summary["n"] == 8
    assert artifact.summary["dropped"] == {"identical responses": 1}


# Judges that are none


def test_a_judge_of_positions_decides_no_pair(tmp_path: Path) -> None:
    """Up to the noise of other batches."""
    judge = component(Told, Script(lambda item, rubric: Verdict(0.500004, (0.9, 0.100008))))
    with pytest.raises(RunFailed) as caught:
        labeled(tmp_path, judge, [group(*"abcd")])
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["judge_pairs: judge 'x': no pair was labeled", "0 of 6 pairs labeled"]
    assert "the order of the answers decides 100%" in lines[2]
    assert lines[3] == "6 of 6 pairs dropped: unsure" and lines[-1].startswith("help: ask another")
    # As a reward, all responses are exactly equal, so that online DPO forms no pair.
    assert scored(tmp_path, judge, group(*"abcd")) == [0.0] * 4


def test_nothing_learns_from_a_judge_of_places_with_soft_labels(tmp_path: Path) -> None:
    """In a real run, DPO learned from two of 40 pairs. A few pairs say too little to stop it."""
    leans = [Verdict(0.55, (0.9, 0.2))] * 20
    with pytest.raises(RunFailed, match=r"(?s)`no_judge: warn` learns anyway.*are useless"):
        labeled(tmp_path, in_turn(*leans), pairs(20))
    for count, more in ((20, {"no_judge": "warn"}), (3, {})):
        artifact = labeled(tmp_path, in_turn(*leans), pairs(count), **more)
        assert artifact.summary["labeled"] == count
        assert "decides 100% [" in artifact.report.text(200)


# What is sampled


class Answers(ByRole):
    """A policy that answers `a` and `b`, and remembers how it was asked."""

    def sample(self, role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        self.asked.append((role, seed, sampling))
        answers = (Response(f"{role} a"), Response(f"{role} b", truncated=True))
        return [Group(each.prompt, answers) for each in prompts]


def test_responses_are_sampled_as_asked(tmp_path: Path) -> None:
    def chunks(name: str, rows: Sequence[Any], f: Any) -> list[Any]:
        return [*f(rows[:3]), *f(rows[3:])]

    models = Answers(asked=[])
    asked: dict[str, Any] = {"stop": ["\n"], "top_p": 0.9, "top_k": 2, "min_new_tokens": 1}
    options = {"prompts": "p", "policy": "sft", "sampling": Sampling(**asked), "models": models}
    prompts = [group(prompt=text) for text in "123123"]
    for seed in (7, 8):
        around = {"map": chunks, "seed": seed}
        judge = component(Told, BY_TEXT)
        artifact = labeled(tmp_path, judge, prompts, around=around, **options)
    answers = (Response("sft a", source="sft"), Response("sft b", source="sft", truncated=True))
    for each, prompt in zip(artifact.groups, prompts, strict=True):
        assert each.responses == answers and each.prompt == prompt.prompt
        assert [pair.better for pair in each.pairs] == [0]
    # Chunks have random streams of their own, in each run.
    assert len({seed for _, seed, _ in models.asked}) == 4
    role, _, sampling = models.asked[0]
    assert role == "sft"
    plain = {"samples_per_prompt": 2, "max_new_tokens": 128, "temperature": 1.0}
    assert sampling == {**plain, **asked}


REFUSED_OPTIONS = yaml.safe_load("""
- [{}, "either `data`"]
- [{data: d, prompts: p, policy: sft}, "either `data`"]
- [{prompts: p}, "either `data`"]
- [{data: d, policy: sft}, "either `data`"]
- [{data: d, samples_per_prompt: 2}, leave samples_per_prompt out]
- [{data: d, principles_per_pair: 2}, needs a 'constitution']
- [{data: d, clamp: [0.6, 0.9]}, clamp.*must be a range of probabilities around 0.5]
- [{data: d, clamp: [0.1, 0.45]}, clamp.*must be a range of probabilities around 0.5]
- [{data: d, clamp: [-0.1, 0.6]}, clamp.*must be a range of probabilities around 0.5]
- [{data: d, clamp: [0.4, 1.6]}, clamp.*must be a range of probabilities around 0.5]
""")


@pytest.mark.parametrize(("options", "message"), REFUSED_OPTIONS)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgePairs.Options(judge="local_judge", **options)


# Principles


BY = tuple(Principle(name=name, compare=f"By {name}.") for name in ("one", "two", "three"))
SILENT = Principle(name="silent", critique="c", revise="r")
P = {"By one.": 0.9, "By two.": 0.6, "By three.": 0.3}  # that the text is better which sorts first


def by_principles(folder: Path, rows: Any, silent: Sequence[str] = (), **options: Any) -> Any:
    """What the step makes, and what was asked by each principle."""

    def compare(item: Any, rubric: str) -> Any:
        p = P[rubric] if item[1] < item[2] else 1 - P[rubric]
        return REFUSED if rubric in silent else p

    script = Script(compare)
    options = {"constitution": (*BY, SILENT), "principles_per_pair": 3, **options}
    artifact = labeled(folder, component(Told, script), rows, **options)
    return artifact, {rubric: items for rubric, items in script.asked}


def test_the_label_is_the_mean_of_probabilities_that_is_clamped(tmp_path: Path) -> None:
    """(0.9 + 0.6 + 0.3) / 3 is 0.6; the mean of log-odds is 0.64, and that of clamped ones a tie."""
    artifact, asked = by_principles(tmp_path, pairs(4))
    assert [each.pairs[0].p for each in artifact.groups] == pytest.approx([0.6] * 4)
    # A judge gets what is alike at once.
    assert {rubric: len(items) for rubric, items in asked.items()} == dict.fromkeys(P, 4)
    (clamped,) = by_principles(tmp_path, pairs(1), clamp=(0.4, 0.55))[0].groups
    assert clamped.pairs[0].p == pytest.approx(0.55)
    # One without a verdict does not count.
    (two,) = by_principles(tmp_path, pairs(1), silent=["By one."])[0].groups
    assert (two.pairs[0].better, two.pairs[0].p) == (1, pytest.approx(1 - (0.6 + 0.3) / 2))
    with pytest.raises(RunFailed, match="2 of 2 pairs dropped: the judge refused: no"):
        by_principles(tmp_path, pairs(2), silent=list(P))


def test_each_pair_has_principles_of_its_own(tmp_path: Path) -> None:
    artifact, asked = by_principles(tmp_path, pairs(60), principles_per_pair=1)
    counts = {rubric: len(items) for rubric, items in asked.items()}
    assert sum(counts.values()) == 60 and set(counts) == set(P) and min(counts.values()) > 8
    better = Counter(each.pairs[0].better for each in artifact.groups)
    assert better == {0: counts["By one."] + counts["By two."], 1: counts["By three."]}
    two = by_principles(tmp_path, pairs(60), principles_per_pair=2)[1]
    of_pair = Counter(first for items in two.values() for _, first, _ in items)
    assert len(of_pair) == 60 and set(of_pair.values()) == {2}
    # The draw depends on the texts, and not on their order or other rows.
    turned = [Group(g.prompt, g.responses[::-1], id=g.id) for g in reversed(pairs(20))]
    again = by_principles(tmp_path, turned, principles_per_pair=1)[1]
    for rubric, items in again.items():
        assert {item[2] for item in items} == {x[1] for x in asked[rubric] if int(x[1][1:]) < 20}


# What cannot be judged by principles: the judge, the constitution, principles_per_pair, and why.
UNABLE: list[tuple[Any, Any, int, str]] = [
    (RewardJudge, BY, 1, "own measure"),
    (LocalJudge, (SILENT,), 1, "is 1, but 0 principles of the constitution have 'compare'"),
    (LocalJudge, (*BY, SILENT), 4, "is 4, but 3 principles of the constitution have 'compare'"),
]


@pytest.mark.parametrize(("kind", "constitution", "count", "message"), UNABLE)
def test_what_cannot_be_judged_stops_before_the_run(
    kind: Any, constitution: Any, count: int, message: str
) -> None:
    options = {"constitution": constitution, "principles_per_pair": count}
    step = JudgePairs(JudgePairs.Options(judge=component(kind), data="x", **options))
    with pytest.raises(RunFailed, match=message):
        step.check(Path())


# The reward


def scored(folder: Path, judge: Any, *groups: Group) -> Any:
    reward = RLAIF(RLAIF.Options.model_construct(judge=judge))
    reward.prepare(context(folder))
    return reward.score(groups)


# One letter for each response, P(first is better) of each pair or why it has none, and the mean win
# rates minus 0.5.
WIN_RATES = yaml.safe_load("""
- [abc, [0.9, 0.8, 0.6], [0.35, -0.15, -0.2]]
- [abc, [0.9, x, x], [0.4, -0.4, null]]
- [ab, [x], [null, null]]
- [aba, [0.9, 0.9], [0.2, 0.0, -0.2]]    # a against a is 0.5, and nobody is asked
- [aa, [], [0.0, 0.0]]
""")


@pytest.mark.parametrize(("texts", "verdicts", "expected"), WIN_RATES)
def test_a_reward_is_the_mean_win_rate_in_the_group(
    texts: str, verdicts: Any, expected: Any, tmp_path: Path
) -> None:
    judge = in_turn(*map(verdict, verdicts), 0.7)
    found = scored(tmp_path, judge, group(*texts), group("x", "y"))
    wanted = [*expected, 0.7 - 0.5, 0.3 - 0.5]  # the next group's
    assert found == pytest.approx(wanted)


def test_one_response_has_no_opponent_in_its_group(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="samples_per_prompt"):
        scored(tmp_path, in_turn(), group("a"))
