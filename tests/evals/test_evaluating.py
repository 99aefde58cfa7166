"""`alignkit evaluate` of policies: the recipe that it makes, and what comes of it; of a file, the
scores of answers; and `alignkit chat --prompts FILE`, which writes them.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Response
from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.errors import DataError, RecipeError
from alignkit_plugins.command_line.words import read_words, recipe_of
from alignkit_plugins.compare.rows import rows_in
from tests import rows
from tests.rows import assistant, user

CHARACTERS = "{length: {unit: characters}}"


@pytest.fixture
def _here(house_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house_run.parent)


pytestmark = pytest.mark.usefixtures("_here")


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with adapters of rank 2 on the same base model."""
    sft = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    model = {**rows.TINY, "lora": {"r": 2, "lora_alpha": 8}}
    return rows.run(rows.write_recipe(tmp_path_factory.mktemp("other"), {"sft": sft}, model))


def made(policies: str, rewards: Sequence[str] = ("length",), judges: Sequence[str] = ()) -> Any:
    named = read_words(policies.split(), rewards, judges)
    return recipe_of(named, "prompts.jsonl", "tiny" if policies.startswith("tiny") else None)


def call(*words: object, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


# --- the recipe

# Adapters of any rank share their base, whose rank is that of the first one; models within rewards
# and judges; how training sampled, without its temperature
RECIPE = """
model: {base: tiny, dtype: float32, lora: {lora_alpha: 8, r: 4}}
name: evaluate
stages:
  evaluate:
    step: evaluate
    baseline: base
    judges: [{reward_judge: {reward_model: {folder: liked}}}, {local_judge: {role: sft}}]
    policies: [base, sft, online, sft]
    prompts: prompts.jsonl
    rewards: [{folder: liked}, {llama2: {helpful: {folder: liked}, safety: {folder: liked}}}]
    sampling: {max_new_tokens: 6, min_new_tokens: 0, stop: [], top_k: 0, top_p: 1.0}
"""


def test_the_recipe_of_a_command(other_run: Path, whole_run: Path) -> None:
    rewards = "run/liked", "{llama2: {helpful: run/liked, safety: run/liked}}"
    judges = "{reward_judge: {reward_model: run/liked}}", "{local_judge: {role: run/sft}}"
    recipe = made(f"tiny run/sft run/online {other_run}/sft", rewards, judges)
    text = re.sub(r"/\S*/\.results/(\w+)-\w+/adapter", r"\1", yaml.safe_dump(recipe))
    assert yaml.safe_load(text) == yaml.safe_load(RECIPE)
    assert str((other_run / "sft" / "adapter").resolve()) in yaml.safe_dump(recipe)
    step = made(f"{whole_run}/sft run/sft")["stages"]["evaluate"]
    named = [(run / "sft" / "adapter").resolve() for run in (whole_run, Path("run"))]
    assert step["policies"] == [*map(str, named)] and "sampling" not in step


@pytest.mark.parametrize(
    ("policy", "reward", "said"),
    [
        ("run/liked", "length", "is a reward model, but a policy is needed"),
        ("run/sft", "run/sft", "is a policy, but a reward is needed"),
    ],
)
def test_words_in_the_wrong_place(policy: str, reward: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made(policy, (reward,))


def test_another_revision_is_another_base(house_copy: Path) -> None:
    resolved = house_copy / "recipe.resolved.yaml"
    text = resolved.read_text(encoding="utf-8")
    resolved.write_text(text.replace("base: tiny\n", "base: tiny\n  revision: b\n"))
    with pytest.raises(RecipeError, match="one base per command"):
        made(f"run/base {house_copy}/base")


# --- of policies


def test_policies_of_two_runs(
    other_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters of two ranks, a base and a reward model; the recipe in the folder repeats it."""
    out, judge = tmp_path / "out", "{reward_judge: {reward_model: run/liked}}"
    words = ["run/base", "run/online", other_run / "sft", "--prompts", "prompts.jsonl"]
    words += ["--reward", "run/liked", "--judge", judge, "--limit", 2, "seed=3"]
    call("evaluate", *words, "--out", out)
    found = rows.read_json(out / "evaluate" / "evaluation.json")
    assert found["policies"] == ["base", "run/online", "run/sft"] and found["prompts"] == 2
    rated = {(row.policy, row.metric) for row in rows_in(found) if row.counts}
    assert rated == {
        (who, by) for who in ("base", "run/sft") for by in ("reward_judge", "run/liked")
    }
    sampling = found["sampling"]
    assert [sampling[key] for key in ("max_new_tokens", "temperature", "seed")] == [6, 0.7, 3]
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    call("run", out / "recipe.resolved.yaml", "--out", out)
    assert "evaluate: unchanged, reused" in capsys.readouterr().err


def test_overrides_may_name_keys_of_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `chat` takes them; a whole path leads there, too."""
    words = ["run/sft", "--prompts", "prompts.jsonl", "--reward", "length", "--limit", 1]
    for number, more in enumerate(("sampling.", "stages.evaluate.sampling.")):
        out = tmp_path / str(number)
        call("evaluate", *words, "--out", out, f"{more}max_new_tokens=4", "seed=3")
        found = rows.read_json(out / "evaluate" / "evaluation.json")
        assert (found["sampling"]["max_new_tokens"], found["sampling"]["seed"]) == (4, 3)
    call("evaluate", *words, "--out", tmp_path / "wrong", "sampling.max_tokens=4", code=2)
    assert "unknown key 'max_tokens'" in capsys.readouterr().err


def test_an_adapter_of_other_layers_than_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Peft's default are two of them. Its folder says which; a recipe is told what to write."""
    lora = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    sft = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    recipe = rows.write_recipe(tmp_path, {"sft": sft}, {**rows.TINY, "lora": lora})
    folder = (rows.run(recipe) / "sft" / "adapter").resolve().rename(tmp_path / "mine")
    (folder / "alignkit.json").unlink()  # as plain peft writes it
    base = rows.read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    answers = tmp_path / "answers.jsonl"
    call("chat", folder, "--prompts", "prompts.jsonl", "--out", answers, "sampling.temperature=0")
    assert len(rows.read_rows(answers)) == len(rows.WORDS)
    step = {"step": "sample", "policy": str(folder), "prompts": "prompts.jsonl"}
    model = {**rows.TINY, "base": base}
    rows.run(rows.write_recipe(tmp_path, {"sample": step}, model), code=1)
    said = capsys.readouterr().err
    assert 'help: set model.lora.target_modules to its own, ["q_proj", "v_proj"], or' in said


def test_the_help_says_how_prompts_name_their_format(printed: rows.Said) -> None:
    call("evaluate", "--help")
    assert "'{gsm8k: FILE}' names its format" in " ".join(printed().split())
    recipe = recipe_of(read_words(["tiny"]), "{gsm8k: FILE}")
    assert recipe["stages"]["evaluate"]["prompts"] == {"gsm8k": "FILE"}


# --- of files


def test_scores_are_those_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "scores.jsonl"
    words = ["pairs.jsonl", "--reward", "run/liked", "--reward", CHARACTERS]
    call("evaluate", *words, "--out", ours, "--json")
    found = json.loads(capfd.readouterr().out)["result"]["rewards"]
    liked = {"folder": str(Path("run/liked/adapter").resolve())}
    rewards = [liked, {"length": {"unit": "characters"}}]
    step = {"step": "evaluate_reward", "pairs": "pairs.jsonl", "rewards": rewards}
    folder = rows.run(rows.write_recipe(tmp_path, {"rated": step})) / "rated"
    scores, theirs = (
        [[response.scores for response in group.responses] for group in read_groups(file)]
        for file in (ours, folder / "samples.jsonl")
    )
    assert scores == theirs
    rated = rows.read_json(folder / "reward_evaluation.json")
    for row in rows_in(rated)[:2]:
        assert found[row.policy]["pairs_right"]["accuracy"] == row.estimate
    assert {name: one["mean"]["n"] for name, one in found.items()} == {"run/liked": 3, "length": 3}


def test_rows_go_to_stdout_and_the_summary_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    call("evaluate", "pairs.jsonl", "--reward", CHARACTERS, "--limit", 2)
    out, err = capfd.readouterr()
    written = [[one["scores"] for one in row["responses"]] for row in rows.json_rows(out)]
    assert written == [[{"length": 10.0}, {"length": 2.0}]] * 2
    summary = "length: mean 6.00 of 2 examples; pairs right 100% [29, 100] of 2"
    assert err.splitlines()[-2:] == ["examples: 2", summary]


def test_a_function_of_ones_own_scores_a_file_and_says_which_column_it_lacks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "def own(completions): return [1.0] * len(completions)\n"
        "def needs(completions, gold): return [1.0] * len(completions)\n"
    )
    talks: Any = [[assistant("Hello.")], [assistant("")], []]
    written = [{"messages": [user("Hi"), *talk]} for talk in talks]
    path = rows.write_rows(tmp_path / "rows.jsonl", written)
    file = f"{{path: {path}, on_bad_row: skip}}"
    reward = f"{{python: {{path: {tmp_path / 'own.py'}, function: %s}}}}"
    assert main(["evaluate", file, "--reward", reward % "own"]) == 0
    said = capfd.readouterr().err
    assert "python: mean 1.0" in said and f"bad rows skipped: 1, the first: {path}:2: " in said
    assert "examples without a response, which are left out: 1\n" in said
    assert main(["evaluate", file, "--reward", reward % "needs"]) == DataError.exit_code
    assert "needs the argument 'gold', but no prompt has a column" in capfd.readouterr().err


def test_answers_are_checked_without_a_model_and_truncated_ones_are_counted(
    tmp_path: Path, printed: rows.Said
) -> None:
    answers = [Response(text) for text in ("2", "3", "It is 2.")] + [Response("2", truncated=True)]
    groups = [rows.prompts(["1 + 1?"], responses=(a,), meta={"answer": "2"})[0] for a in answers]
    given, out = rows.write_rows(tmp_path / "a.jsonl", groups), tmp_path / "s.jsonl"
    call("evaluate", given, "--reward", "exact_match", "--out", out)
    assert printed().splitlines() == [
        "examples: 4; truncated responses: 1",
        "exact_match: mean 0.5 [0.1, 0.9] of 4 examples (1 independent)",
    ]
    scores = [row.responses[0].scores["exact_match"] for row in read_groups(out)]
    assert scores == [1, 0, 0, 1]


@pytest.mark.parametrize("shares", ["prompt", "passage", "nothing"])
def test_answers_to_one_prompt_or_passage_are_no_independent_examples(
    shares: str, tmp_path: Path, printed: rows.Said
) -> None:
    """Six prompts or passages, whose 20 answers are all right or all wrong: with scipy, the interval
    of Agresti and Coull for 5 trials with the quantile of 5 degrees of freedom.
    """
    answers = [
        {
            "prompt": f"{n if shares == 'prompt' else 20 * n + k}?",
            "completion": "yes" if n % 2 else "no",
            "answer": "yes",
            "id": 20 * n + k,
            "passage": n,
        }
        for n in range(6)
        for k in range(20)
    ]
    given: Any = rows.write_rows(tmp_path / "a.jsonl", answers)
    if shares == "passage":
        given = f"{{path: {given}, group: passage}}"
    call("evaluate", given, "--reward", "exact_match", "--out", tmp_path / "s.jsonl")
    mean = {"nothing": "0.50 [0.41, 0.59] of 120 examples"}
    expected = mean.get(shares, "0.5 [0.1, 0.9] of 120 examples (6 independent)")
    assert printed().splitlines()[1] == f"exact_match: mean {expected}"


FILES = ["--prompts", "prompts.jsonl"]
MISTAKES = """
    evaluate run/sft --reward length                          | 2 | add --prompts FILE
    evaluate a.jsonl b.jsonl --reward length                  | 2 | one file of answers
    evaluate pairs.jsonl                                      | 2 | such as RUN/helpful
    evaluate run/sft --prompts prompts.jsonl                  | 2 | which answers are better
    evaluate nosuch.jsonl --reward length                     | 2 | no such file
    evaluate prompts.jsonl --reward length                    | 4 | none of 3 examples has a response
    evaluate pairs.jsonl --reward lenght                      | 2 | did you mean 'length'
    evaluate run/sft --reward lenght --prompts prompts.jsonl  | 2 | did you mean 'length'
    evaluate run/sft --reward length --prompts gone           | 2 | no such file
    evaluate pairs.jsonl --reward length --out pairs.jsonl    | 2 | a new file
    evaluate pairs.jsonl --reward '{rlaif: {judge: local_judge}}' | 2 | add model.base=FOLDER
    evaluate run/sft --reward length --prompts prompts.jsonl sample.top_p=1 | 2 | did you mean 'sampling'
    evaluate run/sft --reward length --prompts prompts.jsonl temperature=1 | 2 | write 'sampling.temperature'
    chat run/sft temperature=1                                | 2 | write 'sampling.temperature'
    export run/sft sampling.top_p=1                           | 2 | takes no overrides such as sampling.top_p=1
    chat run/sft --prompts prompts.jsonl --out prompts.jsonl  | 2 | a new file
    chat run/sft --prompts prompts.jsonl                      | 2 | --out ANSWERS.jsonl
    chat run/sft --out a.jsonl                                | 2 | --out ANSWERS.jsonl
    chat run/sft --prompts prompts.jsonl --out a --page       | 2 | --out ANSWERS.jsonl
"""


@pytest.mark.parametrize(("words", "code", "message"), rows.cells(MISTAKES))
def test_mistakes_are_found_before_anything_is_loaded(
    words: str, code: str, message: str, said: rows.Said
) -> None:
    call(*shlex.split(words), code=int(code))
    assert message in said()
    assert not Path("a.jsonl").exists() and not Path("evaluations").exists()


def test_a_file_of_prompts_is_answered_as_in_a_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["run/sft", "run/online", *FILES, "--reward", "run/liked"]
    call("chat", *asked, "--out", tmp_path / "answers.jsonl", "--json")
    out, err = capfd.readouterr()
    found = json.loads(out)["result"]
    assert "sampled with max_new_tokens 6, temperature 0.7" in err
    assert "run-online answers 3 prompts" in err
    assert found["examples"] == 3 and found["rewards"]["run/liked"]["mean"]["n"] == 3
    call("evaluate", *asked, "--out", tmp_path / "e")
    report = read_groups(tmp_path / "e" / "evaluate" / "samples.jsonl")
    for ours, theirs in zip(read_groups(tmp_path / "answers.jsonl"), report, strict=True):
        named = [r for r in theirs.responses if r.source != "base"]
        assert [r.text for r in ours.responses] == [r.text for r in named]
        scores = [r.scores["run/liked"] for r in named]  # in another batch, with the base model's
        assert [r.scores["run/liked"] for r in ours.responses] == pytest.approx(scores, abs=1e-5)
        assert [r.source for r in ours.responses] == ["run-sft", "run-online"]


def test_answers_are_rows_for_scores_and_training(tmp_path: Path, said: rows.Said) -> None:
    texts = [rows.prompts([text], meta={"answer": text})[0] for text in ("a", "b c", "a")]
    asked, out = rows.write_rows(tmp_path / "p.jsonl", texts), tmp_path / "answers.jsonl"
    sampling = ["sampling.temperature=0", "sampling.max_new_tokens=3"]
    call("chat", "run/sft", *sampling, "--prompts", asked, "--out", out)
    assert "1 of 3 prompts repeat the words and columns of others" in said()
    answers = read_groups(out)
    assert [row.meta["answer"] for row in answers] == ["a", "b c"]
    assert all(0 < len(row.responses[0].tokens or ()) <= 3 for row in answers)
    sft = {"algorithm": "sft", "data": "answers.jsonl", "max_steps": 1}
    rows.run(rows.write_recipe(tmp_path, {"s": sft}))
