"""A tokenizer as GGUF stores it: byte-level BPE, cut into words by one of the rules that llama.cpp knows by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.errors import RunFailed

# The rules by which llama.cpp cuts text into words, as a sequence of tokenizers' pre-tokenizers.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_RULES = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_LLAMA3, "bytes"): "llama-bpe",
    (_QWEN2, "bytes"): "qwen2",
}
_WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is not cut; llama.cpp does so for these
CONVERTER = "use --merge, and llama.cpp's convert_hf_to_gguf.py, which knows more tokenizers"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a tokenizer by id, their GGUF types, its merges, and its special tokens by GGUF's names."""

    words: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    rule: str
    special: Mapping[str, int]
    adds_bos: bool
    template: str | None

    def add_to(self, writer: Any) -> None:
        """Write it into a GGUF file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.rule)
        writer.add_token_list(self.words)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)
        if self.template:
            writer.add_chat_template(self.template)


def vocabulary(tokenizer: Any, size: int, end_of_turn: int) -> Vocabulary:
    """The vocabulary of a tokenizer. size: rows of the embeddings. end_of_turn: the token that ends a response.

    Raises RunFailed for a tokenizer that llama.cpp would read differently.
    """
    from gguf import TokenType

    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    rule = rule_of(plain)
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    types = dict.fromkeys(words, TokenType.NORMAL)
    for added in plain.get("added_tokens", ()):
        words[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    eos = tokenizer.eos_token_id
    special = {"bos": tokenizer.bos_token_id, "eos": end_of_turn if eos is None else eos}
    special |= {"unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id, "eot": end_of_turn}
    empty = tokenizer("")["input_ids"]
    return Vocabulary(
        [words.get(number, f"[PAD{number}]") for number in range(size)],
        [int(types.get(number, TokenType.UNUSED)) for number in range(size)],
        [_merge(pair) for pair in plain["model"]["merges"]],
        rule,
        {name: int(token) for name, token in special.items() if token is not None},
        bool(empty) and empty[0] == tokenizer.bos_token_id,
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def rule_of(plain: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text into words. Raises RunFailed for an unknown one."""
    model = plain["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece" if model.get("byte_fallback") or model["type"] == "Unigram" else model["type"]
        raise RunFailed(f"a tokenizer of the kind {kind} cannot be written as GGUF\nhelp: {CONVERTER}")
    if (plain.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        _refuse("it changes texts before it reads them")
    steps = plain.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps else []
    rule = _RULES.get(tuple(_step(step) for step in steps))
    if rule is None:
        _refuse("it cuts texts into words by a rule that is not among llama.cpp's for " + ", ".join(_RULES.values()))
    if bool(model.get("ignore_merges")) != (rule in _WHOLE_WORDS):
        _refuse(f"llama.cpp treats words that are tokens differently for the rule '{rule}'")
    return str(rule)


def _step(step: Mapping[str, Any]) -> str:
    """A pre-tokenizer in a word, or its pattern; an unknown one matches no rule."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"unknown: {kind}"


def _merge(pair: Any) -> str:
    """Two tokens that are joined, with a space between them; a space inside a token is written as in the vocabulary."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", "\u0120") for part in pair)


def _refuse(why: str) -> None:
    raise RunFailed(f"this tokenizer cannot be written as GGUF: {why}\nhelp: {CONVERTER}")
