"""The step `judge_pairs` and the reward `rlaif`: which pairs are asked for, by which principles, and what
becomes of the verdicts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from by_role import ByRole
from pydantic import ValidationError

from alignkit import Group, Pair, Response, RunFailed, Verdict
from alignkit.sampling import Sampling
from alignkit_plugins.ai_feedback.constitution import Principle
from alignkit_plugins.ai_feedback.judge import LocalJudge
from alignkit_plugins.ai_feedback.panel import RewardJudge
from alignkit_plugins.ai_feedback.rlaif import RLAIF, JudgePairs
from tests.ai_feedback.judge_server import REFUSED, Script, Told, component, context, in_turn

GOLDEN = Path(__file__).parents[1] / "golden" / "rlaif.json"
BY_TEXT = Script(compare=lambda item, rubric: 0.8 if item[1] < item[2] else 0.2)


def group(*texts: str, prompt: str = "which") -> Group:
    return Group(({"role": "user", "content": prompt},), tuple(map(Response, texts)), id=prompt)


def pairs(count: int) -> list[Group]:
    return [group(f"a{n}", f"b{n}", prompt=str(n)) for n in range(count)]


def labeled(
    folder: Path, judge: Any, data: Any, *, models: Any = None, map: Any = None, **options: Any
) -> Any:
    """What the step makes of these groups."""
    chosen = options if "prompts" in options else options | {"data": data}
    step = JudgePairs(JudgePairs.Options(judge=judge, **chosen))
    step.check(folder)
    more = {"map": map} if map else {}
    return step.run(context(folder, models, data, **more))


# Labels


TWO_ORDERS = (
    *(Verdict(0.55, (0.6, 0.5)), Verdict(0.1, (0.2, 0.0)), Verdict(0.65, (0.9, 0.4))),
    Verdict(0.5, (0.9, 0.1)),
)
LABELS: list[tuple[Sequence[Any], Any, list[Pair], dict[str, int]]] = [
    # verdicts, clamp, pairs, why others are dropped
    (TWO_ORDERS, None, [Pair(0, 1, 0.55), Pair(1, 0, 0.9), Pair(0, 1, 0.65)], {"unsure": 1}),
    (TWO_ORDERS, (0.5, 0.6), [Pair(0, 1, 0.55), Pair(0, 1, 0.6)], {"unsure": 2}),
    (
        [0.1, 0.95, 0.55, Verdict(None, reason="x")],
        (0.3, 0.6),
        [Pair(1, 0, 0.7), Pair(0, 1, 0.6), Pair(0, 1, 0.55)],
        {"x": 1},
    ),
    (  # of each kind the first one, with its details
        [Verdict(None, reason="HTTP 400: long"), 0.8, Verdict(None, reason="HTTP 400: odd")],
        None,
        [Pair(0, 1, 0.8)],
        {"HTTP 400: long": 2},
    ),
]


@pytest.mark.parametrize(("verdicts", "clamp", "expected", "dropped"), LABELS)
def test_which_labels_become_of_verdicts(
    verdicts: Any, clamp: Any, expected: Any, dropped: Any, tmp_path: Path
) -> None:
    artifact = labeled(tmp_path, in_turn(*verdicts), pairs(len(verdicts)), clamp=clamp)
    found = [pair for each in artifact.groups for pair in each.pairs]
    assert [(p.better, p.worse) for p in found] == [(p.better, p.worse) for p in expected]
    assert [p.p for p in found] == pytest.approx([p.p for p in expected])
    facts = artifact.summary
    assert (facts["n"], facts["labeled"]) == (len(verdicts), len(expected))
    assert facts["dropped"] == dropped
    assert all(reason in artifact.report.text(200) for reason in dropped)


def test_all_different_pairs_of_a_group_are_asked_for(tmp_path: Path) -> None:
    data = [group(*"abcd"), group("b", "a"), group("e", "e"), group("alone"), group()]
    artifact = labeled(tmp_path, component(Told, BY_TEXT), data)
    four, two = artifact.groups
    assert [(p.better, p.worse) for p in four.pairs] == [
        *((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    ]
    assert [(p.better, p.worse, p.p) for p in two.pairs] == [(1, 0, 0.8)]
    assert artifact.summary["dropped"] == {"identical responses": 1}


@pytest.mark.parametrize(
    ("case_id", "p", "clamped"),
    [("soft_labels", "p_a", "cai_clamped_40_60"), ("principle_ensemble", "p_a", "clamped")],
)
def test_labels_match_the_golden_numbers(
    case_id: str, p: str, clamped: str, tmp_path: Path
) -> None:
    cases = json.loads(GOLDEN.read_text())["cases"]
    (expected,) = (case["expected"] for case in cases if case["id"] == case_id)
    decided = [n for n, x in enumerate(expected[p]) if x != 0.5]  # a tie is no pair
    for clamp, name in ((None, p), ((0.4, 0.6), clamped)):
        data = pairs(len(expected[p]))
        found = labeled(tmp_path, in_turn(*expected[p]), data, clamp=clamp, no_judge="warn").groups
        assert [int(each.id) for each in found] == decided
        labels = [each.pairs[0] for each in found]
        assert all(pair.p > 0.5 for pair in labels)
        first = [pair.p if pair.better == 0 else 1 - pair.p for pair in labels]
        assert first == pytest.approx([expected[name][n] for n in decided])


# Judges that are none


class First(ByRole):
    """A model of positions, up to the noise of other batches in nats."""

    def next_token_logprobs(self, role: str, prompts: Any, *asked: Any, **more: Any) -> Any:
        rows = torch.tensor([[0.9, 0.1]] * len(prompts)).log()
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        return rows + self.noise * noise


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_a_judge_of_positions_decides_no_pair(noise: float, tmp_path: Path) -> None:
    models, judge = First(noise=noise), component(LocalJudge, LocalJudge.Options())
    with pytest.raises(RunFailed) as caught:
        labeled(tmp_path, judge, [group(*"abcd")], models=models)
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["judge_pairs: judge 'x': no pair was labeled", "0 of 6 pairs labeled"]
    assert "the order of the answers decides 100%" in lines[2]
    assert lines[3] == "6 of 6 pairs dropped: unsure" and lines[-1].startswith("help: ask another")
    # As a reward, all responses are exactly equal, so that online DPO forms no pair.
    assert scored(tmp_path, judge, group(*"abcd"), models=models) == [0.0] * 4


def test_nothing_learns_from_a_judge_of_places_with_soft_labels(tmp_path: Path) -> None:
    """In a real run, DPO learned from two of 40 pairs. A few pairs say too little to stop it."""
    leans = [Verdict(0.55, (0.9, 0.2))] * 20
    with pytest.raises(RunFailed, match=r"(?s)`no_judge: warn` learns anyway.*are of no use"):
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
        answers = tuple(Response(f"{role} says {text}") for text in "ab")
        return [Group(each.prompt, answers) for each in prompts]


def test_responses_are_sampled_as_asked_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    models, kept, script = Answers(asked=[]), dict[str, Any](), Script(BY_TEXT.compare)

    def stored(name: str, rows: Sequence[Any], f: Any) -> list[Any]:
        """Rows and results are plain JSON, in chunks of three, and kept by content."""
        for start in range(0, len(rows), 3):
            keys = [json.dumps([name, row]) for row in rows[start : start + 3]]
            if new := [key for key in dict.fromkeys(keys) if key not in kept]:
                results = f([json.loads(key)[1] for key in new])
                kept.update(zip(new, map(json.dumps, results), strict=True))
        return [json.loads(kept[json.dumps([name, row])]) for row in rows]

    asked: dict[str, Any] = {"stop": ["\n"], "top_p": 0.9, "top_k": 2, "min_new_tokens": 1}
    options = {"prompts": "p", "policy": "sft", "sampling": Sampling(**asked), "map": stored}
    prompts = [group(prompt=text) for text in "1231"]
    first, again = (
        labeled(tmp_path, component(Told, script), prompts, models=models, **options)
        for _ in range(2)
    )
    assert first.groups == again.groups and len(script.asked) == 1
    for each in first.groups:
        assert [(r.text, r.source) for r in each.responses] == [
            *(("sft says a", "sft"), ("sft says b", "sft"))
        ]
        assert [pair.better for pair in each.pairs] == [0]
    (role, seed, sampling), (_, other, _) = models.asked
    assert role == "sft" and seed != other  # chunks have random streams of their own
    plain = {"samples_per_prompt": 2, "max_new_tokens": 128, "temperature": 1.0}
    assert sampling == {**plain, **asked}


PROMPTS = {"prompts": "p", "policy": "sft"}
REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "either `data`"),
    ({"data": "d", **PROMPTS}, "either `data`"),
    ({"prompts": "p"}, "either `data`"),
    ({"data": "d", "policy": "sft"}, "either `data`"),
    ({"data": "d", "samples_per_prompt": 2}, "leave samples_per_prompt out"),
    ({"data": "d", "principles_per_pair": 2}, "needs a 'constitution'"),
    *(
        ({"data": "d", "clamp": clamp}, "clamp.*must be a range of probabilities around 0.5")
        for clamp in ([0.6, 0.9], [0.6, 0.4], [0.1, 0.45], [-0.1, 0.6], [0.4, 1.6])
    ),
]


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
    assert {each.pairs[0].better for each in artifact.groups} == {0}
    # A judge gets what is alike at once.
    assert {rubric: len(items) for rubric, items in asked.items()} == dict.fromkeys(P, 4)
    (clamped,) = by_principles(tmp_path, pairs(1), clamp=(0.4, 0.55))[0].groups
    assert clamped.pairs[0].p == pytest.approx(0.55)


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
    drawn = []
    for rows in (pairs(20), turned):
        asked = by_principles(tmp_path, rows, principles_per_pair=1)[1]
        drawn.append({by: sorted(sorted(item[1:]) for item in asked[by]) for by in asked})
    assert drawn[0] == drawn[1]


def test_a_principle_without_a_verdict_does_not_count(tmp_path: Path) -> None:
    artifact, _ = by_principles(tmp_path, pairs(2), silent=["By one."])
    assert artifact.summary["dropped"] == {}
    assert [each.pairs[0].p for each in artifact.groups] == pytest.approx([1 - (0.6 + 0.3) / 2] * 2)
    with pytest.raises(RunFailed, match="2 of 2 pairs dropped: the judge refused: no"):
        by_principles(tmp_path, pairs(2), silent=list(P))


@pytest.mark.parametrize(
    ("kind", "constitution", "count", "message"),
    [
        (RewardJudge, BY, 1, "own measure"),
        (LocalJudge, (SILENT,), 1, "is 1, but 0 principles of the constitution have 'compare'"),
        (LocalJudge, (*BY, SILENT), 4, "is 4, but 3 principles of the constitution have 'compare'"),
    ],
)
def test_what_cannot_be_judged_stops_before_the_run(
    kind: Any, constitution: Any, count: int, message: str
) -> None:
    options = {"constitution": constitution, "principles_per_pair": count}
    step = JudgePairs(JudgePairs.Options(judge=component(kind), data="x", **options))
    with pytest.raises(RunFailed, match=message):
        step.check(Path())


# The reward


def scored(folder: Path, judge: Any, *groups: Group, models: Any = None) -> Any:
    reward = RLAIF(RLAIF.Options.model_construct(judge=judge))
    reward.prepare(context(folder, models))
    return reward.score(groups)[""]


X = Verdict(None, reason="x")
WIN_RATES: list[tuple[str, list[Any], list[float | None]]] = [
    # one letter for each response, P(first is better) of each pair, mean win rate minus 0.5
    ("abc", [0.9, 0.8, 0.6], [0.85 - 0.5, (0.1 + 0.6) / 2 - 0.5, (0.2 + 0.4) / 2 - 0.5]),
    ("abc", [0.9, X, X], [0.4, -0.4, None]),
    ("ab", [X], [None, None]),
    ("aba", [0.9, 0.9], [0.2, 0.0, -0.2]),  # a against a is 0.5, and nobody is asked
    ("aa", [], [0.0, 0.0]),
]


@pytest.mark.parametrize(("texts", "verdicts", "expected"), WIN_RATES)
def test_a_reward_is_the_mean_win_rate_in_the_group(
    texts: str, verdicts: Any, expected: Any, tmp_path: Path
) -> None:
    found = scored(tmp_path, in_turn(*verdicts, 0.7), group(*texts), group("x", "y"))
    wanted = [*expected, 0.7 - 0.5, 0.3 - 0.5]  # the next group's
    assert [x is None for x in found] == [x is None for x in wanted]
    assert [x or 0.0 for x in found] == pytest.approx([x or 0.0 for x in wanted])


def test_one_response_has_no_opponent_in_its_group(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="samples_per_prompt"):
        scored(tmp_path, in_turn(), group("a"))
