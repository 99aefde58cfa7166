"""Folders of base models with random weights, of families that differ in what their layers keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import alignkit_plugins.models.tiny

# Plain layers; norms of queries and keys; windows and more norms.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma": (
        "Gemma3TextConfig",
        {"head_dim": 32, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def configuration(family: str, **changes: Any) -> Any:
    """A family's configuration, with the vocabulary of the tiny model's tokenizer."""
    import transformers

    kind, own = FAMILIES[family]
    sizes = {**SMALL, **own, **changes}
    if kinds := sizes.get("layer_types"):
        sizes["layer_types"] = [kinds[layer % len(kinds)] for layer in range(sizes["num_hidden_layers"])]
    return getattr(transformers, kind)(**sizes)


def without_weights(folder: Path, cache: Path, family: str, **changes: Any) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    tiny = alignkit_plugins.models.tiny.source(cache)
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    vocabulary = json.loads((tiny / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = configuration(family, **{"vocab_size": vocabulary, **changes})
    config.architectures = [type(config).__name__.replace("TextConfig", "ForCausalLM").replace("Config", "ForCausalLM")]
    config.save_pretrained(folder)
    return folder


def with_weights(folder: Path, cache: Path, family: str, **changes: Any) -> Path:
    """The same with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    without_weights(folder, cache, family, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder
