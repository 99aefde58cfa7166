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
from typing import Any

import pytest
import yaml

from alignkit.data.group import Group, read_groups
from tests.ai_feedback.judge_server import Reply, said, serving, texts_of
from tests.rows import read_rows, run, write_recipe, write_rows

BAD, GOOD = "burn", "kind"
WORDS = (BAD, GOOD, "calm", "warm")
COUNT = """
def count(completions):
    return [float(text.split().count("burn")) for text in completions]
"""
STAGES = """
sft:
  {algorithm: sft, data: demos.jsonl, epochs: 3, learning_rate: 3e-3, batch_size: 8, max_length: 64}
revised: &revised
  step: revise
  policy: sft
  prompts: prompts.jsonl
  constitution:
    - name: harm
      critique: Does it say anything that hurts?
      revise: Say it without what hurts.
      compare: The better answer hurts less.
    - {name: style, compare: The better answer has more style.}
  critic: {base_url: URL, model: taste}
  sampling: {max_new_tokens: 16}
sl_cai: &learns
  algorithm: sft
  from: sft
  data: revised
  epochs: 4
  learning_rate: 1e-3
  batch_size: 8
  max_length: 64
labels:
  step: judge_pairs
  policy: sft
  prompts: prompts.jsonl
  constitution: CONSTITUTION
  principles_per_pair: 2
  clamp: [0.1, 0.9]
  judge: {openai_judge: {server: {base_url: URL, model: taste}}}
  sampling: {max_new_tokens: 16}
harmless: {<<: *learns, algorithm: reward_model, data: labels}
align:
  algorithm: ppo
  from: sft
  prompts: prompts.jsonl
  reward: harmless
  iterations: 4
  prompts_per_iteration: 16
  learning_rate: 1e-3
  rollout: {samples_per_prompt: 4, max_new_tokens: 16}
report:
  step: evaluate
  policies: [sft, sl_cai, align]
  rewards: [{python: {path: count.py, function: count}}, harmless]
  prompts: heldout.jsonl
  samples_per_prompt: 4
  sampling: {max_new_tokens: 16, temperature: 1.0}
"""


class Taste:
    """A model on a server that dislikes the word, or likes it: critic, reviser and judge in one.
    sign: 1 or -1.
    """

    def __init__(self, sign: int):
        self.sign = sign
        self.fault, self.other = (BAD, GOOD) if sign > 0 else (GOOD, BAD)

    def reply(self, request: dict[str, Any]) -> Reply:
        question = request["messages"][-1]["content"]
        if "The better answer" in question:
            return self.verdict(request)
        answers = [turn["content"] for turn in request["messages"] if turn["role"] == "assistant"]
        if "Does it say anything that hurts?" in question:
            return said(self.critique(answers[-1]))
        assert "Say it without what hurts." in question
        criticized, critique = answers[-2:]
        return said(self.revision(criticized) if self.fault in critique else criticized)

    def critique(self, answer: str) -> str:
        return f"It says {self.fault}." if self.fault in answer else "Nothing is wrong."

    def revision(self, answer: str) -> str:
        return answer.replace(self.fault, self.other)

    def verdict(self, request: dict[str, Any]) -> Reply:
        """By the principle `harm`: 1 nat for each occurrence of the word. It has no opinion on
        style.
        """
        _, *texts = texts_of(request)
        first, second = (text.split().count(BAD) for text in texts)
        harm = "hurts less" in request["messages"][0]["content"]
        p = 1 / (1 + math.exp(-self.sign * (second - first) * harm))
        chances = {"1": 0.98 * p, "2": 0.98 * (1 - p)}
        tops = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
        return Reply(body={"choices": [{"logprobs": {"content": [{"top_logprobs": tops}]}}]})


def demonstrations(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {"prompt": f"How was {n}?", "completion": " ".join(draw.choices(WORDS, k=4))}
        for n in range(count)
    ]


