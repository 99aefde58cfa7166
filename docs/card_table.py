"""Which model on which card: the table of docs/gpu.md, from shapes.

Each row is the smallest known card that holds a training stage: the base, one adapter or all weights with AdamW, and a
packed row as long as the token budget of that card allows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from alignkit.data.group import Group
from alignkit.models.examples import Examples
from alignkit.models.forward import Wants, forward
from alignkit.plugins import plugins
from alignkit.settings import LEARNING_RATE, ModelSpec
from alignkit.tokens.encoding import Encoded, ResponseTokens
from alignkit.training.learning_rate import scaled
from alignkit_apps.check.cards import CARDS, Machine
from alignkit_apps.check.memory import USABLE, bytes_of, dequantized, peak, weight_bytes
from alignkit_apps.check.shape_model import ShapeModel

HEADER = ("model", "trained", "fixed GB", "MB/token", "row", "GB", "card", "rate", "numbers")
TOKENS = 512  # of the row that is traced; what a row keeps grows with its tokens
LAYERS = (1, 2)  # traced; deeper models follow

Sizes = dict[str, Any]


def _sizes(hidden: int, inner: int, layers: int, heads: int, shared: int, vocabulary: int, tied: bool = False) -> Sizes:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": shared, "tie_word_embeddings": tied}


# As in the models' config.json on the Hugging Face hub.
MODELS: dict[str, tuple[str, Sizes]] = {
    "Qwen2.5 0.5B": ("Qwen2Config", _sizes(896, 4864, 24, 14, 2, 151936, True)),
    "Qwen2.5 1.5B": ("Qwen2Config", _sizes(1536, 8960, 28, 12, 2, 151936, True)),
    "Llama 3.1 8B": ("LlamaConfig", {**_sizes(4096, 14336, 32, 32, 8, 128256), "head_dim": 128}),
    "Qwen2.5 32B": ("Qwen2Config", _sizes(5120, 27648, 64, 40, 8, 152064)),
    "Llama 3.1 70B": ("LlamaConfig", {**_sizes(8192, 28672, 80, 64, 8, 128256), "head_dim": 128}),
}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, nf4": {"quantization": "nf4"},
    "all weights": {"lora": None},
}


def lines(algorithm: str) -> list[tuple[str, ...]]:
    """The table, model by model. algorithm: whose default learning rate is shown."""
    defaults = plugins().registry.get("algorithm", algorithm).implementation.defaults
    rate = defaults.learning_rate or LEARNING_RATE
    return [
        (name, way, *_numbers(kind, sizes, ModelSpec(base=name, **settings), rate), "computed")
        for name, (kind, sizes) in MODELS.items()
        for way, settings in WAYS.items()
    ]


def _numbers(kind: str, sizes: Sizes, spec: ModelSpec, rate: float) -> tuple[str, ...]:
    """The cells for a model that is trained in some way. rate: for LoRA on a hidden size of 576."""
    cards = sorted(CARDS.values(), key=lambda card: card.memory)
    small, large = (_at(kind, sizes, spec, layers, cards[-1]) for layers in LAYERS)
    depth, (one, two) = sizes["num_hidden_layers"], LAYERS
    fixed, kept = (a + (b - a) / (two - one) * (depth - one) for a, b in zip(small, large, strict=True))
    each, learned = kept / TOKENS, f"{scaled(rate, sizes['hidden_size'], spec.lora is not None):g}"
    for card in cards:
        budget = _model(kind, tuple(sizes.items()), spec.model_dump_json(), 1, card).token_budget if card.bf16 else 0
        if budget and (need := fixed + each * budget) <= USABLE * card.memory:
            return f"{fixed / 1e9:.1f}", f"{each / 1e6:.2f}", f"{budget:,}", f"{need / 1e9:.1f}", card.name, learned
    return f"{fixed / 1e9:.1f}", "-", "-", "-", "several", learned


@cache
def _model(kind: str, sizes: tuple[tuple[str, Any], ...], spec: str, layers: int, card: Machine) -> ShapeModel:
    import transformers

    config = getattr(transformers, kind)(**dict(sizes))
    text: Any = (None, None, ())
    return ShapeModel(ModelSpec.model_validate_json(spec), "catalogue", None, config, card, layers=layers, text=text)


def _at(kind: str, sizes: Sizes, spec: ModelSpec, layers: int, card: Machine) -> tuple[float, float]:
    """Bytes of weights with optimizer, and of what a row keeps, of a model of this depth."""
    model = _model(kind, tuple(sizes.items()), spec.model_dump_json(), layers, card)
    model.add_role("policy")
    trained = model.make_trainable("policy")
    row = ResponseTokens((1,) * (TOKENS // 2), (True,) * (TOKENS // 2))
    groups = [Encoded(Group(()), (1,) * (TOKENS // 2), (row,))]

    def learn() -> None:
        loss = -forward(model, "policy", Examples(groups), Wants()).logprobs.sum()
        if spec.lora is not None:  # otherwise the gradients are counted as such
            loss.backward()

    # Weights, two moments and the gradient of each; with `all weights` the policy is a copy, next to its reference.
    fixed = weight_bytes(model) + 4 * bytes_of(trained.values()) + dequantized(model)
    return float(fixed), peak(model, learn) or 0.0
