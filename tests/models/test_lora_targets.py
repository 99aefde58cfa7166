"""Mixtures of experts: trained with the default LoRA, next to plain peft with the same target
modules.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import MIXTURES, logprobs_of, make, packed_logprobs, ragged
from torch import Tensor

from alignkit.contract.settings import LoraSpec
from alignkit.errors import RunFailed
from alignkit.models.packing import measure
from alignkit.models.shared_model import SharedModel
from alignkit.testing.tiny import add_noise
from tests.models.tiny import shared
from tests.same import same

QUICK = {"Mixtral", "DeepseekV3", "Llama4Text"}  # stacked experts, separate ones, a router
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*MIXTURES, "Llama4Text", "Qwen2Moe")
]


def loaded(folder: Path | None, targets: str | list[str] = "all-linear") -> SharedModel:
    """The model with a trainable role `new`, whose adapter is not zero."""
    policy = shared(folder, lora=LoraSpec(r=2, lora_alpha=7, target_modules=targets))
    policy.add_role("new")
    add_noise(policy, "new", 0.1, seed=0)
    return policy


def plain_peft(folder: Path) -> Any:
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(
        folder, is_trainable=True, dtype=torch.float32
    ).eval()


def by_peft(model: Any) -> Tensor:
    return torch.cat(
        [
            logprobs_of(model, g.prompt, response.tokens)
            for g in ragged()
            for response in g.responses
        ]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_mixtures_train_like_plain_peft(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Log-probabilities and their gradients. Merged, or saved by peft, they have the same
    log-probabilities.
    """
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        policy = loaded(make(tmp_path / "base", name))
    frozen = "also those of dense and shared MLPs: model."
    assert sum(frozen in record.message for record in caplog.records) == 1
    adapted = {name.split(".lora_")[0] for name in policy.parameters_of("new")}
    assert not [layer for layer in adapted if layer.endswith(("experts", "router", ".gate"))]
    assert any("self_attn" in layer for layer in adapted)
    policy.save("new", tmp_path / "adapter")
    model, learned = plain_peft(tmp_path / "adapter"), policy.make_trainable("new")
    named = dict(model.named_parameters())
    theirs = [named[f"base_model.model.{name.replace('role_new', 'default')}"] for name in learned]
    found, wanted = packed_logprobs(policy, "new"), by_peft(model)
    same(found, wanted, atol=1e-5, rtol=0)
    # peft merges the adapter into some weights, so it rounds differently. Divided as in a loss
    tokens, close = len(found), {"atol": 1e-5, "rtol": 1e-5}
    same(found / tokens, wanted / tokens, list(learned.values()), theirs, **close)
    model.save_pretrained(tmp_path / "peft")
    policy.add_role("again", start=tmp_path / "peft")
    wanted = by_peft(model.merge_and_unload())
    for role in ("new", "again"):
        found = torch.cat(measure(policy, role, ragged())["logprobs"])
        same(found, wanted, atol=1e-5, rtol=0)


def test_a_layer_that_a_kernel_reads_has_no_adapter(tmp_path: Path) -> None:
    adapted = loaded(make(tmp_path / "base", "Mamba2")).parameters_of("new")
    assert {name.split(".")[-4] for name in adapted} == {"in_proj"}


@pytest.mark.silent_bug(
    "models: adapters",
    "An adapter of a tied head changes the embeddings, too, when it is merged.",
    "It is refused.",
    "huggingface/peft#2244",
)
@pytest.mark.parametrize(
    ("name", "targets", "kind"),
    [
        ("Llama4Text", ["q_proj", "router"], "Llama4Router"),
        ("Mixtral", ["q_proj", "w1", "w2", "w3"], "MixtralExperts"),
        # The head of tiny is tied: merged into one of them, an adapter would change both
        (None, ["lm_head"], ""),
        (None, ["embed_tokens"], "Embedding"),
    ],
)
def test_routers_experts_and_tied_matrices_cannot_have_an_adapter(
    name: str | None, targets: list[str], kind: str, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match=rf"{kind} cannot have an adapter"):
        loaded(make(tmp_path / "base", name) if name else None, targets)