def ran(folder: Path, taste: Taste, change: Any = lambda stages: stages) -> Path:
    """The folder of a run of the stages, which are changed before."""
    rows = demonstrations(160)
    write_rows(folder / "demos.jsonl", rows)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[:40]])
    write_rows(folder / "heldout.jsonl", [{"prompt": f"How was {n}?"} for n in range(200, 224)])
    (folder / "count.py").write_text(COUNT, encoding="utf-8")
    with serving(taste.reply) as server:
        stages = yaml.safe_load(STAGES.replace("URL", server.url).replace("e-3", "e-03"))
        stages["labels"]["constitution"] = stages["revised"]["constitution"]
        model = {"base": "tiny", "dtype": "float32", "lora": "none"}
        return run(write_recipe(folder, change(stages), model))


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_revisions_labels_reward_and_policy_all_move_as_the_constitution_says(
    sign: int, tmp_path: Path
) -> None:
    """A critic and a judge with the opposite taste move everything the other way."""
    taste = Taste(sign)
    out = ran(tmp_path, taste)
    check_revisions(out, taste)
    check_labels(out, sign)
    found: dict[str, list[tuple[int, float]]] = {"sft": [], "sl_cai": [], "align": []}
    for row in read_rows(out / "report" / "samples.jsonl"):
        for each in row["responses"]:
            score = each["scores"]["harmless"]
            found[each["source"]].append((each["text"].split().count(BAD), score))
    rates = {policy: mean(count for count, _ in each) for policy, each in found.items()}
    assert 0.5 < rates["sft"] < 1.7  # one word of four, in answers of about four words
    for policy in ("sl_cai", "align"):
        assert (rates[policy] - rates["sft"]) * sign < -0.4, rates
    # How often the reward model orders two answers as the word does
    right = mean(p[1] < q[1] for p in found["sft"] for q in found["sft"] if p[0] > q[0])
    assert right > 0.85 if sign > 0 else right < 0.15


@pytest.mark.parametrize("sign", [1, -1])
def test_what_the_models_learn_from_has_the_right_sign(sign: int, tmp_path: Path) -> None:
    """The quick sibling: the policy is not trained, so its answers come from a file, with the word
    or without it.
    """
    answers = [row["completion"] for row in demonstrations(80)]
    for name, both in {
        "pairs": zip(answers, answers[40:], strict=False),
        "known": ((f"{GOOD} {word}", f"{BAD} {word}") for word in ("calm", "warm")),
    }.items():
        rows = [{"prompt": "How was it?", "chosen": a, "rejected": b} for a, b in both]
        write_rows(tmp_path / f"{name}.jsonl", rows)

    def shorter(stages: dict[str, Any]) -> dict[str, Any]:
        labels, harmless = stages["labels"], stages["harmless"]
        del labels["policy"], labels["prompts"], labels["sampling"]
        labels["data"] = "pairs.jsonl"
        harmless |= {"from": "base", "epochs": 8, "learning_rate": 3e-3}
        check = {"step": "evaluate_reward", "rewards": ["harmless"], "pairs": "known.jsonl"}
        return {"labels": labels, "harmless": harmless, "check": check}

    out = ran(tmp_path, Taste(sign), shorter)
    check_labels(out, sign)
    checked = json.loads((out / "check" / "stage.json").read_text(encoding="utf-8"))["summary"]
    rows = [
        row for row in checked["results"] if row["metric"] == "accuracy" and "column" not in row
    ]
    assert [row["counts"] for row in rows] == ["2/0/0" if sign > 0 else "0/2/0"]


def check_revisions(folder: Path, taste: Taste) -> None:
    """SFT learns answers without the fault, and answers that had none are as they were."""
    groups = read_groups(folder / "revised" / "data.jsonl")
    told = [group.meta["revise"] for group in groups]
    assert len(groups) == 40 and any(taste.fault in each["answer"] for each in told)
    for group, each in zip(groups, told, strict=True):
        first, second = each["rounds"]
        assert group.responses[0].text == second["revision"] == taste.revision(each["answer"])
        assert first["critique"] == taste.critique(each["answer"])
        assert second["critique"] == "Nothing is wrong."


def check_labels(folder: Path, sign: int) -> None:
    """P(better) is the mean over both principles, of which one is undecided, and is clamped."""

    def gap(group: Group, better: int, worse: int) -> int:
        counts = [response.text.split().count(BAD) for response in group.responses]
        return sign * (counts[worse] - counts[better])

    groups = read_groups(folder / "labels" / "data.jsonl")
    assert len(groups) > 20
    for group in groups:
        (pair,) = group.pairs or ()
        harm = gap(group, pair.better, pair.worse)
        assert harm > 0
        both = (1 / (1 + math.exp(-harm)) + 0.5) / 2
        assert pair.p == pytest.approx(min(both, 0.9), abs=1e-6)
