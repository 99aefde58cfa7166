"""The matrix: what is trained, scored and sampled are the tokens of the model's own template, for
every family.

`families` has the families, `matrix` asks plain transformers. `python docs/generate.py` writes what
each can do into docs/models.md. One family of each kind is in `make test`, all are in `make slow`;
tests/net has the ids and masks of all of them.
"""

from __future__ import annotations

import matrix
import pytest
from families import CONVERSATIONS, FAMILIES, TABLE

QUICK = {
    line.split(" | ")[2]: line.split(" | ")[0] for line in reversed(TABLE.strip().splitlines())
}.values()
CELLS = [
    pytest.param(
        name, kind, marks=() if name in QUICK and kind == family.kinds[0] else pytest.mark.slow
    )
    for name, family in FAMILIES.items()
    for kind in family.kinds
]


@pytest.mark.silent_bug(
    "masks: turns",
    "Without generation marks in the template, the mask is all zeros or all ones.",
    "No marks are needed.",
    "marin-community/marin#7237",
    "NVIDIA-NeMo/Megatron-Bridge#3359",
)
@pytest.mark.silent_bug(
    "templates: reasoning",
    "Training and inference differ in which reasoning of earlier turns they keep.",
    "The template's own rendering is learned.",
    "hiyouga/LlamaFactory#10336",
)
@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_tokens_are_those_of_the_template(family: str, kind: str) -> None:
    """Typed control tokens are read as text, which transformers does not do."""
    for name in CONVERSATIONS:
        if "control tokens" not in name:
            for scoring in (False, True):
                matrix.check(FAMILIES[family], kind, name, scoring)
            matrix.check(FAMILIES[family], kind, name, False, enable_thinking=False)
