"""Which model on which card: the table of docs/gpu.md, from shapes.

Each row is the smallest known card that holds a training stage: the base, one adapter or all weights with AdamW, and a
packed row as long as the token budget of that card allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from alignkit.data.group import Group
from alignkit.models.encoding import Encoded, ResponseTokens
from alignkit.models.examples import Examples
from alignkit.models.forward import Wants, forward
from alignkit.plugins import plugins
from alignkit.settings import LEARNING_RATE, ModelSpec
from alignkit.training.learning_rate import scaled
from alignkit_apps.check.cards import CARDS, Machine
from alignkit_apps.check.live_bytes import bytes_of
from alignkit_apps.check.memory import USABLE, dequantized, peak, weight_bytes
from alignkit_apps.check.shape_model import ShapeModel

TOKENS = 512  # of the row that is traced; what a row keeps grows with its tokens
LAYERS = (1, 2)  # traced; deeper models follow

Sizes = dict[str, Any]


def _llama(hidden: int, inner: int, layers: int, heads: int, shared: int, tied: bool = False) -> tuple[str, Sizes]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 128256}
    return "LlamaConfig", {**sizes, **_heads(heads, shared, tied), "head_dim": 64 if hidden == 2048 else 128}


def _qwen(
    hidden: int, inner: int, layers: int, heads: int, shared: int, vocabulary: int, tied: bool
) -> tuple[str, Sizes]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return "Qwen2Config", {**sizes, **_heads(heads, shared, tied)}


def _heads(heads: int, shared: int, tied: bool) -> Sizes:
    return {"num_attention_heads": heads, "num_key_value_heads": shared, "tie_word_embeddings": tied}


# As in the models' config.json on the Hugging Face hub.
MODELS: dict[str, tuple[str, Sizes]] = {
    "Qwen2.5 0.5B": _qwen(896, 4864, 24, 14, 2, 151936, True),
    "Qwen2.5 1.5B": _qwen(1536, 8960, 28, 12, 2, 151936, True),
    "Llama 3.1 8B": _llama(4096, 14336, 32, 32, 8),
    "Qwen2.5 32B": _qwen(5120, 27648, 64, 40, 8, 152064, False),
    "Llama 3.1 70B": _llama(8192, 28672, 80, 64, 8),
}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA, nf4": {"quantization": "nf4"},
    "all weights": {"lora": None},
}


@dataclass(frozen=True)
class Row:
    """The smallest card for a model that is trained in some way.

    fixed: bytes of weights, adapters and optimizer. per_token: bytes that a token of a packed row keeps. tokens: of the
    packed row on that card. card: None if no known card is large enough.
    """

    model: str
    way: str
    fixed: float
    per_token: float
    tokens: int
    card: Machine | None
    learning_rate: float

    @property
    def need(self) -> float:
        """Bytes on the card."""
        return self.fixed + self.per_token * self.tokens


def rows(rate: float) -> Iterator[Row]:
    """The table, model by model. rate: an algorithm's default, for LoRA on a hidden size of 576."""
    for name, (kind, sizes) in MODELS.items():
        for way, settings in WAYS.items():
            yield _row(name, way, kind, sizes, ModelSpec(base=name, **settings), rate)


def _row(name: str, way: str, kind: str, sizes: Sizes, spec: ModelSpec, rate: float) -> Row:
    largest = max(CARDS.values(), key=lambda card: card.memory)
    small, large = (_at(kind, sizes, spec, layers, largest) for layers in LAYERS)
    depth, (one, two) = sizes["num_hidden_layers"], LAYERS
    fixed, kept = (a + (b - a) / (two - one) * (depth - one) for a, b in zip(small, large, strict=True))
    rate = scaled(rate, sizes["hidden_size"], spec.lora is not None)
    for card in sorted(CARDS.values(), key=lambda card: card.memory):
        if not card.bf16:
            continue
        budget = _model(kind, tuple(sizes.items()), spec.model_dump_json(), 1, card).token_budget
        row = Row(name, way, fixed, kept / TOKENS, budget, card, rate)
        if row.need <= USABLE * card.memory:
            return row
    return Row(name, way, fixed, kept / TOKENS, 0, None, rate)


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


def table(algorithm: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and the rows, as text. algorithm: whose default learning rate is shown."""
    defaults = plugins().registry.get("algorithm", algorithm).implementation.defaults
    columns = ("model", "trained", "fixed GB", "MB/token", "row", "GB", "card", "rate", "numbers")
    cells: list[tuple[str, ...]] = [
        (
            row.model,
            row.way,
            f"{row.fixed / 1e9:.1f}",
            f"{row.per_token / 1e6:.2f}" if row.card else "-",
            f"{row.tokens:,}" if row.card else "-",
            f"{row.need / 1e9:.1f}" if row.card else "-",
            row.card.name if row.card else "several",
            f"{row.learning_rate:g}",
            "computed",
        )
        for row in rows(defaults.learning_rate or LEARNING_RATE)
    ]
    return columns, cells
