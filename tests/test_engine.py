"""What judges, rewards and steps are told by the models of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignkit.data.group import Group, Message, Response
from alignkit.errors import RunFailed
from alignkit.kernels.attention import GroupSpan, TreeLayout, using
from alignkit.models.service import ModelService
from alignkit.models.shared_model import SharedModel
from alignkit.settings import ModelSpec


@pytest.fixture
def engine(tmp_path: Path) -> ModelService:
    import alignkit_tiny

    policy = SharedModel(ModelSpec(base="tiny", dtype="float32", device="cpu"), str(alignkit_tiny.source(tmp_path)))
    return ModelService(policy, lambda reference: tmp_path / reference)


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@torch.no_grad()
def test_next_token_logprobs_are_the_models_own(engine: ModelService, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [asked("is it so?"), asked("is it not so, or is it?"), asked("well?")]
    monkeypatch.setattr(SharedModel, "token_budget", 5)  # several rows, in order
    found = engine.next_token_logprobs("base", prompts, ["1", "2"], prefill="answer=")
    assert found.shape == (3, 2) and found.dtype == torch.float32
    first = [engine.encoder.text(answer)[0] for answer in ("1", "2")]
    for prompt, row in zip(prompts, found, strict=True):
        tokens = torch.tensor([engine.encoder.prompt(prompt) + engine.encoder.text("answer=")])
        with using(TreeLayout([GroupSpan(0, tokens.shape[1], ())])):
            logits = engine.policy.model(input_ids=tokens).logits[0, -1]
        wanted = torch.log_softmax(logits.float(), -1)[first]
        torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)


def test_a_question_longer_than_the_context_has_no_answer(engine: ModelService) -> None:
    """Beyond its context a model gives numbers that mean nothing."""
    long = asked("is it? " * engine.policy.context)
    found = engine.next_token_logprobs("base", [asked("well?"), long, asked("is it so?")], ["1", "2"])
    assert found.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    alone = engine.next_token_logprobs("base", [asked("is it so?")], ["1", "2"])
    torch.testing.assert_close(found[2:], alone, atol=1e-5, rtol=1e-5)
    assert engine.next_token_logprobs("base", [long], ["1", "2"]).isnan().all()
    assert engine.next_token_logprobs("base", [], ["1", "2"]).shape == (0, 2)


def test_answers_that_begin_alike_are_refused(engine: ModelService) -> None:
    with pytest.raises(RunFailed, match="begin with the same token"):
        engine.next_token_logprobs("base", [asked("well?")], ["1", "1"])


def test_what_a_reward_model_does_not_read_to_its_end_is_told(engine: ModelService) -> None:
    said: list[str] = []
    engine.say = said.append
    engine.policy.add_role("judge", head="scalar")
    engine.role = lambda reference: reference  # type: ignore[method-assign]
    long = "well " * engine.max_length
    groups = [
        Group(tuple(asked(text)), (Response(text=answer),)) for text, answer in (("a", "b"), ("c", long), (long, "d"))
    ]
    scores = engine.scores("judge", groups)
    assert [score is None for score in scores] == [False, False, True]
    limit = "the longest sequence it may read, max_length"
    assert said == [
        f"judge: 1 responses are read up to {limit}: 'c'",
        f"judge: 1 groups have no score: their prompts fill {limit}: '{long[:60]}...'",
    ]
    engine.scores("judge", groups[:1])
    assert len(said) == 2


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_five_roles_hold_nothing_but_the_base_and_their_weights(tmp_path: Path, quantization: str) -> None:
    """No copy of anything: the tensors are exactly the base's, the adapters' and the heads'."""
    import alignkit_tiny
    from benchmarks.models import bytes_of

    spec = ModelSpec(base="tiny", dtype="bfloat16", device="cpu", quantization=quantization)  # type: ignore[arg-type]
    policy = SharedModel(spec, str(alignkit_tiny.source(tmp_path)))
    base = bytes_of(policy)
    heads = ("value", "helpful", "safety")
    for role in ("policy", "reference", *heads):
        policy.add_role(role, head="scalar" if role in heads else "language")
    own = [p for role in policy.roles for p in policy.parameters_of(role).values()]
    assert bytes_of(policy) == base + sum(p.numel() * p.element_size() for p in own)
    assert len(own) == 5 * len(policy.parameters_of("policy")) + len(heads)
