"""The models of a run, as rewards, judges and steps see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import logprobs_alone
from tiny import shared, tiny_model, user
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignkit import Context
from alignkit.data.group import Group, Message, Response, responses_of
from alignkit.errors import RunFailed
from alignkit.models.models import LoadedModel
from alignkit.models.shared_model import SharedModel
from alignkit_plugins.ai_feedback.judge import LocalJudge
from tests.by_hand import token_logprobs
from tests.rows import assistant, demos, prompts
from tests.same import same
from tests.sampled import noting, same_start


@pytest.fixture
def models() -> LoadedModel:
    """With a reward model `judge`."""
    made = LoadedModel(tiny_model(), Path)
    made.model.add_role("judge", head="scalar")
    made.role = lambda reference: reference  # type: ignore[method-assign]
    return made


def asked(text: str) -> list[Message]:
    return [user(text)]


@pytest.fixture
def plain(models: LoadedModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(models.model.source).eval()


def test_next_token_logprobs_match_the_models(
    models: LoadedModel, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [asked("is it so?"), asked("is it not so, or is it?"), asked("well?")]
    monkeypatch.setattr(SharedModel, "token_budget", 5)  # several rows, in order
    found = models["base"].next_token_logprobs(questions, ["1", "2"], prefill="answer=")
    assert found.shape == (3, 2) and found.dtype == torch.float32
    encoder = models.encoder
    for question, row in zip(questions, found, strict=True):
        prompt = [*encoder.prompt(question), *encoder.text("answer=")]
        wanted = [logprobs_alone(plain, prompt, encoder.text(answer)[:1]) for answer in "12"]
        same(row, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_a_question_longer_than_the_context_has_no_answer(
    models: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its context a model's numbers are meaningless."""
    long, well, so = (
        asked("is it? " * models.model.context_length),
        asked("well?"),
        asked("is it so?"),
    )

    def answers(*prompts: list[Message]) -> torch.Tensor:
        return models["base"].next_token_logprobs(prompts, ["1", "2"])

    found = answers(well, long, so)
    assert found.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    same(found[2:], answers(so), atol=1e-5, rtol=1e-5)
    assert answers(long).isnan().all() and answers().shape == (0, 2)
    monkeypatch.setattr(SharedModel, "context_length", len(models.encoder.prompt(well)))
    assert answers(well, so).isnan().tolist() == [[False] * 2, [True] * 2]


def test_answers_that_begin_alike_are_refused(models: LoadedModel, tmp_path: Path) -> None:
    judge = LocalJudge(LocalJudge.Options(min_mass=0, scale=(9, 11)))
    judge.prepare(Context(models=models, cache=tmp_path, folder=tmp_path, seed=0, load=list))
    with pytest.raises(RunFailed, match=r"begin with the same token.*\nhelp: set 'reasons: true'"):
        judge.rate([(asked("is it so?"), "It is four.")])


@torch.no_grad()
def test_scores_and_logprobs_are_those_of_plain_transformers(
    models: LoadedModel, plain: Any
) -> None:
    (head,) = (p for name, p in models.model.parameters_of("judge").items() if "lora" not in name)
    head.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(0))
    rows = demos()
    said = [[*group.prompt, assistant(group.responses[0].text)] for group in rows]
    texts = [models.encoder.tokenizer.apply_chat_template(one)["input_ids"] for one in said]
    ids = [torch.tensor([text]) for text in texts]
    source: Any = models.model.source
    scorer = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).eval()
    scorer.score.weight.copy_(head)
    wanted = torch.stack([scorer(one).logits[0, 0] for one in ids])
    assert float(wanted.max() - wanted.min()) > 0.01
    same(torch.tensor(models["judge"].scores(rows)), wanted, atol=1e-5, rtol=1e-5)
    for group, one, found in zip(rows, ids, models["base"].logprobs(rows), strict=True):
        prompt = models.encoder.prompt(group.prompt)
        # The line break after the end of turn is no part of the answer
        logprobs = logprobs_alone(plain, prompt, one[0, len(prompt) : -1].tolist())
        same(found, logprobs, atol=1e-5, rtol=1e-5)
    (hot,) = models["base"].logprobs([group], temperature=2.0)
    logits = plain(one).logits[0, len(prompt) - 1 : -2]
    same(hot, token_logprobs(logits, one[0, len(prompt) : -1], 2.0), atol=1e-5, rtol=1e-5)


def test_truncated_and_unscored_responses_are_reported(models: LoadedModel) -> None:
    said: list[str] = []
    models.say = said.append
    long = "well " * models.max_length
    rows = [
        Group(tuple(asked(text)), (Response(text=answer),))
        for text, answer in (("a", "b"), ("c", long), (long, "d"))
    ]
    found = models["judge"].scores(rows)
    assert [score is None for score in found] == [False, False, True]
    (told,) = said
    assert "judge: at max_length 1 responses were cut" in told and "1 groups have no score" in told
    models["judge"].scores(rows[:1])
    assert len(said) == 1
    for each in rows[1:]:
        models["judge"].scores([each])
    assert [" 1 responses" in told for told in said] == [True, True, False]


def test_a_prompt_without_room_changes_no_other_prompts_samples(models: LoadedModel) -> None:
    """Samples are named by the place of their prompt, so the same run with a shorter prompt draws
    the same others.
    """

    def drawn(middle: str) -> list[Group]:
        three = prompts(["a", middle, "c"])
        return models["base"].sample(three, seed=3, samples_per_prompt=2, max_new_tokens=6)

    with noting():
        found, others = drawn("b"), drawn("well " * models.max_length)
    assert [len(group.responses) for group in others] == [2, 0, 2]
    for one, other in zip(responses_of(found[::2]), responses_of(others[::2]), strict=True):
        start = same_start(one.tokens or (), other.tokens or ())
        wanted = (other.logprobs or ())[:start]
        assert (one.logprobs or ())[:start] == pytest.approx(wanted, abs=1e-5)
    models.max_length = len(models.encoder.prompt(asked("a"))) + 6
    assert [len(group.responses) for group in drawn("b b")] == [2, 0, 2]


def test_long_work_is_shown_with_what_it_is_and_how_much_is_done(
    models: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[int]] = {}

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        shown[what] = [total]
        yield shown[what].append

    models.progress = progress
    three = prompts()
    found = models["base"].sample(three, seed=3, samples_per_prompt=2, max_new_tokens=3)
    models["judge"].scores(found)
    models["base"].logprobs(found)
    monkeypatch.setattr(SharedModel, "token_budget", 5)  # several rows
    models["base"].next_token_logprobs([group.prompt for group in three], ["1", "2"])
    totals = {"sampling from base": 6, "measuring judge": 3, "measuring base": 3, "asking base": 3}
    assert {what: done[0] for what, done in shown.items()} == totals
    # Rises up to the total
    assert all(done[1:] == sorted({*done[1:], done[0]}) for done in shown.values())
    assert len(shown["asking base"]) > 2


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_five_roles_hold_nothing_but_the_base_and_their_weights(quantization: str) -> None:
    """No copies: the tensors are exactly the base's, the adapters', and the heads'."""
    from benchmarks.models import bytes_of

    policy = shared(dtype="bfloat16", quantization=quantization)
    base = bytes_of(policy)
    heads = ("value", "helpful", "safety")
    for role in ("policy", "reference", *heads):
        policy.add_role(role, head="scalar" if role in heads else "language")
    own = [p for role in policy.roles for p in policy.parameters_of(role).values()]
    assert bytes_of(policy) == base + sum(p.nbytes for p in own)
    assert len(own) == 5 * len(policy.parameters_of("policy")) + len(heads)
