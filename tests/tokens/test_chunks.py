"""A long raw text is learned in pieces: every token once, each from the tokens before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignkit import Group, Message, Response
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.tokens.encoder import Encoded, ResponseTokens, chunks, is_document

TEXT = Group((), (Response(text="words"),))


def document(size: int, bos: bool) -> Encoded:
    """Tokens 1 to `size`; without a beginning-of-sequence token (0), nothing predicts the first."""
    row = ResponseTokens(tuple(range(1, size + 1)), (bos, *(True for _ in range(size - 1))))
    return Encoded(TEXT, (0,) if bos else (), (row,))


@given(size=st.integers(1, 60), max_length=st.integers(3, 20), bos=st.booleans())
def test_every_token_counts_once_and_follows_the_one_before_it(
    size: int, max_length: int, bos: bool
) -> None:
    counted: list[int] = []
    parts = chunks(document(size, bos), max_length)
    for part in parts:
        assert (
            part.length <= max_length
            and part.group is TEXT
            and part.prompt == ((0,) if bos else ())
        )
        tokens = (*part.prompt, *part.rows[0].tokens)
        mask = (*(False for _ in part.prompt), *part.rows[0].mask)
        for before, token, counts in zip((None, *tokens), tokens, mask, strict=False):
            if counts:
                assert before == token - 1
                counted.append(token)
    assert counted == list(range(1 if bos else 2, size + 1))
    assert [part.rows[0].truncated for part in parts] == [True] * (len(parts) - 1) + [False]


def test_a_text_that_fits_is_one_row_and_one_without_room_is_none() -> None:
    whole = document(7, True)
    assert chunks(whole, 8) == [whole]
    assert len(chunks(whole, 7)) == 2 and chunks(whole, 2) == []


def test_only_a_single_raw_text_is_a_document() -> None:
    asked = (Message(role="user", content="q"),)
    assert is_document(TEXT)
    assert not is_document(Group(asked, TEXT.responses)) and not is_document(
        Group((), TEXT.responses * 2)
    )
    assert not is_document(Group((), (Response(tokens=(1, 2)),)))


@pytest.mark.parametrize("stage", ["lm", "mix"])
def test_a_stage_learns_all_of_a_long_text_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    texts = [{"text": " ".join(f"word{n % 10}" for n in range(size))} for size in (5, 300)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    (tmp_path / "s.jsonl").write_text(
        '{"prompt": "is it?", "completion": "yes"}\n', encoding="utf-8"
    )
    settings = {"batch_size": 1, "epochs": 1, "max_length": 64}
    entry = {
        "lm": {"algorithm": "lm", "data": "d.jsonl"},
        "mix": {"algorithm": "sft", "data": "s.jsonl"},
    }[stage]
    if stage == "mix":
        entry["mix"] = {"data": "d.jsonl", "objective": "text", "weight": 0.1}  # type: ignore[assignment]
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": {"s": {**entry, **settings}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "s" / "stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    counts = summary["encoding"]
    assert counts["split"] == 1 and counts["chunks"] > 4 and "cut" not in counts
    if stage == "lm":
        assert summary["groups"] == summary["steps"] == 1 + counts["chunks"]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 document longer than max_length and learned in pieces ('word0 word1" in said
    assert f"{counts['chunks']} pieces of these" in said
