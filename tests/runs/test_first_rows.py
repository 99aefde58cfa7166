"""What the chat template and the tokenizer make of rows is told by `check`, and by a run before it
learns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from alignkit.cli import main
from alignkit_plugins.models import tiny

TURN = {"role": "user", "content": "Hi"}
GOOD = [TURN, {"role": "assistant", "content": "Hello."}]
REFUSED = [TURN, TURN, GOOD[1]]
ASKED = [*GOOD, TURN]  # nothing is said last


def written(
    folder: Path, rows: list[list[Any]], source: dict[str, Any] | None = None, **model: Any
) -> str:
    (folder / "demos.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    )
    sft = {
        "algorithm": "sft",
        "data": {"path": "demos.jsonl", **(source or {})},
        "max_steps": 1,
        "batch_size": 1,
    }
    recipe = {
        "model": {"base": str(tiny.source(folder)), "dtype": "float32", **model},
        "stages": {"sft": sft},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "recipe.yaml")


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
    assert (
        f"demos.jsonl:{rows.index(REFUSED) + 1}: the chat template refuses the conversation" in told
    )
    assert "looked at the first 200 rows of each source" in told
    assert main(["run", recipe, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "sft" / "stage.json").read_text())["summary"]
    assert summary["encoding"]["refused"] == 1 and summary["not_demonstrations"] == 1


def test_refused_rows_are_errors_of_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, [*[GOOD] * 200, REFUSED], chat_template="llama2")
    assert main(["check", recipe]) == 0
    assert main(["check", recipe, "--full"]) == 4
    assert "demos.jsonl:201: the chat template refuses the conversation" in capsys.readouterr().err


def test_a_conversation_that_ends_with_the_user_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", written(tmp_path, [ASKED])]) == 4
    assert (
        "ends with the user, so nothing of it would be learned; remove the turns"
        in capsys.readouterr().err
    )


@pytest.mark.silent_bug(
    "tokens: characters that the tokenizer lacks",
    "Every character outside the vocabulary becomes one unknown token, which is learned without "
    "a word.",
    "Unknown tokens are counted, and more than 1 in 1,000 is a warning.",
    "ggml-org/llama.cpp#28862",
    "huggingface/swift-transformers#387",
)
def test_unknown_tokens_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(tmp_path, [[TURN, {"role": "assistant", "content": "qq. No."}]])
    base = Path(yaml.safe_load(Path(recipe).read_text())["model"]["base"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.unk_token = "q"
    tokenizer.save_pretrained(base)
    assert main(["run", recipe, "--out", str(tmp_path / "run")]) == 0
    assert (
        "2 of " in (told := capsys.readouterr().err)
        and "tokens are q: the tokenizer lacks characters" in told
    )
