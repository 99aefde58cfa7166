"""What `alignkit check` shows of a row is what the stage will learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit_plugins.recipes.check_row import Inspection, inspect

ROWS = {
    "demos": """\
{"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No.", "weight": 0},
 {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes “so” 😀"}]}
""".replace("\n ", " "),
    "pairs": """\
{"prompt": "Hi?", "chosen": "Hello.", "rejected": "No", "margin": 2}
{"prompt": "One?", "chosen": "1", "rejected": "2"}
""",
    "prompts": '{"prompt": "What is 1 + 1?", "answer": "2"}',
}
RECIPE = """\
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  helpful: {algorithm: reward_model, from: sft, data: pairs.jsonl}
  align: {algorithm: ppo, from: sft, prompts: prompts.jsonl, reward: helpful}
  labels: {step: judge_pairs, policy: sft, judge: local_judge, prompts: prompts.jsonl}
  again: {algorithm: dpo, from: sft, data: labels}
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that inspects a stage; overrides change the recipe."""
    for name, text in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")

    def look(stage: str, *overrides: str, row: int = 1) -> Inspection:
        return inspect(load_recipe(recipe, list(overrides)), stage, row, tmp_path / "run")

    monkeypatch.chdir(tmp_path)
    return look


def counted(found: Inspection, place: int) -> str:
    tokens = found.tokens[place]
    return "".join(
        piece for piece, counts in zip(tokens.pieces, tokens.counts, strict=True) if counts
    )


def whole(found: Inspection, place: int) -> str:
    return "".join(found.tokens[place].pieces)


def test_only_the_turns_that_are_learned_are_marked(seen: Any) -> None:
    found = seen("sft")
    assert counted(found, 1) == "Yes \u201cso\u201d \U0001f600<|im_end|>"
    assert whole(found, 0) + whole(found, 1) == (
        "<|im_start|>user\n"
        "Is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "No.<|im_end|>\n"
        "<|im_start|>user\n"
        "Sure?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "Yes \u201cso\u201d \U0001f600<|im_end|>"
    )
    assert [who for who, _ in found.turns] == [
        "user",
        "assistant (not learned)",
        "user",
        "assistant",
    ]


def test_what_does_not_fit_is_said(seen: Any) -> None:
    cut = seen("sft", "stages.sft.max_length=40")
    assert "truncated" in cut.tokens[1].title and "1 response truncated at max_length" in cut.notes
    assert len(cut.tokens[0].pieces) + len(cut.tokens[1].pieces) == 40
    none = seen("sft", "stages.sft.max_length=3")
    assert (
        none.tokens == [] and "1 row left out: no room for a response in max_length" in none.notes
    )


def test_a_pair_is_scored_at_its_last_tokens(seen: Any) -> None:
    found = seen("helpful")
    assert [tokens.title for tokens in found.tokens] == ["prompt", "better, margin 2", "worse"]
    for tokens in found.tokens[1:]:
        assert tokens.scored and [i for i, counts in enumerate(tokens.counts) if counts] == [
            len(tokens.pieces) - 1
        ]
    assert whole(found, 1).startswith("Hello.<|im_end|>")
    assert seen("helpful", row=2).turns[0] == ("user", "One?")


def test_a_prompt_ends_where_the_policy_writes(seen: Any) -> None:
    found = seen("align")
    assert whole(found, 0).endswith("1 + 1?<|im_end|>\n<|im_start|>assistant\n")
    assert found.notes == ["other columns: answer: '2'"]


def test_nothing_is_written(seen: Any, tmp_path: Path) -> None:
    seen("sft")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "row", "kind", "said"),
    [
        ("sfd", 1, RecipeError, "did you mean 'sft'"),
        ("sft", 2, DataError, "has 1 row, so there is no row 2"),
        ("sft", 0, DataError, "so there is no row 0"),
        ("again", 1, DataError, "run the recipe as far as 'labels' first"),
    ],
)
def test_what_is_not_there(
    seen: Any, stage: str, row: int, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        seen(stage, row=row)


def test_the_command_takes_no_row_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "smoke", "sft", "0"]) == 4
    assert "so there is no row 0" in capsys.readouterr().err
