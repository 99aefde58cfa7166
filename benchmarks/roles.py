"""Five roles on one base (policy, reference, value, two reward models): their memory, and the time
of a switch.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, models, trl
from benchmarks.worker import Gate, Job, resident

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.models.shared_model import SharedModel

ROLES = ("policy", "reference", "value", "helpful", "safety")
HEADS = ROLES[2:]
SWITCHES = 1000


def folders(job: Job) -> dict[str, Path]:
    """An adapter for each role."""
    adapters = {}
    for role in ROLES:
        source = job.adapter(models.REWARD if role in HEADS else models.POLICY)
        adapters[role] = job.adapter(f"role_{role}")
        shutil.copytree(source, adapters[role], dirs_exist_ok=True)
    return adapters


def ids(job: Job, tokenizer: Any) -> Tensor:
    import torch

    text = data.answers(1, 8 if job.short else 64)[0]
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def growth(before: int) -> int:
    """The growth of the process in bytes, after it has returned unused memory to the system."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)
    return resident() - before


def ours(job: Job, gate: Gate) -> None:
    # Allocates what libraries allocate once
    _ours(replace(job, source=models.folder_of("tiny"), adapters=""))
    before = growth(0)
    policy, losses = _ours(job)
    grown = growth(before)
    while True:
        gate.begin()
        for number in range(SWITCHES):
            with policy.using_role(ROLES[number % len(ROLES)]):
                pass
        gate.end(SWITCHES, losses, memory=grown)


def _ours(job: Job) -> tuple[SharedModel, dict[str, float]]:
    """The base with its roles, and each role's loss on a text. Roles without saved adapters get new
    ones.
    """
    import torch

    from alignkit.kernels.attention import TreeLayout
    from alignkit.kernels.layout import GroupSpan

    adapters = folders(job) if job.adapters else dict.fromkeys(ROLES)
    policy = models.load(job)
    for role in ROLES:
        policy.add_role(role, start=adapters[role], head="scalar" if role in HEADS else "language")
    tokens = ids(job, policy.tokenizer)
    packed = TreeLayout([GroupSpan(0, len(tokens), ())])
    losses = {}
    with torch.no_grad():
        for role in ROLES:
            hidden = policy.hidden(role, packed, tokens)
            losses[role] = float(-policy.logprobs(role, hidden[:-1], tokens[1:])[0].mean())
    return policy, {"loss": sum(losses.values()), **losses}


def peer(job: Job, gate: Gate) -> None:
    _peer(replace(job, source=models.folder_of("tiny"), adapters=""))
    before = growth(0)
    model, losses = _peer(job)
    grown = growth(before)
    while True:
        gate.begin()
        for number in range(SWITCHES // 100):
            model.set_adapter(ROLES[number % len(ROLES)])
        gate.end(SWITCHES // 100, losses, memory=grown)


def _peer(job: Job) -> tuple[Any, dict[str, float]]:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, job.dtype)
    quantization: dict[str, Any] = {}
    if job.options.get("quantization"):
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model: Any = AutoModelForCausalLM.from_pretrained(job.source, dtype=dtype, **quantization)
    if not job.adapters:
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config, adapter_name=ROLES[0])
        for role in ROLES[1:]:
            model.add_adapter(role, config)
    for number, (role, folder) in enumerate(folders(job).items() if job.adapters else ()):
        adapter = _without_head(folder)
        if number:
            model.load_adapter(adapter, adapter_name=role)
        else:
            model = PeftModel.from_pretrained(model, adapter, adapter_name=role)
    tokens = ids(job, trl.tokenizer(job))
    losses = {}
    with torch.no_grad():
        for role in ROLES:
            model.set_adapter(role)
            logprobs = torch.log_softmax(
                model(input_ids=tokens[None]).logits[0, :-1].float(), dim=-1
            )
            losses[role] = float(-logprobs.gather(1, tokens[1:, None]).mean())
    return model, {"loss": sum(losses.values()), **losses}


def _without_head(folder: Path) -> Path:
    """A copy of an adapter without a reward model's head, which peft would look for in the language
    model.
    """
    import json

    from safetensors.torch import load_file, save_file

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = {key: value for key, value in load_file(weights).items() if "score" not in key}
    new = folder.with_name(folder.name + "_without_head")
    new.mkdir(exist_ok=True)
    save_file(tensors, new / weights.name, metadata={"format": "pt"})
    settings = json.loads(config.read_text(encoding="utf-8")) | {
        "task_type": "CAUSAL_LM",
        "modules_to_save": None,
    }
    (new / config.name).write_text(json.dumps(settings), encoding="utf-8")
    return new
