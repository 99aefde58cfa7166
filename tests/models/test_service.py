"""The models of a run, as rewards, judges and steps see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.data.group import Group, Message, Response
from alignkit.errors import RunFailed
from alignkit.kernels.attention import TreeLayout, using
from alignkit.kernels.layout import GroupSpan
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.settings import ModelSpec


@pytest.fixture
def models(tmp_path: Path) -> LoadedBase:
    import alignkit_plugins.models.tiny

    model = SharedModel(
        ModelSpec(base="tiny", dtype="float32", device="cpu"),
        str(alignkit_plugins.models.tiny.source(tmp_path)),
    )
    return LoadedBase(model, lambda reference: tmp_path / reference)


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@torch.no_grad()
def test_next_token_logprobs_match_the_models(
    models: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [asked("is it so?"), asked("is it not so, or is it?"), asked("well?")]
    monkeypatch.setattr(SharedModel, "token_budget", 5)  # several rows, in order
    found = models["base"].next_token_logprobs(prompts, ["1", "2"], prefill="answer=")
    assert found.shape == (3, 2) and found.dtype == torch.float32
    first = [models.encoder.text(answer)[0] for answer in ("1", "2")]
    for prompt, row in zip(prompts, found, strict=True):
        tokens = torch.tensor([models.encoder.prompt(prompt) + models.encoder.text("answer=")])
        with using(TreeLayout([GroupSpan(0, tokens.shape[1], ())])):
            logits = models.model.model(input_ids=tokens).logits[0, -1]
        wanted = torch.log_softmax(logits.float(), -1)[first]
        torch.testing.assert_close(row, wanted, atol=1e-5, rtol=1e-5)


def test_a_question_longer_than_the_context_has_no_answer(models: LoadedBase) -> None:
    """Beyond its context a model's numbers are meaningless."""
    long = asked("is it? " * models.model.context)
    found = models["base"].next_token_logprobs(
        [asked("well?"), long, asked("is it so?")], ["1", "2"]
    )
    assert found.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    alone = models["base"].next_token_logprobs([asked("is it so?")], ["1", "2"])
    torch.testing.assert_close(found[2:], alone, atol=1e-5, rtol=1e-5)
    assert models["base"].next_token_logprobs([long], ["1", "2"]).isnan().all()
    assert models["base"].next_token_logprobs([], ["1", "2"]).shape == (0, 2)


def test_answers_that_begin_alike_are_refused(models: LoadedBase) -> None:
    with pytest.raises(RunFailed, match="begin with the same token"):
        models["base"].next_token_logprobs([asked("well?")], ["1", "1"])


def test_truncated_and_unscored_responses_are_reported(models: LoadedBase) -> None:
    said: list[str] = []
    models.say = said.append
    models.model.add_role("judge", head="scalar")
    models.role = lambda reference: reference  # type: ignore[method-assign]
    long = "well " * models.max_length
    groups = [
        Group(tuple(asked(text)), (Response(text=answer),))
        for text, answer in (("a", "b"), ("c", long), (long, "d"))
    ]
    scores = models["judge"].scores(groups)
    assert [score is None for score in scores] == [False, False, True]
    assert said == [
        (
            "judge: at max_length 1 responses were cut before scoring, and 1 groups have no "
            "score, because their prompts fill it"
        )
    ]
    models["judge"].scores(groups[:1])
    assert len(said) == 1


def test_a_prompt_without_room_changes_no_other_prompts_samples(models: LoadedBase) -> None:
    """Samples are named by the place of their prompt, so the same run with a shorter prompt draws
    the same others.
    """
    long = "well " * models.max_length
    found = [
        models["base"].sample(
            [Group(tuple(asked(text))) for text in ("a", middle, "c")],
            seed=3,
            samples_per_prompt=2,
            max_new_tokens=6,
        )
        for middle in ("b", long)
    ]
    assert [len(group.responses) for group in found[1]] == [2, 0, 2]
    for index in (0, 2):
        for one, other in zip(found[0][index].responses, found[1][index].responses, strict=True):
            assert one.tokens == other.tokens
            # Some processors round by the batch's size
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_long_work_is_shown_with_what_it_is_and_how_much_is_done(
    models: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[int]] = {}

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        shown[what] = [total]
        yield shown[what].append

    models.progress = progress
    models.model.add_role("judge", head="scalar")
    models.role = lambda reference: reference  # type: ignore[method-assign]
    prompts = [asked("a"), asked("b"), asked("c")]
    groups = models["base"].sample(
        [Group(tuple(prompt)) for prompt in prompts], seed=3, samples_per_prompt=2, max_new_tokens=3
    )
    models["judge"].scores(groups)
    models["base"].logprobs(groups)
    monkeypatch.setattr(SharedModel, "token_budget", 5)  # several rows
    models["base"].next_token_logprobs(prompts, ["1", "2"])
    totals = {"sampling from base": 6, "measuring judge": 3, "measuring base": 3, "asking base": 3}
    assert {what: done[0] for what, done in shown.items()} == totals
    # Rises up to the total
    assert all(done[1:] == sorted({*done[1:], done[0]}) for done in shown.values())
    assert len(shown["asking base"]) > 2


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_five_roles_hold_nothing_but_the_base_and_their_weights(
    tmp_path: Path, quantization: str
) -> None:
    """No copies: the tensors are exactly the base's, the adapters', and the heads'."""
    import alignkit_plugins.models.tiny
    from benchmarks.models import bytes_of

    spec = ModelSpec(base="tiny", dtype="bfloat16", device="cpu", quantization=quantization)  # type: ignore[arg-type]
    policy = SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path)))
    base = bytes_of(policy)
    heads = ("value", "helpful", "safety")
    for role in ("policy", "reference", *heads):
        policy.add_role(role, head="scalar" if role in heads else "language")
    own = [p for role in policy.roles for p in policy.parameters_of(role).values()]
    assert bytes_of(policy) == base + sum(p.numel() * p.element_size() for p in own)
    assert len(own) == 5 * len(policy.parameters_of("policy")) + len(heads)


def sentencepiece_models(folder: Path, kind: str) -> LoadedBase:
    """A random model with a SentencePiece tokenizer, which writes a space before the first word of
    a text.
    """
    import family_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = family_tokenizers.tokenizer(kind, bos="<s>", eos="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SharedModel(ModelSpec(base=str(folder), dtype="float32", device="cpu"), str(folder))
    return LoadedBase(model, lambda reference: folder / reference)


@pytest.mark.parametrize("kind", ["spm_legacy", "spm_first", "unigram"])
def test_a_local_judge_needs_no_other_answers_with_sentencepiece(kind: str, tmp_path: Path) -> None:
    from alignkit import Context
    from alignkit_plugins.ai_feedback.judge import LocalJudge

    models = sentencepiece_models(tmp_path, kind)
    items = [(asked("is it so?"), "It is four.", "It is five.")]

    def judge(**options: Any) -> LocalJudge:
        made = LocalJudge(LocalJudge.Options(min_mass=0, **options))
        made.prepare(Context(models=models, cache=tmp_path, folder=tmp_path, seed=0, load=list))
        return made

    (verdict,) = judge().compare(items)
    assert verdict.p_first is not None and verdict.mass > 0
    rated = [item[:2] for item in items]
    advice = r"begin with the same token; choose others\nhelp: set 'reasons: true'"
    with pytest.raises(RunFailed, match=advice):
        judge(scale=(10, 11)).rate(rated)
    assert judge(scale=(1, 5)).rate(rated)[0].score is not None
