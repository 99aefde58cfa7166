"""The cards and machines that a recipe can be planned for: memory, speed and bandwidth, with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RecipeError, did_you_mean

if TYPE_CHECKING:
    import torch

MOST_CARDS = 4096
CARDS_OF_A_SERVER = 8
WITHIN, BETWEEN = 450e9, 50e9  # bytes per second in one direction: NVLink 4, and InfiniBand NDR (400 Gb/s) per card
_WRITTEN = re.compile(r"(?:(\d{1,6})\s*[xX*])?\s*([A-Za-z][A-Za-z0-9 _.-]*)")


@dataclass(frozen=True)
class Machine:
    """One kind of device, and how many processes compute on it.

    memory: bytes of one. gpu: whether it is a GPU. bf16: whether it multiplies bf16. flops: peak of dense products per
    second, in bf16, or in fp32 without bf16; None: unknown. bandwidth: of the memory, bytes per second; None: unknown.
    source: of the numbers. count: processes of the run; each has a card of its own, but they share a processor. here:
    whether it is the machine on which the plan is made.
    """

    name: str
    memory: float
    gpu: bool = True
    bf16: bool = True
    flops: float | None = None
    bandwidth: float | None = None
    source: str = ""
    count: int = 1
    here: bool = False

    @property
    def link(self) -> float:
        """Bytes per second that a card receives from the others: within a server or, for more than that, between."""
        return WITHIN if self.count <= CARDS_OF_A_SERVER else BETWEEN

    @property
    def room(self) -> float:
        """Bytes that a process may take."""
        return self.memory if self.gpu else self.memory / self.count

    @property
    def title(self) -> str:
        """Such as `8 x H100 (80 GB each)`."""
        if not self.gpu and self.count > 1:
            return f"{self.count} processes on {self.name} ({self.room / 1e9:.0f} GB each)"
        times = f"{self.count} x " if self.count > 1 else ""
        return f"{times}{self.name} ({self.memory / 1e9:.0f} GB{' each' if self.count > 1 else ''})"


def _card(name: str, gigabytes: float, teraflops: float, terabytes: float, source: str, bf16: bool = True) -> Machine:
    return Machine(name, gigabytes * 1e9, True, bf16, teraflops * 1e12, terabytes * 1e12, source)


# Dense products without sparsity. Memory is the data sheet's number in units of 10^9 bytes: the driver keeps the rest.
_TABLE = (
    _card("T4", 16, 8.1, 0.320, "NVIDIA T4 data sheet, 2019; fp32, for it has no bf16", bf16=False),
    _card("V100", 32, 15.7, 0.900, "NVIDIA V100 data sheet, 2020; SXM2, fp32, for it has no bf16", bf16=False),
    _card("L4", 24, 121, 0.300, "NVIDIA L4 data sheet, 2023"),
    _card("A10", 24, 125, 0.600, "NVIDIA A10 data sheet, 2021"),
    _card("RTX3090", 24, 71, 0.936, "NVIDIA GA102 white paper, 2021; fp32 accumulation"),
    _card("RTX4090", 24, 165.2, 1.008, "NVIDIA Ada white paper, 2023; fp32 accumulation"),
    _card("A100-40", 40, 312, 1.555, "NVIDIA A100 data sheet, 2021; 40 GB"),
    _card("L40S", 48, 362, 0.864, "NVIDIA L40S data sheet, 2023"),
    _card("A100", 80, 312, 2.039, "NVIDIA A100 data sheet, 2021; SXM, 80 GB"),
    _card("H100", 80, 989, 3.35, "NVIDIA H100 data sheet, 2023; SXM"),
    _card("H200", 141, 989, 4.8, "NVIDIA H200 data sheet, 2024"),
    _card("B200", 180, 2250, 8.0, "NVIDIA DGX B200 data sheet, 2024"),
    _card("MI300X", 192, 1307, 5.3, "AMD MI300X data sheet, 2023"),
)
CARDS = {card.name: card for card in _TABLE}


def machine_of(text: str) -> Machine:
    """The cards that `--gpus` names, such as `8xH100` or `L4`. Raises RecipeError for a card that is not known."""
    written = _WRITTEN.fullmatch(text.strip())
    count = int(written[1] or 1) if written else 0
    if written is None or not 1 <= count <= MOST_CARDS:
        help = f"write a number and a card, such as 8xH100, with at most {MOST_CARDS} cards"
        raise RecipeError([Problem(f"--gpus: {text!r} is no number of cards", help=help)])
    wanted = _plain(written[2])
    found = next((card for card in CARDS.values() if wanted in _names(card)), None)
    if found is None:
        known = f"known cards: {', '.join(CARDS)}"
        hint = did_you_mean(written[2].strip().upper(), CARDS)
        raise RecipeError(
            [Problem(f"--gpus: no card '{written[2].strip()}' is known", help=f"{hint}; {known}" if hint else known)]
        )
    return Machine(**{**vars(found), "count": count})


def this_machine(device: torch.device) -> Machine:
    """The device on which the recipe would run here."""
    import torch

    from alignkit.kernels.capabilities import multiplies_bf16
    from alignkit.kernels.memory import total

    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"this machine's {device.type.upper()}"
    known = [card for card in CARDS.values() if gpu and _plain(card.name) in _plain(name)]
    known.sort(key=lambda card: (abs(card.memory - total(device)), -len(card.name)))
    like = known[0] if known else None
    speed = (like.flops, like.bandwidth, like.source) if like else (None, None, "")
    return Machine(name, total(device), gpu, multiplies_bf16(device), *speed, here=True)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names(card: Machine) -> list[str]:
    """How people write a card: many put its memory behind the name."""
    return [f"{_plain(card.name)}{memory}{unit}" for memory in ("", f"{card.memory / 1e9:.0f}") for unit in ("", "gb")]


def larger_cards(memory: float) -> list[Machine]:
    """Known cards that hold this many bytes, the smallest first."""
    return sorted((card for card in CARDS.values() if card.memory >= memory), key=lambda card: card.memory)
