"""Keys and commands of what the product no longer has end like all unknown ones: with the nearest,
or the page.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from alignkit import cli
from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe

PAGE = Path(__file__).parent.parent / "docs" / "what-is-not-here.md"
RECIPE = """
name: gone
model: {{base: tiny}}
{top}
stages:
  first: {{algorithm: {{sft: {{}}}}, data: d.jsonl{stage}}}
  learned: {{algorithm: grpo, prompts: d.jsonl, reward: {reward}, rollout: {{max_turns: 1{rollout}}}}}
  seen: {{step: evaluate, policies: [first], prompts: d.jsonl{evaluate}}}
  bench: {{step: lm_eval, policies: [first], tasks: [piqa]{lm_eval}}}
  more: {more}
"""
WHOLE = dict.fromkeys(("top", "stage", "rollout", "evaluate", "lm_eval"), "")
WHOLE |= {"reward": "length", "more": "{step: sample, policy: first, prompts: d.jsonl}"}

# What is written, and where; the unknown name; what the help says, or PAGE: the page says what to
# use instead.
KEYS = [
    ("top", "requires: {alignkit: '>=0.1'}", "requires", "known keys: description, engine"),
    ("top", "executor: ray", "executor", PAGE),
    ("stage", ", seed: 3", "seed", PAGE),
    ("stage", ", adam_beta1: 0.8", "adam_beta1", "use 'optimizer'"),
    ("rollout", ", keep_recent_turns: 2", "keep_recent_turns", "known keys: ahead"),
    ("reward", "gdpo", "gdpo", PAGE),
    ("evaluate", ", people: [ada]", "people", PAGE),
    ("lm_eval", ", num_fewshot: 5", "num_fewshot", "known keys: args"),
    (
        "more",
        "{step: sample, policy: first, prompts: d.jsonl, max_new_tokens: 9}",
        "max_new_tokens",
        "sampling",
    ),
    ("more", "{algorithm: grpo, prompts: d.jsonl, environment: harbor}", "harbor", PAGE),
    (
        "more",
        "{algorithm: grpo, prompts: d.jsonl, environment: trl_environment}",
        "trl_environment",
        "plugins environment",
    ),
]
COMMANDS = [
    ("migrate dpo.yaml", "migrate", PAGE),
    ("export runs/a/b --gguf q8_0", "--gguf", PAGE),
    ("plugins list", "list", "`alignkit plugins` lists what is installed"),
    ("data stats d.jsonl", "stats", PAGE),
    ("run smoke --executor ray", "--executor", PAGE),
]


def on_the_page(name: str) -> bool:
    """Whether a row of the page, left of its bar, has the name or its words."""
    rows = [
        line.split("|")[1]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    return any(name.strip("-").removesuffix("_pairs").lower() in row.lower() for row in rows)


def is_right(name: str, help: str | Path, shown: str) -> bool:
    """Whether the help that a person gets is the expected one, or names no other thing and the page
    has a row.
    """
    return (
        on_the_page(name) and "did you mean" not in shown
        if isinstance(help, Path)
        else help in shown
    )


@pytest.mark.parametrize(("place", "text", "name", "help"), KEYS)
def test_a_key_of_what_is_gone_is_unknown(
    place: str, text: str, name: str, help: str | Path, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8"
    )
    (tmp_path / "r.yaml").write_text(RECIPE.format(**WHOLE | {place: text}), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", ())
    (problem,) = [one for one in caught.value.problems if f"'{name}'" in one.message]
    assert problem.line and problem.source[problem.column - 1 :].startswith(name)
    assert is_right(name, help, problem.help), problem.help


@pytest.mark.parametrize(("line", "name", "help"), COMMANDS)
def test_a_command_of_what_is_gone_is_unknown(
    line: str, name: str, help: str | Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)) == 2
    shown = capsys.readouterr().err
    assert (
        shown.startswith("error: ") and name in shown.splitlines()[0] and "Traceback" not in shown
    )
    assert is_right(name, help, shown), shown
