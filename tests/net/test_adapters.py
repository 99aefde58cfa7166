"""LoRA adapters against peft's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from architectures import make, tokens
from torch import Tensor

from alignkit.contract.settings import LoraSpec
from alignkit.errors import RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.adapters import ModelOrigin
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from tests.models.tiny import shared
from tests.rows import read_json


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def by_peft(folder: Path, adapter: Path, **options: Any) -> Any:
    """A network with an adapter that peft made and saved."""
    from peft import LoraConfig, get_peft_model

    usual = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 7, "target_modules": "all-linear"}
    network = get_peft_model(plain(folder), LoraConfig(**{**usual, **options})).eval()
    network.save_pretrained(adapter)
    return network


def logits(policy: SharedModel, role: str, ids: Tensor) -> Tensor:
    layout = TreeLayout([GroupSpan(0, len(ids), ())])
    return policy.next_logits(role, policy.hidden(role, layout, ids))


IDS = torch.tensor(tokens(9, 3))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("Llama", "all-linear"), ("GPT2", "all-linear"), ("Llama", r".*\.1\..*_proj")],
)
def test_an_adapter_adds_what_peft_adds(name: str, layers: str, tmp_path: Path) -> None:
    """Values and gradients, for linear layers and GPT-2's `Conv1D`, all layers or a pattern, after
    other adapters came and went.
    """
    from peft import PeftModel

    folder = make(tmp_path / "base", name)
    policy = shared(folder, lora=LoraSpec(r=2, lora_alpha=7, target_modules=layers))
    for role in ("first", "new", "last"):
        policy.add_role(role)
    policy.drop_role("first")
    policy.drop_role("last")
    parameters = policy.make_trainable("new")
    with torch.no_grad():
        for number, parameter in enumerate(parameters.values()):
            draw = torch.Generator().manual_seed(number)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    policy.save("new", tmp_path / "adapter")
    names = read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"]
    assert names == (sorted(names) if isinstance(names, list) else layers)  # the same bytes always
    model = PeftModel.from_pretrained(plain(folder), tmp_path / "adapter", is_trainable=True)
    assert len(parameters) == len([p for p in model.parameters() if p.requires_grad])
    wanted, found = model(input_ids=IDS[None]).logits[0], logits(policy, "new", IDS)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, logits(policy, UNMODIFIED, IDS))
    for each in (wanted, found):
        torch.log_softmax(each, dim=-1)[:, 5].sum().backward()
    theirs = {key.removeprefix("base_model.model."): p.grad for key, p in model.named_parameters()}
    for key, parameter in parameters.items():
        assert parameter.grad is not None
        gradient = theirs[key.replace(".role_new.", ".default.")]
        torch.testing.assert_close(
            parameter.grad, gradient, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )


REFUSED = yaml.safe_load("""
- [{modules_to_save: [lm_head]}, unknown weight base_model.model.lm_head.weight]
- [{modules_to_save: [input_layernorm]}, weight base_model.model.model.layers.0.input_layernorm]
- [{init_lora_weights: pissa}, "has init_lora_weights pissa, but"]
- [{init_lora_weights: olora}, "has init_lora_weights olora, but"]
- [{alora_invocation_tokens: [7]}, "has alora_invocation_tokens [7], but"]
- [{use_dora: true}, "has use_dora True, but"]
- [{target_modules: [q_proj]}, it lacks the weight base_model.model.model.layers.0.mlp.down_proj]
""")


@pytest.mark.silent_bug(
    "models: adapters",
    "A saved head or norm replaces the base's, which the reference reads, too; or it is left out.",
    "An adapter with other weights than LoRA's is refused.",
    "huggingface/peft#850",
    "huggingface/sentence-transformers#3980",
    "huggingface/transformers#45127",
    "unslothai/unsloth#1971",
)
@pytest.mark.silent_bug(
    "models: adapters",
    "An adapter that began as PiSSA or OLoRA is added to a base that lacks what was subtracted.",
    "It is refused, as is every variant that would be computed as plain LoRA.",
    "huggingface/transformers#34468",
)
@pytest.mark.silent_bug(
    "models: adapters",
    "Weights with unexpected names are dropped, or the scale of rsLoRA is ignored.",
    "What does not fit is refused by name. An adapter that is read keeps its own scale.",
    "huggingface/sentence-transformers#3865",
    "paiml/aprender#2189",
)
@pytest.mark.parametrize(("made", "reason"), REFUSED)
def test_an_adapter_that_would_compute_something_else_is_refused(
    made: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """peft would write a saved head into the base that the reference shares, and ignore what
    another start means.
    """
    folder = make(tmp_path / "base", "Llama")
    by_peft(folder, tmp_path / "adapter", **made)
    with pytest.raises(RunFailed, match=re.escape(reason)):
        shared(folder, lora=LoraSpec(r=2, lora_alpha=7)).add_role(
            "policy", start=tmp_path / "adapter"
        )


@pytest.mark.parametrize(
    "variant",
    [
        "alpha_pattern",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "rank_pattern",
        "use_bdlora",
        "use_qalora",
    ],
)
def test_every_variant_of_lora_is_refused(variant: str, tmp_path: Path) -> None:
    options = {"base_model_name_or_path": "x", variant: {"q_proj": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(RunFailed, match=f"has {variant} "):
        ModelOrigin("x", "x").check(tmp_path)


def test_an_adapter_that_is_read_keeps_its_scale(tmp_path: Path) -> None:
    """An adapter that learns begins with the recipe's."""
    folder = make(tmp_path / "base", "Llama")
    options = {"use_rslora": True, "init_lora_weights": False}
    network = by_peft(folder, tmp_path / "adapter", **options)
    policy = shared(folder, lora=LoraSpec(r=4, lora_alpha=1))
    policy.add_role("policy", start=tmp_path / "adapter")
    wanted = network(input_ids=IDS[None]).logits[0]
    torch.testing.assert_close(logits(policy, "policy", IDS), wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(RunFailed, match=r"another scale than model\.lora"):
        policy.add_role("trained", start="policy")
