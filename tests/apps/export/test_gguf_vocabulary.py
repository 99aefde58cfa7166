"""Tokenizers in GGUF files: which rule of llama.cpp cuts words as they do, and what each token is."""

from __future__ import annotations

import copy
import json
from typing import Any
from unittest.mock import Mock

import pytest
from transformers import AutoTokenizer

from alignkit.errors import RunFailed
from alignkit.io.cache import cache_folder
from alignkit_apps.export.gguf_file import add_vocabulary, rule_of
from alignkit_plugins.models import tiny

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = BYTES | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
# As in the tokenizer.json of Llama 3 and of Qwen 2.
LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN2 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def split(pattern: str, **keys: Any) -> dict[str, Any]:
    """A pre-tokenizer that cuts by a pattern."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} | keys


def plain(*steps: dict[str, Any], whole: bool = False, **keys: Any) -> dict[str, Any]:
    """A tokenizer.json with these pre-tokenizers."""
    cut = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"model": {"type": "BPE", "byte_fallback": False, "ignore_merges": whole}, "pre_tokenizer": cut} | keys


@pytest.mark.parametrize(
    ("tokenizer", "rule"),
    [
        (plain(WORDS), "gpt-2"),
        (plain(DIGITS, WORDS), "smollm"),
        (plain(split(LLAMA3), BYTES, whole=True), "llama-bpe"),
        (plain(split(QWEN2), BYTES, normalizer={"type": "NFC"}), "qwen2"),
    ],
)
def test_rules(tokenizer: dict[str, Any], rule: str) -> None:
    assert rule_of(tokenizer) == rule


@pytest.mark.silent_bug(
    "export: tokenizers",
    "llama.cpp cuts text into other tokens than training did.",
    "A tokenizer whose rule llama.cpp lacks is refused.",
    "ggml-org/llama.cpp#7062",
)
@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (plain(split(LLAMA3), BYTES), "treats words that are tokens differently"),
        (plain(WORDS, whole=True), "treats words that are tokens differently"),
        (plain(split(LLAMA3, invert=True), BYTES, whole=True), "a rule that is not among llama.cpp's"),
        (plain(split("x"), BYTES), "a rule that is not among llama.cpp's"),
        (plain(WORDS | {"add_prefix_space": True}), "a rule that is not among llama.cpp's"),
        (plain(WORDS, normalizer={"type": "Lowercase"}), "changes texts before it reads them"),
        (plain(WORDS, pre_tokenizer=None), "a rule that is not among llama.cpp's"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "of the kind SentencePiece"),
        ({"model": {"type": "WordPiece"}}, "of the kind WordPiece"),
    ],
)
def test_others_are_refused(tokenizer: dict[str, Any], why: str) -> None:
    with pytest.raises(RunFailed) as raised:
        rule_of(tokenizer)
    assert why in str(raised.value) and "convert_hf_to_gguf.py" in str(raised.value)


def added(tokenizer: Any, size: int, end_of_turn: int) -> dict[str, Any]:
    """What is written into a file, by the names of the writer's methods."""
    writer = Mock()
    add_vocabulary(writer, tokenizer, size, end_of_turn)
    return {name: value for name, (value,), _ in writer.method_calls}


def special(found: dict[str, Any]) -> dict[str, int]:
    return {name[4:7]: value for name, value in found.items() if name.endswith("_token_id")}


def test_tokens_and_their_kinds() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["plainly added"])
    found = added(tokenizer, 364, 2)
    assert list(found["add_token_list"][:3]) == ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert found["add_token_list"][359:] == ["plainly added", "[PAD360]", "[PAD361]", "[PAD362]", "[PAD363]"]
    assert found["add_token_types"][:4] == [3, 3, 3, 1] and found["add_token_types"][358:] == [1, 4, 5, 5, 5, 5]
    assert len(found["add_token_merges"]) == 100 and all(
        len(merge.split(" ")) == 2 for merge in found["add_token_merges"]
    )
    assert special(found) == {"eos": 2, "eot": 2, "pad": 0}
    assert not found["add_add_bos_token"] and found["add_chat_template"] == tokenizer.chat_template


@pytest.mark.silent_bug(
    "export: end tokens",
    "A GGUF file names the end of text and not the end of a turn, and the model never stops.",
    "It names both.",
    "ollama/ollama#3759",
    "ggml-org/llama.cpp#6745",
)
def test_the_end_of_a_turn_is_not_always_eos() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    assert special(added(tokenizer, 359, 1)) == {"eos": 2, "eot": 1, "pad": 0}
    tokenizer.eos_token = None
    assert special(added(tokenizer, 359, 1)) == {"eos": 1, "eot": 1, "pad": 0}


def test_bos() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    tokenizer.bos_token = "<|im_start|>"
    assert not added(tokenizer, 359, 2)["add_add_bos_token"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    found = added(tokenizer, 359, 2)
    assert found["add_add_bos_token"] and special(found)["bos"] == 1


def test_merges_in_both_notations() -> None:
    """Older files have texts; newer ones lists, in which a space stands for itself."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.source(cache_folder()))
    lists = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert added(tokenizer, 359, 2)["add_token_merges"] == [" ".join(pair) for pair in lists]
