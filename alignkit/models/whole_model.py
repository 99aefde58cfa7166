"""Whole models: a saved role as one, its adapter merged into the base model's weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignkit.io.atomic import replace_folder
from alignkit.models.adapters import ModelOrigin, is_adapter
from alignkit.models.loading import (
    device_of,
    dtype_of,
    ends_of,
    load_network,
    locate,
    read_weights,
    saved_head,
    saved_pad_token_id,
    scorer,
)
from alignkit.models.saved import has_score

if TYPE_CHECKING:
    from alignkit.contract.settings import ModelSpec

WEIGHTS = "adapter_model.safetensors"
CPU = torch.device("cpu")


def export(
    saved: Path | None,
    folder: Path,
    origin: ModelOrigin,
    spec: ModelSpec,
    dtype: torch.dtype,
    tokenizer: Any,
    end_ids: Iterable[int],
) -> list[str]:
    """Write a saved role as a model folder, complete or not at all; returns what its user must
    know.

    saved: the role's folder; None: the unmodified model. dtype: of the written weights; an adapter
    is merged in fp32, on the CPU. tokenizer: with the chat template of the run. end_ids: the tokens
    that end a response.
    """
    if saved is not None and not is_adapter(saved):
        with replace_folder(folder) as new:
            shutil.copytree(saved, new, dirs_exist_ok=True)
        return ["it was trained without an adapter, so its weights are copied"]
    model, notes = whole_model(saved, origin, spec, dtype, tokenizer)
    end_with(getattr(model, "generation_config", None), end_ids)
    with replace_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return notes


def whole_model(
    saved: Path | None, origin: ModelOrigin, spec: ModelSpec, dtype: torch.dtype, tokenizer: Any
) -> tuple[Any, list[str]]:
    """The whole model of a saved adapter or of the base model, on the CPU, and what its user must
    know of how it was made.

    It is a language model, or a classifier with one label. tokenizer: pads the batches of a reward
    model whose base model has no padding. Raises RunFailed if the adapter is for another one.
    """
    quantized = spec.quantization != "none"
    # Rounded as in the run: what bitsandbytes makes of bf16 and of fp32 differs.
    stored = dtype_of(spec, device_of(spec.device)) if quantized else torch.float32
    network = load_network(
        spec, locate(origin.source, origin.revision), origin.revision, stored, CPU, None
    )
    if quantized:
        network = network.dequantize(torch.float32).float()
    notes = []
    if saved is not None:
        origin.check(saved)
        network = _with_adapter(network, saved).merge_and_unload(safe_merge=True)
        if quantized:
            notes.append(
                f"merged into the values that {spec.quantization} rounds the weights to, as it "
                "was trained"
            )
        if spec.quantization == "int8":
            notes.append(
                "int8 also rounds the inputs of every layer, which the merged model does not"
            )
    network = network.to(dtype)
    if dtype != torch.float32:
        notes.append(f"stored in {str(dtype).removeprefix('torch.')}, so weights are rounded")
    if saved is not None and has_score(saved):
        pad_token_id = saved_pad_token_id(saved)
        network = scorer(
            network,
            saved_head(saved),
            tokenizer.pad_token_id if pad_token_id is None else pad_token_id,
        )
    return network.eval(), notes


def _with_adapter(network: Any, saved: Path) -> Any:
    """The network with a saved adapter, without the adapter's scalar head."""
    from peft import PeftConfig, PeftModel

    read_weights(saved / WEIGHTS)  # refuses what is damaged
    config = PeftConfig.from_pretrained(str(saved))
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    return PeftModel.from_pretrained(network, str(saved), config=config).eval()


def end_with(generation: Any, end_ids: Iterable[int]) -> None:
    """Let a generation configuration end responses where the run ended them. Its own tokens stay in
    front.
    """
    if generation is None:
        return
    own = ends_of(generation)
    ends = [*own, *sorted(set(end_ids) - set(own))]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
