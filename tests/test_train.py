"""The loop: normalizers of the global batch, schedules, and promises to algorithms that look at a
whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

import alignkit_plugins.models.tiny
from alignkit import Algorithm, Batch, Group, Loss, Outputs, Response, per_response, per_token
from alignkit.evaluation.held_out import values_of
from alignkit.kernels import attention
from alignkit.models.packing import Examples
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins
from alignkit.recipe.references import options_of
from alignkit.registry import Component
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.tokens.encoder import Encoder
from alignkit.training.learner import Learner, schedule
from tests.rows import user


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
    encoder = Encoder(policy.tokenizer)
    groups = [
        Group((user(f"how are you, {n}?"),), (Response(text="well"),), id=str(n))
        for n in range(count)
    ]
    return Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])


@pytest.fixture
def model(tmp_path: Path) -> SharedModel:
    """The tiny model with a role `new`."""
    lora = LoraSpec(r=4, lora_alpha=8)
    spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora)
    made = SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path)))
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
    faults = iter([MemoryError(), *[None] * 9])
    loss = learner.algorithm.loss

    def failing(batch: Batch, out: Outputs) -> Loss:
        if (fault := next(faults)) is not None:
            raise fault
        return loss(batch, out)

    monkeypatch.setattr(learner.algorithm, "loss", failing)
    assert learner.evaluate(encoded(model, 5))[0]["seen"] == 5
    assert model.memory.halvings == 1
    assert learner.algorithm.state == {"responses": 3}


class Renamed(Whole):
    """Its metrics have names of other numbers."""

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        return {name: per_token(out.logprobs.detach() * 0 + 7) for name in ("nll", "loss")}


def test_a_metric_shows_in_place_of_a_term_but_not_of_the_loss_that_chooses_the_best_epoch(
    model: SharedModel,
) -> None:
    learner, examples = learner_of(model, Renamed), encoded(model, 3)
    loss = learner_of(model).evaluate(examples)[0]["loss"]
    assert learner.step(examples, 0.0)["nll"] == 7
    assert learner.evaluate(examples)[0] == {"nll": 7, "loss": pytest.approx(loss)}


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


def by_hand(model: SharedModel, examples: Examples) -> dict[str, torch.Tensor]:
    """The same terms, one unpadded sequence at a time through the plain model."""
    late, even, whole = [], [], []
    places = 0
    model.model.set_attn_implementation("eager")
    for group in examples.groups:
        for row in group.rows:
            ids = torch.tensor([[*group.prompt, *row.tokens]])
            with model.using_role("new") as network:
                logprobs = network(input_ids=ids).logits[0].log_softmax(-1)
            own = [logprobs[len(group.prompt) - 1 + t, token] for t, token in enumerate(row.tokens)]
            counted = [(t + 1, -own[t]) for t, counts in enumerate(row.mask) if counts]
            late += [place * nll for place, nll in counted]
            places += sum(place for place, _ in counted)
            even += [nll for _, nll in counted]
            whole.append(sum(nll for _, nll in counted))
    model.model.set_attn_implementation(attention.NAME)
    terms = {
        "late": torch.stack(late).sum() / places,
        "even": torch.stack(even).mean(),
        "whole": torch.stack(whole).mean(),
    }
    return {**terms, "loss": terms["late"] + 2 * terms["even"] + 0.5 * terms["whole"]}


@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_a_global_batch_has_one_normalizer(
    model: SharedModel, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """However it is cut into micro-batches: sums over all of it, divided once."""
    encoder = Encoder(model.tokenizer)
    said = [
        ("Why?", ("Because.", "I do not know why, nobody does")),
        ("A colour", ("red",)),
        ("Hm", ("a b c", "x")),
    ]
    groups = [
        Group((user(question),), tuple(map(Response, answers)), id=question)
        for question, answers in said
    ]
    tokens = encoder.text("not all of these")
    written = tuple(place % 3 != 1 for place in range(len(tokens)))
    groups[1] = replace(groups[1], responses=(Response(text="", tokens=tokens, written=written),))
    examples = Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])
    monkeypatch.setattr(SharedModel, "token_budget", budget)
    learner = learner_of(model, Weighted)
    for name, parameter in learner.parameters.items():
        if "lora_B" in name:  # zeros at first, which would hide the gradient of the other half
            torch.nn.init.normal_(
                parameter, std=0.02, generator=torch.Generator().manual_seed(len(name))
            )
    wanted = by_hand(model, examples)
    wanted["loss"].backward()
    gradients = {
        name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None
    }
    found = learner._gradients(examples)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value.detach()), rel=1e-5), name
    assert gradients.keys() == learner.parameters.keys()
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)
    held_out, per_group = learner.evaluate(examples)
    for name, value in wanted.items():
        assert held_out[name] == pytest.approx(float(value.detach()), rel=1e-5), name
    values = values_of([per_group])["loss"]  # of each group, however the batch is cut
    assert len(values) == len(examples.groups)
    assert sum(values) / len(values) == pytest.approx(float(wanted["loss"].detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "warmup", "factors"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.25, [1, 1, 2 / 3, 1 / 3]),
        ("linear", 0.3, [0.5, 1, 1, 0.5]),  # 1.2 steps are 2
        ("cosine", 0.0, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("cosine", 0.5, [0.5, 1, 1, 0.5]),
    ],
)
def test_schedules(kind: str, warmup: float, factors: list[float]) -> None:
    settings = Settings(lr_scheduler_type=kind, warmup_ratio=warmup)
    assert [schedule(settings, 1e-3, step, 4) for step in range(4)] == pytest.approx(factors)
    settings = Settings(lr_scheduler_type=kind, warmup_ratio=0.25)
    assert schedule(settings, 1e-3, 4, 4) == pytest.approx(1 if kind == "constant" else 0)


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


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {"num_cycles": 1.5}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", {"min_lr": 1e-4}),
        ("polynomial", {"power": 2.0, "lr_end": 1e-4}),
        ("inverse_sqrt", {}),
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"}),
        ("warmup_stable_decay", {"num_decay_steps": 4, "num_stable_steps": 2}),
    ],
)
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
    found = [2e-3 * schedule(settings, 2e-3, step, 12) for step in range(12)]
    rates[:warmup] = [2e-3 * (step + 1) / warmup for step in range(warmup)]
    assert found == pytest.approx(rates, abs=1e-12)


def test_what_is_not_a_number_shows_in_the_validation_loss(model: SharedModel) -> None:
    learner = learner_of(model)
    groups = encoded(model, 3)
    whole = learner.evaluate(groups)[0]["loss"]
    for parameter in learner.parameters.values():
        parameter.data.fill_(math.nan)
    assert math.isfinite(whole) and math.isnan(learner.evaluate(groups)[0]["loss"])
