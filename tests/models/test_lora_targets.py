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

from alignkit.data.group import Group, Pair
from alignkit.errors import RunFailed
from alignkit.models.packing import Examples, measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.plugins import plugins
from alignkit.settings import LoraSpec, Settings
from alignkit.testing.tiny import add_noise
from alignkit.tokens.encoder import Encoded, ResponseTokens
from alignkit.training.learner import Learner
from tests.models.tiny import shared
from tests.same import same
from tests.training.test_optimizers import named

QUICK = {"Mixtral", "DeepseekV3", "Llama4Text"}  # stacked experts, separate ones, a router
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*MIXTURES, "Llama4Text", "Qwen2Moe")
]
BETA = 0.5  # of DPO, so that its gradient is not small


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


def pairs() -> Examples:
    """Three groups of two responses each, of which the second is better."""
    groups = []
    for number, lengths in enumerate([(5, 3), (2, 7), (4, 4)]):
        said = [tokens(n, 10 * number + r) for r, n in enumerate(lengths)]
        rows = tuple(ResponseTokens(ids, (True,) * len(ids)) for ids in said)
        prompt, group = tokens(4, 99 + number), Group((), id=str(number))
        groups.append(Encoded(group, prompt, rows, (Pair(1, 0),)))
    return Examples(groups)


def step(policy: SharedModel, examples: Examples, algorithm: str, **options: Any) -> Any:
    """The metrics of a step of this algorithm."""
    kind = plugins().get("algorithm", algorithm).implementation
    settings = Settings(optimizer=named("adamw", max_grad_norm=1e9))
    learner = Learner(policy, kind(kind.Options(**options)), settings, "new")
    return learner.step(examples, 0.0)


def sums(model: Any, examples: Examples) -> Tensor:
    """The log-probability of every response, [responses]."""
    with_gradient = logprobs_alone.__wrapped__  # type: ignore[attr-defined]
    alone = [
        with_gradient(model, group.prompt, row.tokens).sum()
        for group in examples.groups
        for row in group.rows
    ]
    return torch.stack(alone)


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
    # peft merges the adapter into some weights, so it rounds differently.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    model.zero_grad()


def check_steps(policy: SharedModel, folder: Path) -> None:
    """A step of SFT and one of DPO have plain peft's losses and gradients."""
    policy.save("new", folder)
    model, examples = plain_peft(folder), pairs()

    sft = step(policy, examples, "sft")
    nll = -sums(model, examples).sum() / sum(len(row.tokens) for row in examples.rows)
    assert sft["loss"] == pytest.approx(float(nll.detach()), abs=1e-5)
    nll.backward()
    check_gradients(policy, model)

    reference = measure(policy, BASE, examples.groups)["logprobs"]
    examples.token_columns["reference_logprobs"] = reference
    dpo = step(policy, examples, "dpo", beta=BETA)
    with torch.no_grad(), model.disable_adapter():
        base = sums(model, examples)
    gain = sums(model, examples) - base
    loss = -torch.nn.functional.logsigmoid(BETA * (gain[1::2] - gain[::2])).mean()
    assert dpo["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    loss.backward()
    check_gradients(policy, model)


@pytest.mark.parametrize("name", FAMILIES)
def test_mixtures_train_like_plain_peft(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with layers that are computed again in the backward pass; and merged, or saved by
    peft, they have the same log-probabilities.
    """
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        policy = loaded(make(tmp_path / "base", name))
    frozen = "also those of dense and shared MLPs: model."
    assert sum(frozen in record.message for record in caplog.records) == 1
    adapted = {name.split(".lora_")[0] for name in policy.parameters_of("new")}
    assert not [layer for layer in adapted if layer.endswith(("experts", "router", ".gate"))]
    assert any("self_attn" in layer for layer in adapted)
    check_steps(policy, tmp_path / "adapter")
    if policy.recomputes:
        with monkeypatch.context() as patch:
            recomputed = recomputed_layers(patch)
            patch.setattr("alignkit.models.memory.total", lambda device: 1.0)
            policy.memory.__dict__.pop("activation_bytes", None)
            check_steps(policy, tmp_path / "again")
        assert recomputed

    model = plain_peft(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "peft")
    merged, groups = model.merge_and_unload(), ragged()
    policy.add_role("again", start=tmp_path / "peft")
    wanted = [logprobs_alone(merged, g.prompt, row.tokens) for g in groups for row in g.rows]
    for role in ("new", "again"):
        found = torch.cat(measure(policy, role, groups)["logprobs"])
        same(found, torch.cat(wanted), atol=1e-5, rtol=0)


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
