"""A language model as a GGUF file, which llama.cpp loads, with byte-level BPE that it cuts by a rule of its own.

The architectures here are those whose weights need no more than new names and llama.cpp's order of rotary dimensions.
All others are for llama.cpp's own converter, `convert_hf_to_gguf.py`, which reads a merged folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import RunFailed

if TYPE_CHECKING:
    import numpy as np

# transformers' class -> llama.cpp's name, and whether its rotary dimensions lie in pairs.
ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
ROPES = {"llama": ("default", "linear", "llama3"), "qwen2": ("default",), "qwen3": ("default",)}
CONVERTER = "merge it (alignkit export RUN/STAGE FOLDER --merge), and run llama.cpp's convert_hf_to_gguf.py FOLDER"

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
_OTHER_TOKENIZERS = "use --merge, and llama.cpp's convert_hf_to_gguf.py, which knows more tokenizers"


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """Raise RunFailed for a model that cannot be written. config: its config.json. name: of the model in messages."""
    (architecture, *_) = config.get("architectures") or ["a model without a name"]
    if architecture not in ARCHITECTURES:
        _refuse(name, f"{architecture} is not supported ({', '.join(ARCHITECTURES)} are)")
    family = ARCHITECTURES[architecture][0]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPES[family]:
        _refuse(name, f"rotary embeddings of the kind '{kind}' are not supported for {architecture}")
    if config.get("hidden_act", "silu") != "silu":
        _refuse(name, f"the activation '{config['hidden_act']}' is not supported")
    if config.get("use_sliding_window"):
        _refuse(name, "a sliding window is not supported")
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        _refuse(name, "partial rotary embeddings are not supported")


def write_gguf(model: Any, tokenizer: Any, end_of_turn: int, file: Path, dtype: str, name: str) -> list[str]:
    """Write a causal language model on the CPU as a GGUF file; returns what its user must know.

    end_of_turn: the token that ends a response in the run's chat template. dtype: one of KINDS, of the matrices; norms
    and biases are float32. name: of the model. Raises RunFailed for a model or tokenizer that cannot be written.
    """
    import gguf

    config = model.config
    check_architecture(config.to_dict() | {"architectures": [type(model).__name__]}, name)
    family, paired = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(file, family)
    writer.add_name(name)
    kind = gguf.GGMLQuantizationType[KINDS[dtype]]
    label = "ALL_F32" if dtype == "float32" else f"MOSTLY_{kind.name}"
    writer.add_file_type(gguf.LlamaFileType[label])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    notes = _add_shape(writer, config)
    add_vocabulary(writer, tokenizer, model.get_input_embeddings().weight.shape[0], end_of_turn)
    for key, weight in _tensors(model, family, paired):
        data, raw = _stored(weight, kind)
        writer.add_tensor(key, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return notes


def _add_shape(writer: Any, config: Any) -> list[str]:
    """Write the sizes of the model; returns notes about what differs."""
    notes, context = [], config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < context:
        context = window
        notes.append(f"llama.cpp has no sliding window for this model, so its context is the window, {window} tokens")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    return notes


def _tensors(model: Any, family: str, paired: bool) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The weights by llama.cpp's names, fp32. A head that is tied to the embeddings is left out."""
    import gguf

    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if key is None:
            raise RunFailed(f"the weight {name} has no name in GGUF\nhelp: {CONVERTER}")
        data = weight.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if paired and (module := name.split(".")[-2]) in heads:
            data = _in_pairs(data, heads[module])
        yield key, data
    factors = _rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _in_pairs(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows [heads * dimensions, ...] in llama.cpp's order: it turns dimensions 2i and 2i + 1, transformers i and
    i + dimensions / 2."""
    halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
    return halves.swapaxes(1, 2).reshape(data.shape)


def _rope_factors(model: Any) -> np.ndarray[Any, Any] | None:
    """By what the model divides each rotary frequency [dimensions / 2]; None if by 1."""
    import numpy as np

    config = model.config
    if config.rope_parameters.get("rope_type", "default") == "default":
        return None
    used = model.model.rotary_emb.inv_freq.float().numpy()
    plain = float(config.rope_parameters["rope_theta"]) ** -(np.arange(len(used)) / len(used))
    return (plain / used).astype(np.float32)


def _stored(weight: np.ndarray[Any, Any], kind: Any) -> tuple[np.ndarray[Any, Any], Any]:
    """A weight as it is stored, and how: a matrix in `kind`; a vector, or rows that its blocks do not fill, in fp32."""
    import gguf
    import numpy as np

    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if weight.ndim < 2 or weight.shape[-1] % block or kind == gguf.GGMLQuantizationType.F32:
        return np.ascontiguousarray(weight, dtype=np.float32), None
    if kind == gguf.GGMLQuantizationType.F16:
        return weight.astype(np.float16), None
    return gguf.quants.quantize(np.ascontiguousarray(weight, dtype=np.float32), kind), kind


def _refuse(name: str, why: str) -> None:
    raise RunFailed(f"'{name}' cannot be written as GGUF: {why}\nhelp: {CONVERTER}")


# The vocabulary


def add_vocabulary(writer: Any, tokenizer: Any, size: int, end_of_turn: int) -> None:
    """Write a tokenizer into a GGUF file. size: rows of the embeddings. end_of_turn: the token that ends a response.

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
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([int(types.get(number, TokenType.UNUSED)) for number in range(size)])
    writer.add_token_merges([_merge(pair) for pair in plain["model"]["merges"]])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    special = {"bos": bos, "eos": end_of_turn if eos is None else eos, "unk": tokenizer.unk_token_id}
    for name, token in {**special, "pad": tokenizer.pad_token_id, "eot": end_of_turn}.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(int(token))
    empty = tokenizer("")["input_ids"]
    writer.add_add_bos_token(bool(empty) and empty[0] == bos)
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str) and tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def rule_of(plain: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text into words. Raises RunFailed for an unknown one."""
    model = plain["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece" if model.get("byte_fallback") or model["type"] == "Unigram" else model["type"]
        raise RunFailed(f"a tokenizer of the kind {kind} cannot be written as GGUF\nhelp: {_OTHER_TOKENIZERS}")
    if (plain.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        _no_tokenizer("it changes texts before it reads them")
    steps = plain.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps else []
    rule = _RULES.get(tuple(_step(step) for step in steps))
    if rule is None:
        known = ", ".join(_RULES.values())
        _no_tokenizer(f"it cuts texts into words by a rule that is not among llama.cpp's for {known}")
    if bool(model.get("ignore_merges")) != (rule in _WHOLE_WORDS):
        _no_tokenizer(f"llama.cpp treats words that are tokens differently for the rule '{rule}'")
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


def _no_tokenizer(why: str) -> None:
    raise RunFailed(f"this tokenizer cannot be written as GGUF: {why}\nhelp: {_OTHER_TOKENIZERS}")
