"""The loop: normalizers of the global batch, schedules, and promises to algorithms that look at a
whole batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
import torch
import yaml
from transformers import get_scheduler

import alignkit_plugins.bases.tiny
from alignkit import Algorithm, Batch, Group, Loss, Outputs, Response, per_response, per_token
from alignkit.contract.settings import LoraSpec, ModelSpec, Settings
from alignkit.evaluation.held_out import values_of
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component
from alignkit.kernels import attention
from alignkit.models.packing import Examples
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.references import options_of
from alignkit.testing.examples import encode_all
from alignkit.tokens.encoder import Encoder
from alignkit.training.learner import Learner, schedule
from tests.rows import demos, user


class Whole(Algorithm):
    """Counts the responses of the batch that it is told about before a step."""

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        assert out.logprobs is not None and len(out.logprobs) == len(batch.tokens)
        return {"responses": len(batch.tokens)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        return Loss(nll=per_token(-out.logprobs))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        assert out.logprobs is not None
        return {"seen": per_token(out.logprobs * 0 + self.state["responses"])}


def encoded(policy: SharedModel, count: int) -> Examples:
    groups = demos([f"how are you, {n}?" for n in range(count)])
    return Examples(encode_all(Encoder(policy.tokenizer), groups, 200))


@pytest.fixture
def model(tmp_path: Path) -> SharedModel:
    """The tiny model with a role `new`."""
    lora = LoraSpec(r=4, lora_alpha=8)
    spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora)
    made = SharedModel(spec, str(alignkit_plugins.bases.tiny.source(tmp_path)))
    made.add_role("new")
    return made


def learner_of(model: SharedModel, algorithm: type[Algorithm] = Whole) -> Learner:
    return Learner(model, algorithm(algorithm.Options()), Settings(), "new")


def test_held_out_data_are_a_batch_of_their_own(
    model: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`before_step` sees them all at once, and training goes on with what it knew; also when memory
    runs out.
    """
    learner = learner_of(model)
    learner.step(encoded(model, 3), 1.0)
    assert learner.algorithm.state == {"responses": 3}
    assert learner.evaluate(encoded(model, 5))[0]["seen"] == 5
    losses = Mock(side_effect=[MemoryError(), *[DEFAULT] * 9], wraps=learner.algorithm.loss)
    monkeypatch.setattr(learner.algorithm, "loss", losses)
    assert learner.evaluate(encoded(model, 5))[0]["seen"] == 5
    assert model.memory.halvings == 1
    assert learner.algorithm.state == {"responses": 3}


class Renamed(Whole):
    """Its metrics have names of other numbers."""

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        seven = per_token(out.logprobs.detach() * 0 + 7)
        return {"nll": seven, "loss": seven, "odd": replace(seven, values=seven.values + math.inf)}


def test_a_metric_shows_in_place_of_a_term_but_not_of_the_loss_that_chooses_the_best_epoch(
    model: SharedModel,
) -> None:
    learner, examples = learner_of(model, Renamed), encoded(model, 3)
    loss = learner_of(model).evaluate(examples)[0]["loss"]
    metrics = learner.step(examples, 0.0)
    assert metrics["nll"] == 7 and "skipped" not in metrics
    found = {"nll": 7, "loss": pytest.approx(loss), "odd": math.inf}
    assert learner.evaluate(examples)[0] == found
    for parameter in learner.parameters.values():
        parameter.data.fill_(math.nan)
    assert math.isnan(learner.evaluate(examples)[0]["loss"])


