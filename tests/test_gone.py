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
from tests.rows import Said, cells, write_recipe

PAGE = Path(__file__).parent.parent / "docs" / "what-is-not-here.md"
RECIPE = """
first: {algorithm: sft, data: demos.jsonl}
learned: {algorithm: grpo, prompts: prompts.jsonl, reward: length}
seen: {step: evaluate, policies: [first], prompts: prompts.jsonl, rewards: [length]}
bench: {step: lm_eval, policies: [first], tasks: [piqa]}
more: {step: sample, policy: first, prompts: prompts.jsonl}
"""
# What is written; the unknown name; what the help says, or nothing: the page says what to use
# instead.
KEYS = cells("""
requires={alignkit: '>=0.1'} | requires | known keys: description, engine
executor=ray | executor |
stages.first.seed=3 | seed |
stages.first.adam_beta1=0.8 | adam_beta1 | use 'optimizer'
stages.learned.rollout={keep_recent_turns: 2} | keep_recent_turns | known keys: async_level
stages.learned.reward=gdpo | gdpo |
stages.learned.algorithm={grpo: {dynamic_sampling: true}} | dynamic_sampling | filters: [spread]
stages.seen.people=[ada] | people |
stages.bench.num_fewshot=5 | num_fewshot | known keys: args
stages.more.max_new_tokens=9 | max_new_tokens | sampling
stages.learned.environment=harbor | harbor |
stages.learned.environment=trl_environment | trl_environment | plugins environment
""")
COMMANDS = cells("""
migrate dpo.yaml | migrate |
export runs/a/b --gguf q8_0 | --gguf |
plugins list | list | `alignkit plugins` lists what is installed
data stats d.jsonl | stats |
run smoke --executor ray | --executor |
""")


def assert_right(name: str, help: str, shown: str) -> None:
    """The help that a person gets is the expected one, or names no other thing and the left column
    of the page has it.
    """
    if help:
        assert help in shown
    else:
        rows = [line for line in PAGE.read_text().lower().splitlines() if line.startswith("| ")]
        assert any(name.strip("-") in row.split("|")[1] for row in rows)
        assert "did you mean" not in shown


@pytest.mark.parametrize(("override", "name", "help"), KEYS)
def test_a_key_of_what_is_gone_is_unknown(
    override: str, name: str, help: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, RECIPE), [override])
    (problem,) = [one for one in caught.value.problems if f"'{name}'" in one.message]
    assert_right(name, help, problem.help)


@pytest.mark.parametrize(("line", "name", "help"), COMMANDS)
def test_a_command_of_what_is_gone_is_unknown(line: str, name: str, help: str, said: Said) -> None:
    assert cli.main(shlex.split(line)) == 2
    shown = said()
    assert shown.startswith("error: ") and name in shown.splitlines()[0]
    assert "Traceback" not in shown
    assert_right(name, help, shown)
