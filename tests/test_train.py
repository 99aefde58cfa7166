"""The loop's promises to algorithms that look at a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit import Algorithm, Batch, Group, Loss, Outputs, Response, per_token
from alignkit.batch import Encoder, Examples, micro_batches, units
from alignkit.policy import Policy
from alignkit.recipe import LoraSpec, ModelSpec, Settings
from alignkit.train import Learner


class Whole(Algorithm):
    """Counts the responses of the batch that it is told about before a step."""

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        assert out.logprobs is not None and len(out.logprobs) == len(batch.tokens)
        return {"responses": len(batch.tokens)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None
        return Loss(nll=per_token(-out.logprobs))

    def report(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        assert out.logprobs is not None
        return {"seen": per_token(out.logprobs * 0 + self.state["responses"])}


def encoded(policy: Policy, count: int, bundles: int = 0) -> Examples:
    encoder = Encoder(policy.tokenizer)
    groups = [
        Group(({"role": "user", "content": f"how are you, {n}?"},), (Response(text="well"),), id=str(n),
              bundle=str(n % bundles) if bundles else None)
        for n in range(count)
    ]  # fmt: skip
    return Examples([e for group in groups if (e := encoder.encode(group, 200)) is not None])


def policy(tmp_path: Path) -> Policy:
    import alignkit_tiny

    lora = LoraSpec(r=4, lora_alpha=8)
    return Policy(ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora), str(alignkit_tiny.source(tmp_path)))


def test_held_out_data_are_a_batch_of_their_own(tmp_path: Path) -> None:
    """`before_step` sees them all at once, and training goes on with what it knew."""
    model = policy(tmp_path)
    model.add_role("new")
    learner = Learner(model, Whole(Whole.Options()), Settings(), "new")
    learner.step(encoded(model, 3), 1.0)
    assert learner.algorithm.state == {"responses": 3}
    assert learner.evaluate(encoded(model, 5))["seen"] == 5
    assert learner.algorithm.state == {"responses": 3}


def test_groups_of_a_bundle_are_one_unit_and_stay_in_one_micro_batch(tmp_path: Path) -> None:
    model = policy(tmp_path)
    apart, together = encoded(model, 6).groups, encoded(model, 6, bundles=2).groups
    assert units(apart) == [[n] for n in range(6)]
    assert units(together) == [[0, 2, 4], [1, 3, 5]]
    assert list(micro_batches(apart, 1)) == [[n] for n in range(6)]
    assert list(micro_batches(together, 1)) == [[0, 2, 4], [1, 3, 5]]
