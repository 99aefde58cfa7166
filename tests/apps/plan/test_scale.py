"""The arithmetic of docs/scale.md, done again by hand, and the table of models and cards."""

from __future__ import annotations

from pathlib import Path

from alignkit_apps.plan.catalogue import MODELS, WAYS
from alignkit_apps.plan.scale import lines

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "scale.md").read_text(encoding="utf-8")


def test_the_page_has_the_arithmetic() -> None:
    for section in lines().values():
        for line in section:
            assert f"| {line.what} | {line.how} | {line.result} |" in PAGE


def test_the_numbers_are_right() -> None:
    found = {line.what: line.result for section in lines().values() for line in section}
    # Llama 3.1 70B has 70,553,706,496 weights (its model card: 70B; the sum of its safetensors' shapes).
    weights = 70_553_706_496
    product = weights - 128256 * 8192
    assert found["weights"] == f"{weights / 1e9:.2f}G" and found["base, in bf16"] == f"{2 * weights / 1e9:.1f} GB"
    assert found["base on a card"] == "17.6 GB" and found["keys and values of a token"] == "328 kB"
    assert found["written"] == "2.05G" and found["read, prompts once"] == "2.30G"
    pace = 0.35 * 64 * 989e12
    assert found["learning"] == f"{4 * product * 2.304e9 / pace / 3600:.1f} h" == "8.0 h"
    cache = 1024 * 512 * 2 * 80 * 8 * 128 * 2
    assert found["step, by memory"] == f"{1e3 * (2 * weights + cache) / (8 * 0.5 * 3.35e12):.0f} ms"
    compute, exchange = 2 * product * 1024 / (8 * 0.35 * 989e12), 2 * 80 * 1024 * 8192 * 2 * 2 * 7 / 8 / 450e9
    assert found["step, by products"] == f"{1e3 * compute:.0f} ms" and found["exchange"] == f"{1e3 * exchange:.0f} ms"
    sampling = 2.048e9 / (8 * 1024 / (compute + exchange))
    assert found["sampling"] == f"{sampling / 3600:.1f} h"
    total = sampling + (2 * 0.256e9 + 4 * 2.304e9 + 4 * 2.304e9) * product / pace
    assert found["together"] == f"{total / 3600:.1f} h, {total / 86400:.0%} of a day"
    adapter = 80 * 16 * (2 * 16384 + 2 * 9216 + 3 * 36864)
    assert found["trained adapter, AdamW"] == f"{16 * adapter / 1e9:.1f} GB"


def test_every_model_has_its_rows_on_the_page_of_gpus() -> None:
    page = (DOCS / "gpu.md").read_text(encoding="utf-8")
    assert all(f"| {model} | {way} |" in page for model in MODELS for way in WAYS)
    assert page.count("| computed |") == len(MODELS) * len(WAYS)
