"""The loop: normalisers of the global batch, schedules, and promises to algorithms that look at a whole batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Algorithm, Batch, Group, Loss, Outputs, Response, per_response, per_token
from alignkit.batch import filled
from alignkit.errors import RunFailed
from alignkit.kernels import attention
from alignkit.models.encoding import Encoder
from alignkit.models.examples import Examples, join_outputs
from alignkit.models.forward import measure
from alignkit.models.packing import indivisible, micro_batches
from alignkit.models.sampling import Sampling, sample
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.training.learner import Learner
from alignkit.training.schedule import schedule


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


def encoded(policy: SharedModel, count: int, bundles: int = 0) -> Examples:
    encoder = Encoder(policy.tokenizer)
    groups = [
        Group(({"role": "user", "content": f"how are you, {n}?"},), (Response(text="well"),), id=str(n),
              bundle=str(n % bundles) if bundles else None)
        for n in range(count)
    ]  # fmt: skip
    return Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])


def policy(tmp_path: Path) -> SharedModel:
    import alignkit_tiny

    lora = LoraSpec(r=4, lora_alpha=8)
    return SharedModel(
        ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora), str(alignkit_tiny.source(tmp_path))
    )


def test_held_out_data_are_a_batch_of_their_own(tmp_path: Path) -> None:
    """`before_step` sees them all at once, and training goes on with what it knew."""
    model = policy(tmp_path)
    model.add_role("new")
    learner = Learner(model, Whole(Whole.Options()), Settings(), "new")
    learner.step(encoded(model, 3), 1.0)
    assert learner.algorithm.state == {"responses": 3}
    assert learner.evaluate(encoded(model, 5))["seen"] == 5
    assert learner.algorithm.state == {"responses": 3}


def test_memory_that_runs_out_in_held_out_data_leaves_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy(tmp_path)
    model.add_role("new")
    learner = Learner(model, Whole(Whole.Options()), Settings(), "new")
    learner.step(encoded(model, 3), 1.0)
    losses = iter([MemoryError(), *[None] * 9])

    def loss(batch: Batch, out: Outputs) -> Loss:
        if (fault := next(losses)) is not None:
            raise fault
        return Whole.loss(learner.algorithm, batch, out)  # type: ignore[arg-type]

    monkeypatch.setattr(learner.algorithm, "loss", loss)
    assert learner.evaluate(encoded(model, 5))["seen"] == 5
    assert model.memory.halvings == 1
    assert learner.algorithm.state == {"responses": 3}


def test_a_role_that_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    model = policy(tmp_path)
    model.add_role("good.1")
    model.save("good.1", tmp_path / "good")
    for _ in range(2):  # a second try tells the same
        with pytest.raises(FileNotFoundError):
            model.add_role("bad", start=tmp_path / "nowhere")
    assert list(model.roles) == ["base", "good.1"]
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    model.add_role("good_1", start=tmp_path / "good")
    assert model.parameters_of("good_1") and model.parameters_of("good.1")


def test_embeddings_cannot_have_an_adapter(tmp_path: Path) -> None:
    import alignkit_tiny

    spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=LoraSpec(target_modules=["embed_tokens"]))
    with pytest.raises(RunFailed, match="embeddings cannot have an adapter"):
        SharedModel(spec, str(alignkit_tiny.source(tmp_path))).add_role("new")


def test_groups_of_a_bundle_are_one_unit_and_stay_in_one_micro_batch(tmp_path: Path) -> None:
    model = policy(tmp_path)
    apart, together = encoded(model, 6).groups, encoded(model, 6, bundles=2).groups
    assert indivisible([e.group.bundle for e in apart]) == [[n] for n in range(6)]
    assert indivisible([e.group.bundle for e in together]) == [[0, 2, 4], [1, 3, 5]]
    assert list(micro_batches(apart, 1)) == [[n] for n in range(6)]
    assert list(micro_batches(together, 1)) == [[0, 2, 4], [1, 3, 5]]


def test_measured_rows_stand_in_the_order_of_their_groups(tmp_path: Path) -> None:
    """Members of a bundle are packed together; what is measured goes back to where they stand."""
    model = policy(tmp_path)
    words = ("yes", "no, never", "perhaps, who knows?", "well", "it is late, and I am tired")
    encoder = Encoder(model.tokenizer)
    groups = [
        Group(({"role": "user", "content": f"is it {n}?"},), (Response(text=w), Response(text=w + "!")), bundle=bundle)
        for n, (w, bundle) in enumerate(zip(words, ("a", "b", "a", None, "b"), strict=True))
    ]
    whole = [e for group in groups if (e := encoder.encode(group, 200)) is not None]
    assert [len(unit) for unit in indivisible([e.group.bundle for e in whole])] == [2, 2, 1]
    model.add_role("rm", head="scalar")
    for role, what in (("base", "logprobs"), ("rm", "values"), ("rm", "scores")):
        alone = [row for e in whole for row in measure(model, role, [e], what)]
        found = measure(model, role, whole, what)
        assert len(found) == len(alone) == 10
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Enough(Exception):
    pass


@pytest.mark.parametrize("what", ["measured", "sampled"])
def test_a_long_pass_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Before the next micro-batch, or the next token."""
    model = policy(tmp_path)
    monkeypatch.setattr(SharedModel, "token_budget", 1)
    groups, seen = encoded(model, 9).groups, list[int]()

    def stop() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise Enough

    model.should_stop = stop
    with pytest.raises(Enough):
        if what == "measured":
            measure(model, "base", groups, "logprobs")
        else:
            sampling = Sampling(max_new_tokens=50, min_new_tokens=40)
            sample(model, "base", Encoder(model.tokenizer), [e.group for e in groups], sampling, seed=0)
    assert len(seen) == 4


