"""What the chat template and the tokenizer make of rows is told by `check`, and by a run before it
learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from alignkit.cli import main
from alignkit.io.results import read_record
from alignkit_plugins.bases import tiny
from tests.rows import Said, demos, run, write_recipe, write_rows

TURN = {"role": "user", "content": "Hi"}
GOOD = [TURN, {"role": "assistant", "content": "Hello."}]
REFUSED = [TURN, TURN, GOOD[1]]
ASKED = [*GOOD, TURN]  # nothing is said last


def written(
    folder: Path, rows: list[list[Any]], source: dict[str, Any] | None = None, **model: Any
) -> str:
    write_rows(folder / "demos.jsonl", [{"messages": row} for row in rows])
    data = {"path": "demos.jsonl", **(source or {})}
    stages = {"sft": {"algorithm": "sft", "data": data, "max_steps": 1, "batch_size": 1}}
    base = str(tiny.source(folder))
    return str(write_recipe(folder, stages, {"base": base, "dtype": "float32", **model}))


@pytest.mark.silent_bug(
    "data: rows that the template refuses",
    "A row that the chat template refuses passes the check of the data and stops the run when "
    "its stage starts, also with the option that skips bad rows, if it is the first one.",
    "`check` and every run render the first rows of each source; refused ones are errors, or "
    "left out and counted.",
    "huggingface/smol-course#260",
    "vllm-project/vllm#13978",
)
@pytest.mark.parametrize(
    "rows", [[REFUSED, GOOD, ASKED], [GOOD, REFUSED, ASKED]], ids=["first", "second"]
)
def test_refused_rows_are_skipped_and_told(
    rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, rows, {"on_bad_row": "skip"}, chat_template="llama2")
    assert main(["check", recipe]) == 0
    told = capsys.readouterr().out
    refused = f"demos.jsonl:{rows.index(REFUSED) + 1}: the chat template refuses the conversation"
    assert refused in told and "looked at the first 200 rows of each source" in told
    summary = read_record(run(Path(recipe)) / "sft")["summary"]
    assert summary["encoding"]["refused"] == 1 and summary["not_demonstrations"] == 1
    assert "sft: 1 left out (not_demonstrations)" in capsys.readouterr().err


def test_refused_rows_are_errors_of_check(tmp_path: Path, said: Said) -> None:
    recipe = written(tmp_path, [*[GOOD] * 200, REFUSED], chat_template="llama2")
    assert main(["check", recipe]) == 0
    assert main(["check", recipe, "--full"]) == 4
    write_rows(tmp_path / "more.jsonl", [{"messages": row} for row in [*[GOOD] * 199, REFUSED]])
    both = f"stages.sft.data=[{tmp_path}/few.jsonl,{tmp_path}/more.jsonl]"
    write_rows(tmp_path / "few.jsonl", [{"messages": GOOD}])
    assert main(["check", recipe, both]) == 4  # the first 200 of each source
    assert "demos.jsonl:201: the chat template refuses the conversation" in said()


def test_a_conversation_that_ends_with_the_user_is_named(tmp_path: Path, said: Said) -> None:
    assert main(["check", written(tmp_path, [ASKED])]) == 4
    assert "ends with the user, so nothing of it would be learned" in said()


@pytest.mark.silent_bug(
    "tokens: characters that the tokenizer lacks",
    "Every character outside the vocabulary becomes one unknown token, which is learned without "
    "a word.",
    "Unknown tokens are counted, and more than 1 in 1,000 is a warning.",
    "ggml-org/llama.cpp#28862",
    "huggingface/swift-transformers#387",
)
def test_unknown_tokens_are_a_warning(tmp_path: Path, said: Said) -> None:
    unknown, known = ([TURN, {**GOOD[1], "content": text}] for text in ("qq. No.", "No. " * 200))
    recipe = written(tmp_path, [unknown])
    base = tiny.source(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.unk_token = "q"
    tokenizer.save_pretrained(base)
    run(Path(recipe))
    told = said()
    assert "2 of 18 tokens are q: the tokenizer lacks characters" in told
    run(Path(written(tmp_path, [unknown, *[known] * 9])))  # of more than 2,000
    assert "tokens are q" not in said()


def test_rows_of_an_earlier_stage_are_checked_before_they_are_learned(
    tmp_path: Path, said: Said
) -> None:
    stages = "made: {step: instruct, data: demos.jsonl, instruction: Be brief.}"
    write_rows(tmp_path / "demos.jsonl", demos())
    run(write_recipe(tmp_path, stages + "\ndpo: {algorithm: dpo, data: made}"), code=4)
    assert "but no row of stage made has a pair" in said()


def test_a_model_that_reads_less_than_max_length_is_a_warning(
    tmp_path: Path, printed: Said
) -> None:
    recipe = written(tmp_path, [GOOD])
    assert main(["check", recipe, "stages.sft.max_length=100000"]) == 0
    assert "tokens, so stage 'sft' learns no more of a row, and not max_length 100,000" in printed()
    assert main(["check", recipe, "stages.sft.max_length=16"]) == 0
    assert "learns no more" not in printed()
