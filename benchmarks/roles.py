"""Five roles on one base (policy, reference, value, two reward models): what they take, and what a switch costs."""

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
    found = {}
    for role in ROLES:
        source = job.adapter(models.REWARD if role in HEADS else models.POLICY)
        found[role] = job.adapter(f"role_{role}")
        shutil.copytree(source, found[role], dirs_exist_ok=True)
    return found


def ids(job: Job, tokenizer: Any) -> Tensor:
    import torch

    text = data.answers(1, 8 if job.short else 64)[0]
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def held(before: int) -> int:
    """What the process has grown by, bytes, once what it no longer needs has gone back to the system."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)
    return resident() - before


def ours(job: Job, gate: Gate) -> None:
    _ours(replace(job, source=models.folder_of("tiny"), adapters=""))  # what libraries set up once is nobody's memory
    before = held(0)
    policy, losses = _ours(job)
    grown = held(before)
    while True:
        gate.begin()
        for number in range(SWITCHES):
            with policy.using_role(ROLES[number % len(ROLES)]):
                pass
        gate.end(SWITCHES, losses, memory=grown)


def _ours(job: Job) -> tuple[SharedModel, dict[str, float]]:
    """The base with its roles, and what each of them thinks of a text; without adapters fresh ones."""
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
    before = held(0)
    model, losses = _peer(job)
    grown = held(before)
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
    given: dict[str, Any] = {}
    if job.options.get("quantization"):
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    model: Any = AutoModelForCausalLM.from_pretrained(job.source, dtype=dtype, **given)
    if not job.adapters:
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config, adapter_name=ROLES[0])
        for role in ROLES[1:]:
            model.add_adapter(role, config)
    for place, (role, folder) in enumerate(folders(job).items() if job.adapters else ()):
        alone = _without_head(folder)
        if place:
            model.load_adapter(alone, adapter_name=role)
        else:
            model = PeftModel.from_pretrained(model, alone, adapter_name=role)
    tokens = ids(job, trl.tokenizer(job))
    losses = {}
    with torch.no_grad():
        for role in ROLES:
            model.set_adapter(role)
            logprobs = torch.log_softmax(model(input_ids=tokens[None]).logits[0, :-1].float(), dim=-1)
            losses[role] = float(-logprobs.gather(1, tokens[1:, None]).mean())
    return model, {"loss": sum(losses.values()), **losses}


def _without_head(folder: Path) -> Path:
    """peft would look for a reward model's head in a language model: the adapter alone."""
    import json

    from safetensors.torch import load_file, save_file

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    kept = {key: value for key, value in load_file(weights).items() if "score" not in key}
    new = folder.with_name(folder.name + "_alone")
    new.mkdir(exist_ok=True)
    save_file(kept, new / weights.name, metadata={"format": "pt"})
    told = json.loads(config.read_text(encoding="utf-8")) | {"task_type": "CAUSAL_LM", "modules_to_save": None}
    (new / config.name).write_text(json.dumps(told), encoding="utf-8")
    return new