class Weighted(Algorithm):
    """A term whose tokens weigh their place in the response (from 1), and one that counts responses."""

    def term_weights(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return {"late": batch.mask * torch.arange(1.0, batch.mask.shape[1] + 1)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        sums = (out.logprobs * batch.mask).sum(1)
        nll = torch.where(batch.mask, -out.logprobs, float("nan"))  # what does not count may be anything
        return Loss(late=per_token(nll), even=per_token(nll, 2.0), whole=per_response(-sums, 0.5))


def by_hand(model: SharedModel, examples: Examples) -> dict[str, torch.Tensor]:
    """The same terms, one unpadded sequence at a time through the plain model."""
    late, weight, even, tokens, whole = torch.zeros(()), 0, torch.zeros(()), 0, []
    model.model.set_attn_implementation("eager")
    for group in examples.groups:
        for row in group.rows:
            ids = torch.tensor([[*group.prompt, *row.tokens]])
            with model.using_role("new") as network:
                logprobs = network(input_ids=ids).logits[0].log_softmax(-1)
            own = [logprobs[len(group.prompt) - 1 + t, token] for t, token in enumerate(row.tokens)]
            for t, (value, counts) in enumerate(zip(own, row.mask, strict=True)):
                if counts:
                    late, weight = late - (t + 1) * value, weight + t + 1
                    even, tokens = even - value, tokens + 1
            whole.append(-sum(value for value, counts in zip(own, row.mask, strict=True) if counts))
    model.model.set_attn_implementation(attention.NAME)
    terms = {"late": late / weight, "even": even / tokens, "whole": torch.stack(whole).mean()}
    return {**terms, "loss": terms["late"] + 2 * terms["even"] + 0.5 * terms["whole"]}


@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_a_global_batch_has_one_normaliser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """However it is cut into micro-batches: sums over all of it, divided once."""
    model = policy(tmp_path)
    model.add_role("new")
    encoder = Encoder(model.tokenizer)
    said = [("Why?", ("Because.", "I do not know why, nobody does")), ("A colour", ("red",)), ("Hm", ("a b c", "x"))]
    groups = [
        Group(({"role": "user", "content": question},), tuple(Response(text=text) for text in answers), id=question)
        for question, answers in said
    ]
    tokens = encoder.text("not all of these")
    written = tuple(place % 3 != 1 for place in range(len(tokens)))
    groups[1] = replace(groups[1], responses=(Response(text="", tokens=tokens, written=written),))
    examples = Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])
    monkeypatch.setattr(SharedModel, "token_budget", budget)
    learner = Learner(model, Weighted(Weighted.Options()), Settings(), "new")
    for name, parameter in learner.parameters.items():
        if "lora_B" in name:  # zeros at first, which would hide the gradient of the other half
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    wanted = by_hand(model, examples)
    wanted["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    found = learner._gradients(examples)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value.detach()), rel=1e-5), name
    assert gradients.keys() == learner.parameters.keys()
    for name, parameter in learner.parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)
    held_out = learner.evaluate(examples)
    for name, value in wanted.items():
        assert held_out[name] == pytest.approx(float(value.detach()), rel=1e-5), name


def test_outputs_of_micro_batches_are_joined_in_order(tmp_path: Path) -> None:
    model = policy(tmp_path)
    encoder = Encoder(model.tokenizer)
    said = [("a", "bcd"), ("e", "fgh ijk lmn")]
    groups = [Group(({"role": "user", "content": q},), (Response(text=a),), id=q) for q, a in said]
    short, long = (Examples([e]).batch() for g in groups if (e := encoder.encode(g, 200)) is not None)
    n, wide = short.mask.shape[1], long.mask.shape[1]
    assert n < wide
    outs = [Outputs(logprobs=torch.full((1, n), -1.0), values=torch.ones(1, n), scores=torch.tensor([1.0]))]
    outs.append(Outputs(logprobs=torch.full((1, wide), -2.0), values=torch.ones(1, wide), scores=torch.tensor([2.0])))
    joined = join_outputs(outs, [short, long])
    assert joined.logprobs.tolist() == [[-1] * n + [0] * (wide - n), [-2] * wide]
    assert joined.values.tolist() == [[1] * n + [0] * (wide - n), [1] * wide]
    assert joined.scores.tolist() == [1, 2] and "entropy" not in filled(joined)


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
    assert [schedule(kind, step, 4, warmup) for step in range(4)] == pytest.approx(factors)
    assert schedule(kind, 4, 4, 0.25) == pytest.approx(1 if kind == "constant" else 0)


def test_what_is_not_a_number_shows_in_the_validation_loss(tmp_path: Path) -> None:
    model = policy(tmp_path)
    model.add_role("new")
    learner = Learner(model, Whole(Whole.Options()), Settings(), "new")
    groups = encoded(model, 3)
    whole = learner.evaluate(groups)["loss"]
    for parameter in learner.parameters.values():
        parameter.data.fill_(math.nan)
    assert math.isfinite(whole) and math.isnan(learner.evaluate(groups)["loss"])


def test_a_policy_that_has_diverged_does_not_sample(tmp_path: Path) -> None:
    model = policy(tmp_path)
    model.add_role("new")
    for parameter in model.parameters_of("new").values():
        parameter.data.fill_(math.nan)
    group = Group(({"role": "user", "content": "how are you?"},), ())
    for temperature in (0.0, 1.0):
        with pytest.raises(RunFailed, match="training has diverged"):
            sample(model, "new", Encoder(model.tokenizer), [group], Sampling(2, 3, temperature=temperature), seed=0)
