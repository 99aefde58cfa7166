"""Constitutional AI from end to end on the tiny model: a scripted critic and judge know one planted
fault.

The policy learns to say "burn" in demonstrations. Under the principle `harm` the critic takes the
word out of an answer, and the judge prefers the answer that says it less often. With the opposite
taste, everything must go the other way.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest
import yaml
from test_rlaif import Reply, Server, completion, shown

from alignkit.cli import main
from alignkit.data.group import read_groups

BAD, GOOD = "burn", "kind"
WORDS = (BAD, GOOD, "calm", "warm")
COUNT = (
    "def count(completions):\n"
    f"    return [float(text.split().count('{BAD}')) for text in completions]\n"
)
PRINCIPLES = [
    {
        "name": "harm",
        "critique": "Does it say anything that hurts?",
        "revise": "Say it without what hurts.",
        "compare": "The better answer hurts less.",
    },
    {"name": "style", "compare": "The better answer has more style."},
]


class Taste:
    """A model on a server that dislikes the word, or likes it: critic, reviser and judge in one.
    sign: 1 or -1.
    """

    def __init__(self, sign: int):
        self.sign = sign
        self.critiques: list[str] = []

    def reply(self, request: dict[str, Any]) -> Reply:
        messages = request["messages"]
        question = messages[-1]["content"]
        if "The better answer" in question:
            return Reply(body=self.verdict(messages))
        answer = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        if "Does it say anything that hurts?" in question:
            self.critiques.append(answer[-1])
            text = f"It says {self.fault}." if self.fault in answer[-1] else "Nothing is wrong."
        else:
            assert "Say it without what hurts." in question
            criticized, critique = answer[-2:]
            text = (
                criticized.replace(self.fault, self.other) if self.fault in critique else criticized
            )
        return Reply(body={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    @property
    def fault(self) -> str:
        return BAD if self.sign > 0 else GOOD

    @property
    def other(self) -> str:
        return GOOD if self.sign > 0 else BAD

    def verdict(self, messages: Any) -> Any:
        """By the principle `harm`: 1 nat for each occurrence of the word. It has no opinion on
        style.
        """
        first, second = (text.split().count(BAD) for text in shown(messages))
        gap = self.sign * (second - first) if "hurts less" in messages[0]["content"] else 0
        p = 1 / (1 + math.exp(-gap))
        return completion(math.log(0.98 * p), math.log(0.98 * (1 - p)))


def demonstrations(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {"prompt": f"How was {n}?", "completion": " ".join(draw.choices(WORDS, k=4))}
        for n in range(count)
    ]


def recipe(url: str) -> dict[str, Any]:
    rl = {"algorithm": "ppo", "from": "sft", "prompts": "prompts.jsonl", "reward": "harmless"}
    return {
        "model": {"base": "tiny", "dtype": "float32", "lora": "none"},
        "stages": {
            "sft": {
                "algorithm": "sft",
                "data": "demos.jsonl",
                "epochs": 3,
                "learning_rate": 3e-3,
                "batch_size": 8,
                "max_length": 64,
            },
            "revised": {
                "step": "revise",
                "policy": "sft",
                "prompts": "prompts.jsonl",
                "constitution": PRINCIPLES,
                "critic": {"base_url": url, "model": "taste"},
                "sampling": {"max_new_tokens": 16},
            },
            "sl_cai": {
                "algorithm": "sft",
                "from": "sft",
                "data": "revised",
                "epochs": 4,
                "learning_rate": 1e-3,
                "batch_size": 8,
                "max_length": 64,
            },
            "labels": {
                "step": "judge_pairs",
                "policy": "sft",
                "prompts": "prompts.jsonl",
                "constitution": PRINCIPLES,
                "principles_per_pair": 2,
                "clamp": [0.1, 0.9],
                "judge": {"openai_judge": {"server": {"base_url": url, "model": "taste"}}},
                "sampling": {"max_new_tokens": 16},
            },
            "harmless": {
                "algorithm": "reward_model",
                "from": "sft",
                "data": "labels",
                "epochs": 4,
                "learning_rate": 1e-3,
                "batch_size": 8,
                "max_length": 64,
            },
            "align": {
                **rl,
                "iterations": 4,
                "prompts_per_iteration": 16,
                "learning_rate": 1e-3,
                "rollout": {"samples_per_prompt": 4, "max_new_tokens": 16},
            },
            "report": {
                "step": "evaluate",
                "policies": ["sft", "sl_cai", "align"],
                "rewards": [{"python": {"path": "count.py", "function": "count"}}, "harmless"],
                "prompts": "heldout.jsonl",
                "samples_per_prompt": 4,
                "sampling": {"max_new_tokens": 16, "temperature": 1.0},
            },
        },
    }


class Outcome(NamedTuple):
    folder: Path
    taste: Taste
    requests: int
    rates: dict[str, float]  # words per answer, by policy
    agreement: float  # how often the reward model orders two answers as the word does


def run(folder: Path, sign: int) -> Outcome:
    rows = demonstrations(160)
    for name, content in {
        "demos": rows,
        "prompts": [{"prompt": row["prompt"]} for row in rows[:40]],
        "heldout": [{"prompt": f"How was {n}?"} for n in range(200, 224)],
    }.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in content), encoding="utf-8"
        )
    (folder / "count.py").write_text(COUNT, encoding="utf-8")
    server, taste = Server(), Taste(sign)
    server.judge = taste.reply
    try:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(server.url)), encoding="utf-8")
        assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    finally:
        server.http.shutdown()
        server.http.server_close()
    samples = [
        json.loads(line) for line in (folder / "run/report/samples.jsonl").read_text().splitlines()
    ]
    answers = [answer for row in samples for answer in row["responses"]]
    rates = {
        policy: mean(a["text"].split().count(BAD) for a in answers if a["source"] == policy)
        for policy in ("sft", "sl_cai", "align")
    }
    scored = [
        (a["text"].split().count(BAD), a["scores"]["harmless"])
        for a in answers
        if a["source"] == "sft"
    ]
    gaps = [(p[0] - q[0], p[1] - q[1]) for p in scored for q in scored if p[0] > q[0]]
    right = mean(gap < 0 for _, gap in gaps)
    return Outcome(folder / "run", taste, len(server.requests), rates, right)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_revisions_labels_reward_and_policy_all_move_as_the_constitution_says(
    sign: int, tmp_path: Path
) -> None:
    """A critic and a judge with the opposite taste move everything the other way."""
    found = run(tmp_path, sign)
    check_revisions(found.folder, found.taste)
    check_labels(found.folder, sign)
    assert (found.agreement > 0.85) if sign > 0 else (found.agreement < 0.15)
    before = found.rates["sft"]
    assert 0.5 < before < 1.7  # one word of four, in answers of about four words
    for policy in ("sl_cai", "align"):
        moved = found.rates[policy] - before
        assert moved * sign < -0.4, found.rates


@pytest.mark.parametrize("sign", [1, -1])
def test_what_the_models_learn_from_has_the_right_sign(sign: int, tmp_path: Path) -> None:
    """The quick sibling: the policy is not trained, so its answers come from a file, with the word
    or without it.
    """
    server, taste = Server(), Taste(sign)
    server.judge = taste.reply
    stages = {name: recipe(server.url)["stages"][name] for name in ("labels", "harmless")}
    answers = [row["completion"] for row in demonstrations(80)]
    rows = [
        {"prompt": "How was it?", "chosen": a, "rejected": b}
        for a, b in zip(answers, answers[40:], strict=False)
    ]
    del stages["labels"]["policy"], stages["labels"]["prompts"], stages["labels"]["sampling"]
    stages["labels"]["data"] = "pairs.jsonl"
    stages["harmless"] |= {"from": "base", "epochs": 8, "learning_rate": 3e-3}
    stages["check"] = {"step": "evaluate_reward", "rewards": ["harmless"], "pairs": "known.jsonl"}
    known = [
        {"prompt": "How was it?", "chosen": f"{GOOD} {w}", "rejected": f"{BAD} {w}"}
        for w in ("calm", "warm")
    ]
    for name, content in {"pairs": rows, "known": known}.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in content), encoding="utf-8"
        )
    model = recipe(server.url)["model"]
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({"model": model, "stages": stages}), encoding="utf-8"
    )
    try:
        assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    finally:
        server.http.shutdown()
        server.http.server_close()
    check_labels(tmp_path / "run", sign)
    checked = json.loads((tmp_path / "run/check/stage.json").read_text(encoding="utf-8"))["summary"]
    (counts,) = (
        row["counts"]
        for row in checked["results"]
        if row["metric"] == "accuracy" and "column" not in row
    )
    assert counts.split("/")[0] == ("2" if sign > 0 else "0")


def check_revisions(folder: Path, taste: Taste) -> None:
    """SFT learns answers without the fault, and answers that had none are as they were."""
    groups = read_groups(folder / "revised" / "data.jsonl")
    assert len(groups) == 40
    for group in groups:
        answer, (first, second) = group.meta["revise"]["answer"], group.meta["revise"]["rounds"]
        (response,) = group.responses
        assert response.text == second["revision"] == answer.replace(taste.fault, taste.other)
        assert first["critique"] == (
            f"It says {taste.fault}." if taste.fault in answer else "Nothing is wrong."
        )
        assert second["critique"] == "Nothing is wrong."
    assert any(taste.fault in group.meta["revise"]["answer"] for group in groups)


def check_labels(folder: Path, sign: int) -> None:
    """P(better) is the mean over both principles, of which one is undecided, and is clamped."""
    groups = read_groups(folder / "labels" / "data.jsonl")
    assert len(groups) > 20
    for group in groups:
        (pair,) = group.pairs or ()
        better, worse = (
            group.responses[i].text.split().count(BAD) for i in (pair.better, pair.worse)
        )
        gap = sign * (worse - better)
        assert gap > 0 and pair.p == pytest.approx(
            min((1 / (1 + math.exp(-gap)) + 0.5) / 2, 0.9), abs=1e-6
        )
