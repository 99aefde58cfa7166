"""GPU sizes: models of real shapes with random weights, 32 groups and more per step, both sides in
bf16.

With fewer groups a GPU waits for Python, and the benchmark would measure that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.catalogue import BF16, TRL, Benchmark

# Qwen2.5-1.5B and Llama-3.1-8B, but for their tokenizers.
SHAPES: dict[str, dict[str, Any]] = {
    "1.5b": {
        "kind": "Qwen2",
        **{
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
        },
        **{"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    },
    "8b": {
        "kind": "Llama",
        **{
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    },
}


def _step(name: str, what: str, count: int, trainer: str) -> Benchmark:
    return Benchmark(
        f"gpu_{name}_{count}",
        f"{what}, {count} groups, bf16",
        "real tokens/s",
        f"{name}:ours",
        f"{name}:peer",
        f"{TRL} {trainer}",
        dtype=BF16,
        peer_dtype=BF16,
        options={"count": count, "micro": 16},
    )


GPU = {
    benchmark.name: benchmark
    for benchmark in (
        *(_step("sft", "SFT step", count, "SFTTrainer") for count in (32, 128)),
        *(
            _step("dpo", "DPO step, reference computed in the step", count, "DPOTrainer")
            for count in (32, 128)
        ),
    )
}


def refusal() -> str | None:
    """Why these sizes cannot be measured here; None if they can."""
    import torch

    if torch.cuda.is_available():
        return None
    return (
        "--gpu needs a GPU, and torch finds none on this machine; without --gpu the sizes suit a "
        "CPU"
    )


def random_model(shape: str, folder: Path) -> str:
    """The folder of a model with random weights in bf16, made once, with the tokenizer of the tiny
    model.
    """
    import torch
    import transformers

    from alignkit.io.atomic import replace_folder
    from alignkit.models.loading import device_of
    from benchmarks.models import folder_of

    target = folder / f"random-{shape}"
    if not target.is_dir():
        options = dict(SHAPES[shape])
        config = getattr(transformers, f"{options.pop('kind')}Config")(**options)
        torch.manual_seed(0)
        with device_of("auto"):  # a CPU draws eight billion numbers in minutes
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with replace_folder(target) as new:
            model.save_pretrained(new)
            transformers.AutoTokenizer.from_pretrained(folder_of("tiny")).save_pretrained(new)
    return str(target)
