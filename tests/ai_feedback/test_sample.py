"""The step `sample`: responses, scores, the best of N, and their numbers."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.data.group import read_groups
from alignkit.io.results import Results
from alignkit_plugins.ai_feedback.sample import Sample
from alignkit_plugins.text.rows import prompt_to_row
from tests import rows
from tests.ai_feedback.judge_server import Reply, context, serving
from tests.by_role import ByRole

SCORES = """
def whole(completions):
    return [float(sum(map(ord, c)) % 97) for c in completions]

def gaps(completions):
    return [None if len(c) % 5 == 0 else float(len(c)) for c in completions]
"""
TEXTS = [f"bread {word}" for word in ("is", "good", "old", "new", "bad", "here", "there")]
LONG = ["bread is good " * 3000, "bread is old " * 3000]


def run(
    folder: Path, code: int = 0, stages: Any = None, more: Any = (), reward: str = "", **keys: Any
) -> Path:
    """The folder of the step `answers`. reward: a function of SCORES."""
    rows.write_rows(folder / "prompts.jsonl", rows.prompts([*TEXTS, *more]))
    (folder / "reward.py").write_text(SCORES, encoding="utf-8")
    if reward:
        keys["reward"] = {"python": {"path": "reward.py", "function": reward}}
    own = {"samples_per_prompt": 4, "sampling": {"max_new_tokens": 6}}
    step = {"step": "sample", "prompts": "prompts.jsonl", **own, **keys}
    recipe = rows.write_recipe(folder, {"answers": step, **(stages or {})})
    return rows.run(recipe, code=code) / "answers"


def summary(folder: Path) -> dict[str, Any]:
    return dict(rows.read_json(folder / "stage.json")["summary"])


@pytest.mark.silent_bug(
    "evaluation: best of n",
    "Samples are drawn with replacement, and best of n is too low.",
    "It is the mean over all subsets.",
    "verl-project/verl#7240",
)
def test_the_curve_is_the_mean_best_of_all_subsets(tmp_path: Path) -> None:
    """By enumeration; the bound is log n - (n - 1) / n. A later stage learns from the result."""
    sft = {"algorithm": "sft", "data": "answers", "max_steps": 1}
    folder = run(tmp_path, stages={"sft": sft}, reward="whole", keep="best")
    best, facts = read_groups(folder / "data.jsonl"), summary(folder)
    (tmp_path / "all").mkdir()
    every = read_groups(run(tmp_path / "all", reward="whole") / "data.jsonl")
    # No stream is used twice
    assert len({r.tokens for group in every for r in group.responses}) > 20
    assert {r.source for group in every for r in group.responses} == {"base"}
    rewards = [[r.scores["reward"] or 0.0 for r in group.responses] for group in every]
    kept = [[r.scores["reward"] for r in group.responses] for group in best]
    assert kept == [[max(each)] for each in rewards]
    for point, n in zip(facts["best_of_n"], (1, 2, 4), strict=True):
        means = [mean(max(chosen) for chosen in combinations(each, n)) for each in rewards]
        assert point["n"] == n and point["reward"] == pytest.approx(mean(means))
        assert point["kl_at_most"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert facts["mean_reward"]["mean"] == pytest.approx(facts["best_of_n"][0]["reward"])


def test_a_missing_score_is_never_the_best_and_a_prompt_without_room_is_counted(
    tmp_path: Path,
) -> None:
    folder = run(tmp_path, reward="gaps", keep="best", more=LONG)
    assert all(len(group.responses[0].text) % 5 for group in read_groups(folder / "data.jsonl"))
    facts = summary(folder)
    (tmp_path / "all").mkdir()
    every = read_groups(run(tmp_path / "all", reward="gaps") / "data.jsonl")
    silent = [r for group in every for r in group.responses if len(r.text) % 5 == 0]
    assert facts["unscored"] == len(silent) > 0 and facts["left_out"] == 2
    assert "2 left out" in (folder / "report.txt").read_text()


def test_stored_responses_are_not_sampled_again(tmp_path: Path) -> None:
    """What a killed run has stored is what the resumed one writes; without a reward nothing is
    scored.
    """
    folder = run(tmp_path)
    before = (folder / "data.jsonl").read_bytes()
    assert b'"scores"' not in before
    record = rows.read_json(folder / "stage.json")
    (tmp_path / "run" / ".work").mkdir(exist_ok=True)
    folder.resolve().rename(tmp_path / "run" / ".work" / folder.resolve().name)
    Results(folder.parent).begin("answers", record["hash"], record["depends_on"])
    place = folder / "map" / "responses.jsonl"
    kept = place.read_bytes()
    run(tmp_path)
    assert (folder / "data.jsonl").read_bytes() == before and place.read_bytes() == kept


def test_chunks_of_prompts_have_random_numbers_of_their_own(tmp_path: Path) -> None:
    seeds = set[int]()

    def sample(role: str, prompts: Any, *, seed: int, **sampling: Any) -> list[Group]:
        seeds.add(seed)
        return [replace(prompt, responses=(Response("good"),)) for prompt in prompts]

    step = Sample(Sample.Options.model_validate({"prompts": "p", "policy": "sft"}))
    around = context(tmp_path, ByRole(sample=sample))
    (group,) = step.sampled(around, [Group((rows.user("old"),))])
    assert group.responses[0].source == "sft"
    seeds.clear()
    respond = step.mapper("responses", around)
    for place in range(3):
        respond([prompt_to_row(place, Group((rows.user("bread"),)))])
    assert len(seeds) == 3


def writes(request: dict[str, Any]) -> Reply:
    """A model on a server: it refuses what is bad, is cut off where nothing is there, and has one
    seed's words.
    """
    asked = request["messages"][-1]["content"]
    message: dict[str, Any] = {"content": f"{asked}? By {request.get('seed')}."}
    end = "stop"
    if asked == "bread bad":
        message = {"content": None, "refusal": "no"}
    if asked == "bread there":
        message, end = {"content": "so it goes and"}, "length"
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    choices = [{"message": message, "finish_reason": end}]
    return Reply(body={"model": "m-2026", "choices": choices, "usage": usage})


def test_a_model_on_a_server_writes_demonstrations_with_a_bill(tmp_path: Path) -> None:
    """Every row says who wrote it, and SFT learns it. What the server has said is not asked
    again.
    """
    sft = {"algorithm": "sft", "data": {"stage": "answers", "limit": 3}, "max_steps": 1}
    with serving(writes) as server:
        policy = {"base_url": server.url, "model": "m", "request": {"temperature": 0.3}}
        keys: dict[str, Any] = {"policy": policy, "samples_per_prompt": 1, "stages": {"sft": sft}}
        keys["sampling"] = {"temperature": 0.7, "max_new_tokens": 6}
        folder = run(tmp_path, **keys)
        groups, facts = read_groups(folder / "data.jsonl"), summary(folder)
        texts = [group.responses[0].text for group in groups]
        assert texts[:2] == ["bread is? By None.", "bread good? By None."]
        assert [g.responses[0].truncated for g in groups] == [False] * 5 + [True]
        assert {r.source for group in groups for r in group.responses} == {"m"}
        made = groups[0].meta["writer"]
        assert (made["model"], made["address"]) == ("m", server.url)
        assert (made["temperature"], made["max_new_tokens"]) == (0.3, 6)  # as the server was told
        bill = facts["bill"]
        assert (bill["tokens"], bill["refused"]) == (98, {"the server refused": 1})
        out = (folder / "report.txt").read_text()
        assert "7 questions, 98 tokens" in out and "cut off at max_new_tokens: 1" in out
        assert "no text, the server refused: 1" in out and facts["left_out"] == 1
        before = (folder / "data.jsonl").read_bytes()
        shutil.rmtree(folder.resolve())
        run(tmp_path, **keys)
        assert len(server.requests) == 7 and (folder / "data.jsonl").read_bytes() == before
        (tmp_path / "two").mkdir()
        folder = run(tmp_path / "two", policy=policy, samples_per_prompt=2)
        for group in read_groups(folder / "data.jsonl")[:5]:
            (first, _), (second, _) = (r.text.split("?") for r in group.responses)
            assert first == second == group.prompt[-1]["content"]


SERVER = {"base_url": "http://localhost:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep": "best"}, "'keep: best' needs a 'reward'"),
        ({"policy": SERVER, "sampling": {"top_k": 3}}, "servers differ in 'top_k'"),
        ({"policy": {**SERVER, "api_key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set"),
    ],
)
def test_mistakes(keys: Any, message: str, tmp_path: Path, said: rows.Said) -> None:
    run(tmp_path, 2, **keys)
    assert message in said()