class Weighted(Algorithm):
    """A term whose tokens weigh their place in the response (from 1), and one that counts
    responses.
    """

    def term_weights(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return {"late": batch.mask * torch.arange(1.0, batch.mask.shape[1] + 1)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        sums = (out.logprobs * batch.mask).sum(1)
        # What does not count may be anything
        nll = torch.where(batch.mask, -out.logprobs, float("nan"))
        return Loss(late=per_token(nll), even=per_token(nll, 2.0), whole=per_response(-sums, 0.5))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        return {"seen": per_token(out.logprobs)}


def by_hand(model: SharedModel, examples: Examples) -> dict[str, torch.Tensor]:
    """The same terms, one unpadded sequence at a time through the plain model."""
    sums = []
    model.model.set_attn_implementation("eager")
    for group in examples.groups:
        for response in group.responses:
            ids = torch.tensor([*group.prompt, *response.tokens])
            with model.using_role("new") as network:
                logits = network(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1]
            nll = -logits.log_softmax(-1).gather(1, torch.tensor(response.tokens)[:, None])[:, 0]
            own = torch.tensor(response.mask).float()
            late = own * torch.arange(1, len(own) + 1)
            sums.append(torch.stack([late @ nll, late.sum(), own @ nll, own.sum()]))
    model.model.set_attn_implementation(attention.NAME)
    late, places, even, tokens = torch.stack(sums).sum(dim=0)
    terms = {"late": late / places, "even": even / tokens, "whole": even / len(sums)}
    return {**terms, "loss": terms["late"] + 2 * terms["even"] + 0.5 * terms["whole"]}


@pytest.mark.silent_bug(
    "masks: tools",
    "Tokens that tools wrote count in the loss, or the mask is inverted.",
    "Only the policy's tokens have a gradient.",
    "PeterGriffinJin/Search-R1#21",
    "mll-lab-nu/RAGEN#71",
)
@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_a_global_batch_has_one_normalizer(
    model: SharedModel, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """However it is cut into micro-batches: sums over all of it, divided once. Numbers, for which
    a GPU would have to finish its work, are read of these sums only.
    """
    encoder = Encoder(model.tokenizer)
    said = {"Why?": ["Because.", "I do not know why, nobody does"], "A": [""], "Hm": ["a b c", "x"]}
    groups = [Group((user(each),), tuple(map(Response, said[each])), id=each) for each in said]
    tokens = encoder.text("not all of these")
    written = tuple(place % 3 != 1 for place in range(len(tokens)))
    groups[1] = replace(
        groups[1], responses=(Response(text="", tokens=tokens, action_mask=written),)
    )
    examples = Examples(encode_all(encoder, groups, 200))
    monkeypatch.setattr(SharedModel, "token_budget", budget)
    learner = learner_of(model, Weighted)
    for name, parameter in learner.parameters.items():
        if "lora_B" in name:  # zeros at first, which would hide the gradient of the other half
            draw = torch.Generator().manual_seed(len(name))
            torch.nn.init.normal_(parameter, std=0.02, generator=draw)
    wanted = by_hand(model, examples)
    wanted["loss"].backward()
    plain = {name: p.grad for name, p in learner.parameters.items()}
    for parameter in learner.parameters.values():
        parameter.grad = None
    values = {name: pytest.approx(value.item(), rel=1e-5) for name, value in wanted.items()}
    reads: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("__bool__", "__float__", "__int__", "item", "tolist"):
            original = getattr(torch.Tensor, name)

            def read(x: Any, name: str = name, original: Any = original) -> Any:
                reads.append(name)
                return original(x)

            patch.setattr(torch.Tensor, name, read)
        found = learner._gradients(examples)
    assert reads == ["tolist"] * 4  # denominators, terms, and metrics with their weights
    assert {name: found[name] for name in values} == values
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-4)
    held_out, per_group = learner.evaluate(examples)
    assert {name: held_out[name] for name in values} == values
    each = values_of([per_group])["loss"]  # of each group, however the batch is cut
    assert len(each) == len(examples.groups) and sum(each) / len(each) == values["loss"]


@pytest.mark.parametrize(
    ("kind", "warmup", "factors"),
    [
        ("constant", 0.5, [0.5, 1, 1, 1, 1]),
        ("linear", 0.3, [0.5, 1, 1, 0.5, 0]),  # 1.2 steps are 2
    ],
)
def test_schedules(kind: str, warmup: float, factors: list[float]) -> None:
    settings = Settings(lr_scheduler_type=kind, warmup_ratio=warmup)
    assert [schedule(settings, 1e-3, step, 4) for step in range(5)] == pytest.approx(factors)


def test_warmup_rises_within_a_long_step() -> None:
    """One iteration may be all of the warm-up. A full rate in its first step would be no warm-up at
    all.
    """
    parts = [0.25, 0.5, 0.75, 1.0]
    after = [0.625, 0.75, 0.875, 1.0]
    for warmup, step, wanted in [(0.1, 0, parts), (0.2, 1, after), (0.1, 1, [1.0] * 4)]:
        settings = Settings(lr_scheduler_type="linear", warmup_ratio=warmup)
        found = [schedule(settings, 1e-3, step, 10, part) for part in parts]
        assert found == pytest.approx(wanted)


SCHEDULES = yaml.safe_load("""
- [linear, {}]
- [cosine, {}]
- [cosine, {num_cycles: 1.5}]
- [cosine_with_restarts, {num_cycles: 2}]
- [cosine_with_min_lr, {min_lr: 1.0e-4}]
- [polynomial, {power: 2.0, lr_end: 1.0e-4}]
- [inverse_sqrt, {}]
- [warmup_stable_decay, {num_decay_steps: 4, decay_type: linear}]
- [warmup_stable_decay, {num_decay_steps: 4, num_stable_steps: 2}]
""")


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(("name", "options"), SCHEDULES)
def test_schedules_of_transformers(name: str, options: dict[str, Any], warmup: int) -> None:
    """The rates that transformers' own scheduler sets after the warmup, which rises here without a
    step of rate 0.
    """
    registration = plugins().get("schedule", name)
    component = Component("schedule", name, registration, options_of(registration)(**options))
    settings = Settings(lr_scheduler_type=component, warmup_ratio=warmup / 12)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-3)
    theirs = get_scheduler(name, optimizer, warmup, 12, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(12):
        rates += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    with warnings.catch_warnings(action="error", category=UserWarning):
        found = [2e-3 * schedule(settings, 2e-3, step, 12) for step in range(12)]
    rates[:warmup] = [2e-3 * (step + 1) / warmup for step in range(warmup)]
    assert found == pytest.approx(rates, abs=1e-12)
