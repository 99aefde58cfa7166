"""The arithmetic of a large run, for docs/scale.md: 70B on 64 cards, a million prompts a day.

Nothing is measured. Every row shows how its number is made from those above it.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignkit.models.sampling_rows import ROWS_ON_GPU
from alignkit_apps.plan.cards import BETWEEN, CARDS, CARDS_OF_A_SERVER, WITHIN
from alignkit_apps.plan.catalogue import MODELS
from alignkit_apps.plan.timing import BANDWIDTH_SHARE, UTILIZATION

PROMPTS, PROMPT, SAMPLES, NEW = 1_000_000, 256, 4, 512  # a day; tokens; responses to a prompt; tokens of each
CARDS_IN_ALL, RANK, DAY, ROW = 64, 16, 86_400, 16_384  # ROW: tokens of a packed row
SCORED = 2  # passes without gradients over all tokens: the old policy and the reference


@dataclass(frozen=True)
class Line:
    """A quantity, its arithmetic and its result."""

    what: str
    how: str
    result: str


class Numbers:
    """What the lines are made of."""

    def __init__(self) -> None:
        sizes, card = MODELS["Llama 3.1 70B"][1], CARDS["H100"]
        self.hidden, inner, self.layers, self.words = (sizes[name] for name in _SIZES)
        self.group = CARDS_OF_A_SERVER
        self.servers, self.rows, self.held = CARDS_IN_ALL // self.group, ROWS_ON_GPU, PROMPT + NEW // 2
        self.shared = sizes["num_key_value_heads"] * sizes["head_dim"]
        own = 2 * self.hidden * self.hidden + 2 * self.hidden * self.shared
        self.layer = own + 3 * self.hidden * inner + 2 * self.hidden
        self.weights = self.layers * self.layer + 2 * self.words * self.hidden + self.hidden
        ends = 4 * self.hidden + 2 * (self.hidden + self.shared) + 3 * (self.hidden + inner)
        self.adapter = self.layers * RANK * ends
        self.stored, self.cached = 2 * self.weights, 2 * self.layers * self.shared * 2
        self.product = self.weights - self.words * self.hidden
        self.written, self.read = PROMPTS * SAMPLES * NEW, PROMPTS * (PROMPT + SAMPLES * NEW)
        self.peak = card.flops or 0.0
        self.rate = UTILIZATION * self.peak
        self.whole, self.bandwidth = self.rate * CARDS_IN_ALL, (card.bandwidth or 0.0) * BANDWIDTH_SHARE
        self.keys = self.rows * self.held * self.cached
        self.by_memory = (self.stored + self.keys) / (self.group * self.bandwidth)
        self.by_products = 2 * self.product * self.rows / (self.group * self.rate)
        self.exchanged = 2 * self.layers * self.rows * self.hidden * 2 * 2 * (self.group - 1) / self.group
        self.step = max(self.by_memory, self.by_products) + self.exchanged / WITHIN
        self.pace = self.servers * self.rows / self.step


def lines() -> dict[str, list[Line]]:
    """The arithmetic by section of the page."""
    n = Numbers()
    return {
        "roles": _roles(n),
        "sharding": [
            Line("base on a card", f"{_gb(n.stored)} / {n.group}, within a server", _gb(n.stored / n.group)),
            Line("embeddings and head, whole", f"2 x 2 bytes x {n.words} x {n.hidden}", _gb(4 * n.words * n.hidden)),
            Line("two gathered layers", f"2 x 2 bytes x {n.layer / 1e6:.1f}M", _gb(4 * n.layer)),
            Line("replicas", f"{CARDS_IN_ALL} / {n.group}", f"{n.servers}"),
        ],
        "work": [
            Line("written", f"{PROMPTS:,} x {SAMPLES} x {NEW} tokens", _g(n.written)),
            Line("read, prompts once", f"{PROMPTS:,} x ({PROMPT} + {SAMPLES} x {NEW})", _g(n.read)),
            Line("multiplied per token", f"{_g(n.weights)} - {n.words} x {n.hidden}", _g(n.product)),
            Line("pace", f"{UTILIZATION} x {CARDS_IN_ALL} x {n.peak / 1e12:.0f}T", f"{n.whole / 1e15:.2f}P/s"),
        ],
        "sampling": _sampling(n),
        "learning": _learning(n),
        "day": _day(n),
    }


def _roles(n: Numbers) -> list[Line]:
    total = f"{n.layers} x {n.layer / 1e6:.1f}M + 2 x {n.words} x {n.hidden} + {n.hidden}"
    adapter = f"{n.adapter / 1e6:.0f}M"
    return [
        Line("weights", total, _g(n.weights)),
        Line("base, in bf16", f"2 bytes x {_g(n.weights)}, once for all roles", _gb(n.stored)),
        Line("adapter, rank 16", f"{n.layers} layers x {n.adapter // n.layers / 1e6:.2f}M", adapter),
        Line("trained adapter, AdamW", f"16 bytes x {adapter}", _gb(16 * n.adapter)),
        Line("each further role", f"4 bytes x {adapter}", _gb(4 * n.adapter)),
    ]


def _sampling(n: Numbers) -> list[Line]:
    token, cards = f"{n.cached / 1e3:.0f} kB", f"{n.group} x {n.bandwidth / 1e12:.3f} TB/s"
    products = f"2 x {_g(n.product)} x {n.rows} / ({n.group} x {n.rate / 1e12:.0f}T)"
    exchanged = f"2 x {n.layers} x {n.rows} x {n.hidden} x 2 bytes x 2 x 7/8"
    return [
        Line("keys and values of a token", f"2 x {n.layers} x {n.shared} x 2 bytes", token),
        Line("of all rows", f"{n.rows} x {n.held} x {token}", _gb(n.keys)),
        Line("step, by memory", f"({_gb(n.stored)} + {_gb(n.keys)}) / ({cards})", _ms(n.by_memory)),
        Line("step, by products", products, _ms(n.by_products)),
        Line("exchanged in a step", exchanged, _gb(n.exchanged)),
        Line("exchange", f"{_gb(n.exchanged)} / {WITHIN / 1e9:.0f} GB/s", _ms(n.exchanged / WITHIN)),
        Line("written per second", f"{n.servers} x {n.rows} / {_ms(n.step)}", f"{n.pace / 1e3:.0f}k"),
    ]


def _learning(n: Numbers) -> list[Line]:
    within, between = f"{WITHIN / 1e9:.0f} GB/s", f"{BETWEEN / 1e9:.0f} GB/s"
    adapter, gathered, row = f"4 bytes x {n.adapter / 1e6:.0f}M", 2 * n.stored, 4 * n.product * ROW / n.rate
    return [
        Line(f"row of {ROW:,} tokens", f"4 x {_g(n.product)} x {ROW:,} / {n.rate / 1e12:.0f}T", _s(row)),
        Line("weights gathered for it", f"2 x {_gb(n.stored)} x 7/8 / {within}", _s(gathered * 7 / 8 / WITHIN)),
        Line("over all 64 cards", f"2 x {_gb(n.stored)} x 63/64 / {between}", _s(gathered * 63 / 64 / BETWEEN)),
        Line("gradients of a step", f"2 x {adapter} / {between}", _ms(8 * n.adapter / BETWEEN)),
        Line("adapter to the samplers", f"{adapter} / {between}", _ms(4 * n.adapter / BETWEEN)),
    ]


def _day(n: Numbers) -> list[Line]:
    pace, prompts = f"{n.whole / 1e15:.2f}P", PROMPTS * PROMPT
    parts = [n.written / n.pace, 2 * n.product * prompts / n.whole]
    parts += [SCORED * 2 * n.product * n.read / n.whole, 4 * n.product * n.read / n.whole]
    sampling, prefill, scoring, learning = map(_hours, parts)
    return [
        Line("sampling", f"{_g(n.written)} / {n.pace / 1e3:.0f}k per second", sampling),
        Line("reading prompts", f"2 x {_g(n.product)} x {_g(prompts)} / {pace}", prefill),
        Line("old policy, reference", f"{SCORED} x 2 x {_g(n.product)} x {_g(n.read)} / {pace}", scoring),
        Line("learning", f"4 x {_g(n.product)} x {_g(n.read)} / {pace}", learning),
        Line("together", "one after the other", f"{_hours(sum(parts))}, {sum(parts) / DAY:.0%} of a day"),
    ]


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h"


def _s(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _g(count: float) -> str:
    return f"{count / 1e9:.2f}G"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
