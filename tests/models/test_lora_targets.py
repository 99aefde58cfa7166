"""Mixtures of experts: trained with the default LoRA, next to plain peft with the same target
modules.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import MIXTURES, logprobs_alone, make, ragged, tokens
from policies import recomputed_layers
from torch import Tensor

import alignkit_plugins.models.tiny
from alignkit.data.group import Group, Pair
from alignkit.errors import RunFailed
from alignkit.models.packing import Examples, measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.tokens.encoder import Encoded, ResponseTokens
from alignkit.training.learner import Learner
from tests.training.test_optimizers import named

FAMILIES = [*MIXTURES, "Llama4Text", "Qwen2Moe"]
BETA = 0.5  # of DPO, so that its gradient is not small


def loaded(folder: Path, targets: str | list[str] = "all-linear") -> SharedModel:
    """The model with a trainable role `new`, whose adapter is not zero."""
    lora = LoraSpec(r=2, lora_alpha=7, target_modules=targets)
    policy = SharedModel(
        ModelSpec(base=str(folder), dtype="float32", lora=lora, device="cpu"), str(folder)
    )
    policy.add_role("new")
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters_of("new").values()):
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(number)
            )
    return policy


def plain_peft(folder: Path) -> Any:
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(
        folder, is_trainable=True, dtype=torch.float32
    ).eval()


def pairs() -> Examples:
    """Three groups of two responses each, of which the second is better."""
    groups = []
    for number, lengths in enumerate([(5, 3), (2, 7), (4, 4)]):
        rows = tuple(
            ResponseTokens(tokens(n, 10 * number + r), (True,) * n) for r, n in enumerate(lengths)
        )
        groups.append(
            Encoded(Group((), id=str(number)), tokens(4, 99 + number), rows, (Pair(1, 0),))
        )
    return Examples(groups)


def learner(policy: SharedModel, algorithm: str, **options: Any) -> Learner:
    from alignkit.plugins import plugins

    kind = plugins().get("algorithm", algorithm).implementation
    return Learner(
        policy,
        kind(kind.Options(**options)),
        Settings(optimizer=named("adamw", max_grad_norm=1e9)),
        "new",
    )


def sums(model: Any, examples: Examples) -> Tensor:
    """The log-probability of every response, [responses]."""
    return torch.stack(
        [
            logprobs_with_gradient(model, g.prompt, row.tokens).sum()
            for g in examples.groups
            for row in g.rows
        ]
    )


def logprobs_with_gradient(model: Any, prompt: Any, response: Any) -> Tensor:
    with torch.enable_grad():
        return logprobs_alone.__wrapped__(model, prompt, response)  # type: ignore[attr-defined]


def check_gradients(policy: SharedModel, model: Any) -> None:
    theirs = {
        name.removeprefix("base_model.model."): p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    ours = {
        name.replace(".role_new.", ".default."): p.grad
        for name, p in policy.parameters_of("new").items()
    }
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        # peft merges the adapter into some weights, so it rounds differently.
        torch.testing.assert_close(
            gradient, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    model.zero_grad()


def check_steps(policy: SharedModel, folder: Path) -> None:
    """A step of SFT and one of DPO have plain peft's losses and gradients."""
    policy.save("new", folder)
    model = plain_peft(folder)
    examples = pairs()

    sft = learner(policy, "sft").step(examples, 0.0)
    nll = -sums(model, examples).sum() / sum(len(row.tokens) for row in examples.rows)
    assert sft["loss"] == pytest.approx(float(nll.detach()), abs=1e-5)
    nll.backward()
    check_gradients(policy, model)

    examples.token_columns["reference_logprobs"] = measure(policy, BASE, examples.groups)[
        "logprobs"
    ]
    dpo = learner(policy, "dpo", beta=BETA).step(examples, 0.0)
    with torch.no_grad(), model.disable_adapter():
        reference = sums(model, examples)
    gain = sums(model, examples) - reference
    loss = -torch.nn.functional.logsigmoid(BETA * (gain[1::2] - gain[::2])).mean()
    assert dpo["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    loss.backward()
    check_gradients(policy, model)


def check_recomputed_steps(
    policy: SharedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with layers that are computed again in the backward pass."""
    recomputed = recomputed_layers(monkeypatch)
    monkeypatch.setattr("alignkit.models.memory.total", lambda device: 1.0)
    policy.memory.__dict__.pop("activation_bytes", None)
    check_steps(policy, folder)
    assert recomputed


@pytest.mark.parametrize("name", FAMILIES)
def test_mixtures_train_like_plain_peft(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        policy = loaded(make(tmp_path / "base", name))
    frozen = [
        record.message
        for record in caplog.records
        if "also those of dense and shared MLPs: model." in record.message
    ]
    assert len(frozen) == 1
    check_steps(policy, tmp_path / "adapter")
    if policy.recomputes:
        check_recomputed_steps(policy, tmp_path / "again", monkeypatch)
    adapted = {name.split(".lora_")[0] for name in policy.parameters_of("new")}
    assert not [layer for layer in adapted if layer.endswith(("experts", "router", ".gate"))]
    assert any("self_attn" in layer for layer in adapted)


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_mixtures_have_the_same_logits(name: str, tmp_path: Path) -> None:
    """And an adapter that plain peft has saved is read back."""
    policy = loaded(make(tmp_path / "base", name))
    policy.save("new", tmp_path / "adapter")
    model = plain_peft(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "peft")
    merged = model.merge_and_unload()
    policy.add_role("again", start=tmp_path / "peft")
    groups = ragged()
    wanted = torch.cat(
        [logprobs_alone(merged, g.prompt, row.tokens) for g in groups for row in g.rows]
    )
    for role in ("new", "again"):
        torch.testing.assert_close(
            torch.cat(measure(policy, role, groups)["logprobs"]), wanted, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("name", "targets", "kind"),
    [
        ("Llama4Text", ["q_proj", "router"], "Llama4Router"),
        ("Mixtral", ["q_proj", "w1", "w2", "w3"], "MixtralExperts"),
    ],
)
def test_routers_and_stacked_experts_cannot_have_an_adapter(
    name: str, targets: list[str], kind: str, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match=rf"{kind} cannot have an adapter"):
        loaded(make(tmp_path / "base", name), targets)


@pytest.mark.silent_bug(
    "models: adapters",
    "An adapter of a tied head changes the embeddings, too, when it is merged.",
    "It is refused.",
    "huggingface/peft#2244",
)
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_tied_matrices_cannot_have_an_adapter(name: str, tmp_path: Path) -> None:
    """Merged into one of them, it would change both."""
    folder = alignkit_plugins.models.tiny.source(tmp_path)  # whose head is tied
    with pytest.raises(RunFailed, match="cannot have an adapter"):
        loaded(folder, [name])
