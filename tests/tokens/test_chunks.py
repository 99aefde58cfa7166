"""A long raw text is learned in pieces: every token once, each from the tokens before it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alignkit import Group, Message, Response
from alignkit.io.results import read_record
from alignkit.tokens.encoder import Encoded, ResponseTokens, chunks, is_document
from tests.rows import TINY, Said, run, write_recipe, write_rows

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
    whole = document(size, bos)
    parts = chunks(whole, max_length)
    assert size + bos > max_length or parts == [whole]
    for part in parts:
        assert part.length <= max_length
        assert part.group is TEXT and part.prompt == whole.prompt
        (response,) = part.responses
        before = [None, *part.prompt, *response.tokens][-len(response.tokens) - 1 :]
        for last, token, counts in zip(before, response.tokens, response.mask, strict=False):
            if counts:
                assert last == token - 1
                counted.append(token)
    assert counted == list(range(1 if bos else 2, size + 1))
    assert [part.responses[0].truncated for part in parts] == [True] * (len(parts) - 1) + [False]


def test_a_text_without_room_is_no_row() -> None:
    assert chunks(document(7, True), 2) == []


def test_only_a_single_raw_text_is_a_document() -> None:
    asked = (Message(role="user", content="q"),)
    assert is_document(TEXT) and not is_document(Group(asked, TEXT.responses))
    assert not is_document(Group((), TEXT.responses * 2))
    assert not is_document(Group((), (Response(tokens=(1, 2)),)))


def test_a_stage_learns_all_of_a_long_text_and_says_so(tmp_path: Path, said: Said) -> None:
    texts = [{"text": " ".join(f"word{n % 10}" for n in range(size))} for size in (5, 300)]
    write_rows(tmp_path / "texts.jsonl", texts)
    stage = "{algorithm: lm, data: texts.jsonl, batch_size: 1, epochs: 1, max_length: 64}"
    out = run(write_recipe(tmp_path, f"s: {stage}", TINY))
    summary = read_record(out / "s")["summary"]
    counts = summary["encoding"]
    assert counts["split"] == 1 and counts["chunks"] > 4 and "cut" not in counts
    assert summary["groups"] == summary["steps"] == 1 + counts["chunks"]
    told = " ".join(said().split())
    assert "1 document longer than max_length and learned in pieces ('word0 word1" in told
    assert f"{counts['chunks']} pieces of these" in told
