"""A role as a whole model folder: its adapter merged into the base's weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from alignkit.io.atomic import replace_folder
from alignkit.models.loading import load_base
from alignkit.models.padding import with_padding
from alignkit.models.shared_model import SharedModel


def export(model: SharedModel, role: str, folder: Path) -> list[str]:
    """Write a role as a model folder, complete or not at all; returns what its user must know.

    The base is loaded a second time, on the CPU: merging into the shared base would change all other roles.
    """
    if model.adapters is None:
        model.save(role, folder)
        return ["it was trained without an adapter, so its weights are copied"]
    from peft import PeftModel

    found = model.roles[role]
    assert found.adapter is not None
    whole = model.spec.model_copy(update={"quantization": "none"})
    base, _ = load_base(whole, model.source, model.base.revision, torch.float32, torch.device("cpu"), None)
    with tempfile.TemporaryDirectory(prefix="alignkit-merge-") as place:
        model.adapters.save(found.adapter, Path(place), None)
        merged = PeftModel.from_pretrained(base, place).merge_and_unload(safe_merge=True)
    merged = merged.to(model.dtype)
    with replace_folder(folder) as new:
        model.save_whole(replace(found, model=merged), new)
        tokenizer = model.tokenizer if found.head is None else with_padding(model.tokenizer, model.model.config)
        tokenizer.save_pretrained(new)
    notes = []
    if model.spec.quantization != "none":
        notes.append(
            f"the adapter was trained on the {model.spec.quantization} base and is merged into unquantized weights: "
            "log-probabilities differ by the error of quantization"
        )
    if model.dtype != torch.float32:
        notes.append(f"stored in {str(model.dtype).removeprefix('torch.')}, so weights are rounded")
    return notes
