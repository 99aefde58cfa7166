"""The step `sample`: responses, scores, the best of N, and their numbers."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Message
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.io.results import Results
from tests.ai_feedback.judge_server import Reply, serving

REWARD = (
    "def reward(completions):\n"
    "    return [None if len(c) % 5 == 0 else float(len(c)) for c in completions]\n"
)
WHOLE = "def reward(completions):\n    return [float(sum(map(ord, c)) % 97) for c in completions]\n"


def run(
    folder: Path,
    expected: int = 0,
    scores: str = WHOLE,
    stages: Any = None,
    more: tuple[str, ...] = (),
    **keys: Any,
) -> Path:
    texts = [
        *(f"bread {word}" for word in ("is", "good", "old", "new", "bad", "here", "there")),
        *more,
    ]
    write_groups(
        folder / "prompts.jsonl", [Group((Message(role="user", content=text),)) for text in texts]
    )
    (folder / "reward.py").write_text(scores, encoding="utf-8")
    sample = {
        "step": "sample",
        "prompts": "prompts.jsonl",
        "samples_per_prompt": 4,
        "sampling": {"max_new_tokens": 6},
        **keys,
    }
    recipe = {
        "model": {"base": "tiny", "dtype": "float32"},
        "stages": {"answers": sample, **(stages or {})},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == expected
    return folder / "run" / "answers"


PYTHON = {"python": {"path": "reward.py", "function": "reward"}}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    return found


def test_responses_without_a_reward(tmp_path: Path) -> None:
    groups = read_groups(run(tmp_path) / "data.jsonl")
    assert len(groups) == 7 and {len(group.responses) for group in groups} == {4}
    # No stream is used twice
    assert len({r.tokens for group in groups for r in group.responses}) > 20
    assert {r.source for group in groups for r in group.responses} == {"base"}
    assert not any(r.scores for group in groups for r in group.responses)


@pytest.mark.silent_bug(
    "evaluation: best of n",
    "Samples are drawn with replacement, and best of n is too low.",
    "It is the mean over all subsets.",
    "verl-project/verl#7240",
)
def test_the_curve_is_the_mean_best_of_all_subsets(tmp_path: Path) -> None:
    """By enumeration; the bound is log n - (n - 1) / n. A later stage learns from the result."""
    sft = {"algorithm": "sft", "data": "answers", "max_steps": 1}
    folder = run(tmp_path, reward=PYTHON, keep="best", stages={"sft": sft})
    best = read_groups(folder / "data.jsonl")
    facts = summary(folder)
    assert [len(group.responses) for group in best] == [1] * 7 and facts["responses"] == 7
    (tmp_path / "all").mkdir()
    every = read_groups(run(tmp_path / "all", reward=PYTHON) / "data.jsonl")
    rewards = [[r.scores["reward"] or 0.0 for r in group.responses] for group in every]
    assert [group.responses[0].scores["reward"] for group in best] == [
        max(each) for each in rewards
    ]
    for point, n in zip(facts["best_of_n"], (1, 2, 4), strict=True):
        subsets = [[max(chosen) for chosen in combinations(each, n)] for each in rewards]
        wanted = sum(sum(each) / len(each) for each in subsets) / len(subsets)
        assert point["n"] == n and point["reward"] == pytest.approx(wanted)
        assert point["kl_at_most"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert facts["mean_reward"]["mean"] == pytest.approx(facts["best_of_n"][0]["reward"])


def test_a_missing_score_is_counted_and_never_the_best(tmp_path: Path) -> None:
    folder = run(tmp_path, reward=PYTHON, keep="best", scores=REWARD)
    assert all(len(group.responses[0].text) % 5 for group in read_groups(folder / "data.jsonl"))
    assert summary(folder)["unscored"] > 0


def test_prompts_without_room_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, more=("bread is good " * 3000, "bread is old " * 3000))
    facts = summary(folder)
    assert (facts["prompts"], facts["left_out"], facts["responses"]) == (7, 2, 28)
    assert "28 responses to 7 prompts, 2 left out" in capsys.readouterr().out


def test_the_best_needs_a_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, 2, keep="best")
    assert "'keep: best' needs a 'reward' to choose by" in capsys.readouterr().err


def test_stored_responses_are_not_sampled_again(tmp_path: Path) -> None:
    """What a killed run has stored is what the resumed one writes."""
    folder = run(tmp_path)
    before = (folder / "data.jsonl").read_bytes()
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / ".work").mkdir(exist_ok=True)
    folder.resolve().rename(tmp_path / "run" / ".work" / folder.resolve().name)
    Results(folder.parent).begin("answers", record["hash"], record["depends_on"])
    place = folder / "map" / "responses.jsonl"
    kept = place.read_bytes()
    run(tmp_path)
    assert (folder / "data.jsonl").read_bytes() == before and place.read_bytes() == kept


def writes(request: dict[str, Any]) -> Reply:
    """A model on a server: it refuses what is bad, is cut off where nothing is there, and has one
    seed's words.
    """
    asked = request["messages"][-1]["content"]
    words = {"bread bad": None, "bread there": "so it goes and"}.get(
        asked, f"{asked}? By {request.get('seed')}."
    )
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    end = "length" if asked == "bread there" else "stop"
    choice = {
        "message": {"content": words, **({} if words else {"refusal": "no"})},
        "finish_reason": end,
    }
    return Reply(body={"model": "m-2026", "choices": [choice], "usage": usage})


def test_a_model_on_a_server_writes_demonstrations_with_a_bill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row says who wrote it, and SFT learns it. What the server has said is not asked
    again.
    """
    sft = {"algorithm": "sft", "data": {"stage": "answers", "limit": 3}, "max_steps": 1}
    with serving(writes) as server:
        policy = {
            "base_url": server.url,
            "model": "m",
            "request": {"temperature": 0.3},
        }
        keys: dict[str, Any] = {
            "policy": policy,
            "samples_per_prompt": 1,
            "sampling": {"temperature": 0.7, "max_new_tokens": 6},
            "stages": {"sft": sft},
        }
        folder = run(tmp_path, **keys)
        groups, facts = read_groups(folder / "data.jsonl"), summary(folder)
        assert [group.responses[0].text for group in groups][:2] == [
            "bread is? By None.",
            "bread good? By None.",
        ]
        assert [g.responses[0].truncated for g in groups] == [False] * 5 + [True] and len(
            server.requests
        ) == 7
        assert {r.source for group in groups for r in group.responses} == {"m"}
        made = groups[0].meta["writer"]
        assert (made["model"], made["address"]) == ("m", server.url)
        assert (made["temperature"], made["max_new_tokens"]) == (0.3, 6)  # as the server was told
        assert facts["bill"]["tokens"] == 7 * 14
        assert facts["bill"]["refused"] == {"the server refused": 1} and facts["left_out"] == 1
        out = (folder / "report.txt").read_text()
        assert "7 questions, 98 tokens" in out and "cut off at max_new_tokens: 1" in out
        assert "no response: the server refused: 1" in out
        before = (folder / "data.jsonl").read_bytes()
        shutil.rmtree(folder.resolve())
        run(tmp_path, **keys)
        assert len(server.requests) == 7 and (folder / "data.jsonl").read_bytes() == before


def test_what_servers_differ_in_is_written_as_this_one_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"base_url": "http://localhost:1/v1", "model": "m"}
    run(tmp_path, 2, policy=policy, sampling={"top_k": 3})
    assert (
        "servers differ in 'top_k'; write it as this one takes it, in its 'request'"
        in capsys.readouterr().err
    )
    run(tmp_path, 2, policy={**policy, "api_key_env": "NO_SUCH_KEY"})
    assert "the environment variable NO_SUCH_KEY is not set" in capsys.readouterr().err
