"""`alignkit evaluate FILE` scores answers, and `alignkit chat --prompts FILE` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import read_groups, write_groups
from alignkit.evaluation import statistics


@pytest.fixture(autouse=True)
def _here(first_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first_run.parent)


def call(*words: object) -> int:
    return main([str(word) for word in words])


def said(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[dict[str, Any], str]:
    capfd.readouterr()
    assert call(*words, "--json") == 0, capfd.readouterr().err
    out, err = capfd.readouterr()
    return json.loads(out)["result"], err


def test_scores_are_those_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewards = ["--reward", "run/liked", "--reward", "{length: {unit: characters}}"]
    found, _ = said(capfd, "evaluate", "pairs.jsonl", *rewards, "--out", tmp_path / "scores.jsonl")
    step = {
        "step": "evaluate_reward",
        "pairs": str(Path("pairs.jsonl").resolve()),
        "rewards": [
            {"folder": str(Path("run/liked/adapter").resolve())},
            {"length": {"unit": "characters"}},
        ],
    }
    model = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["model"]
    model["chat_template"] = str(Path("words.jinja").resolve())
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"model": model, "stages": {"rated": step}}), encoding="utf-8"
    )
    assert call("run", tmp_path / "r.yaml", "--out", tmp_path / "out") == 0
    rated = json.loads(
        (tmp_path / "out" / "rated" / "reward_evaluation.json").read_text(encoding="utf-8")
    )
    ours, theirs = (
        read_groups(tmp_path / "scores.jsonl"),
        read_groups(tmp_path / "out" / "rated" / "samples.jsonl"),
    )
    scores = [[response.scores for response in group.responses] for group in ours]
    assert scores == [[response.scores for response in group.responses] for group in theirs]
    accuracy = {
        row["policy"]: row["estimate"]
        for row in rated["results"]
        if row["metric"] == "accuracy" and "column" not in row
    }
    for name in ("run/liked", "length"):
        assert found["rewards"][name]["pairs_right"]["accuracy"] == accuracy[name]
        means = [statistics.mean([one[name] for one in group]) for group in scores]
        assert found["rewards"][name]["mean"] == {**statistics.estimate(means), "n": 3}
    assert found["rewards"]["length"]["mean"]["mean"] == 6.0  # of "good bread" and "no"
    right = found["rewards"]["length"]["pairs_right"]
    assert right["accuracy"]["mean"] == 1 and right["pairs"] == found["examples"] == 3


def test_rows_go_to_stdout_and_the_summary_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert (
        call("evaluate", "pairs.jsonl", "--reward", "{length: {unit: characters}}", "--limit", 2)
        == 0
    )
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [[response["scores"]["length"] for response in row["responses"]] for row in rows] == [
        [10.0, 2.0]
    ] * 2
    assert err.splitlines()[-2:] == [
        "examples: 2",
        "length: mean 6.00 of 2 examples; pairs right 100% [29, 100] of 2",
    ]


def test_answers_are_checked_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "1 + 1?", "completion": text, "answer": "2"}
        for text in ("2", "3", "It is 2.", "2")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert (
        call(
            "evaluate",
            tmp_path / "a.jsonl",
            "--reward",
            "exact_match",
            "--out",
            tmp_path / "s.jsonl",
        )
        == 0
    )
    out, _ = capsys.readouterr()
    mean = statistics.rate([1.0, 0.0, 0.0, 1.0], 1)
    assert out.splitlines() == [
        "examples: 4",
        f"exact_match: mean {statistics.shown(mean)} of 4 examples",
    ]
    assert [
        row.responses[0].scores["exact_match"] for row in read_groups(tmp_path / "s.jsonl")
    ] == [1, 0, 0, 1]


def test_a_reward_that_needs_a_model_gets_none_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "pairs.jsonl", "--reward", "{rlaif: {judge: local_judge}}") != 0
    assert "no-model-is-named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["run/sft", "--reward", "length"],
            2,
            "run/sft needs prompts to answer\n  help: add --prompts FILE",
        ),
        (
            ["a.jsonl", "b.jsonl", "--reward", "length"],
            2,
            "one file of answers is scored by rewards",
        ),
        (
            ["pairs.jsonl"],
            2,
            "nothing scores the answers\n  help: add --reward REWARD, such as RUN/helpful",
        ),
        (
            ["run/sft", "--prompts", "prompts.jsonl"],
            2,
            "nothing says which answers are better\n  help: add --reward",
        ),
        (["nosuch.jsonl", "--reward", "length"], 2, "no such file"),
        (
            ["bare.jsonl", "--reward", "length"],
            4,
            "none of 1 examples has a response\nhelp: a policy answers prompts",
        ),
        (
            ["pairs.jsonl", "--reward", "length", "--out", "pairs.jsonl"],
            2,
            "in a new file",
        ),
        (["pairs.jsonl", "--reward", "lenght"], 2, "did you mean 'length'"),
    ],
)
def test_mistakes(
    words: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bare.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    assert call("evaluate", *words) == code
    assert expected in capsys.readouterr().err


def test_a_file_of_prompts_is_answered_as_in_a_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    asked = ["run/sft", "run/online"]
    found, err = said(
        capfd, "chat", *asked, "--prompts", "prompts.jsonl", "--out", out, "--reward", "run/liked"
    )
    assert (
        "sampled with max_new_tokens 6, temperature 0.7" in err
        and "run-online answers 3 prompts" in err
    )
    evaluated = [
        "evaluate",
        *asked,
        "--prompts",
        "prompts.jsonl",
        "--reward",
        "run/liked",
        "--out",
        tmp_path / "e",
    ]
    assert call(*evaluated) == 0
    answers, report = read_groups(out), read_groups(tmp_path / "e" / "evaluate" / "samples.jsonl")
    for ours, theirs in zip(answers, report, strict=True):
        named = [r for r in theirs.responses if r.source != "base"]
        assert [r.text for r in ours.responses] == [r.text for r in named]
        scores = [r.scores["run/liked"] for r in named]  # in another batch, with the base model's
        assert [r.scores["run/liked"] for r in ours.responses] == pytest.approx(scores, abs=1e-5)
        assert [r.source for r in ours.responses] == ["run-sft", "run-online"]
    assert found["examples"] == 3 and found["rewards"]["run/liked"]["mean"]["n"] == 3


def test_answers_are_rows_for_scores_and_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.jsonl"
    rows = [
        Group((Message(role="user", content=text),), meta={"answer": text})
        for text in ("a", "b c", "a")
    ]
    write_groups(tmp_path / "p.jsonl", rows)
    words = ["chat", "run/sft", "sampling.temperature=0", "sampling.max_new_tokens=3"]
    assert call(*words, "--prompts", tmp_path / "p.jsonl", "--out", out) == 0
    assert "1 of 3 prompts repeat the words and columns of others" in capsys.readouterr().err
    answers = read_groups(out)
    assert [row.meta["answer"] for row in answers] == ["a", "b c"]
    assert all(
        row.responses[0].tokens is not None and len(row.responses[0].tokens) <= 3 for row in answers
    )
    assert call("evaluate", out, "--reward", "exact_match") == 0
    recipe = {
        "model": {"base": "tiny"},
        "stages": {"s": {"algorithm": "sft", "data": str(out), "max_steps": 1}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert call("run", tmp_path / "r.yaml", "--out", tmp_path / "run") == 0


def test_a_file_is_answered_without_a_talk(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--prompts", "prompts.jsonl"],
        ["--out", "a.jsonl"],
        ["--prompts", "p", "--out", "a", "--page"],
    ):
        assert call("chat", "run/sft", *words) == 2
        assert "--prompts FILE --out ANSWERS.jsonl" in capsys.readouterr().err
    assert call("chat", "run/sft", "--prompts", "prompts.jsonl", "--out", "prompts.jsonl") == 2
    assert "in a new file" in capsys.readouterr().err


def test_summaries_count_truncated_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Group(
        (Message(role="user", content="a"),), (Response("b", truncated=True), Response("c"))
    )
    write_groups(tmp_path / "a.jsonl", [row])
    assert (
        call(
            "evaluate",
            tmp_path / "a.jsonl",
            "--reward",
            "repetition",
            "--out",
            tmp_path / "b.jsonl",
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[0] == "examples: 1; truncated responses: 1"
