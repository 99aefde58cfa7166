"""The table of models and cards."""

from __future__ import annotations

from pathlib import Path

from alignkit_apps.check.catalogue import MODELS, WAYS

PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"


def test_every_model_has_its_rows_on_the_page_of_gpus() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| {model} | {way} |" in page for model in MODELS for way in WAYS)
    assert page.count("| computed |") == len(MODELS) * len(WAYS)
