"""Sampling: draws, limits, stops and failures. That it writes what transformers writes is in
tests/net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from architectures import encoder_with_ends, questions
from tiny import encoder as tiny_encoder
from tiny import tiny_model
from torch import Tensor

from alignkit.contract.settings import Sampling
from alignkit.data.group import Group, Response, responses_of
from alignkit.errors import DataError, RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.models import generate as decoder
from alignkit.models.generate import SamplingRequest, generate
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.tokens.encoder import Encoder
from tests.sampled import assert_same_tokens, noting, same_start, sample

TEN = Sampling(max_new_tokens=10)


def written(
    policy: SharedModel,
    sampling: Sampling = TEN,
    groups: Sequence[Group] | int = 10,
    ends: Sequence[int] = range(1, 12),
    each: int = 4,
    **named: Any,
) -> list[Response]:
    """Responses to questions, or to these groups. each: of one prompt."""
    groups = questions(groups) if isinstance(groups, int) else groups
    named = {"seed": 7, "samples_per_prompt": each, **named}
    found = sample(policy, UNMODIFIED, encoder_with_ends(policy, ends), groups, sampling, **named)
    return responses_of(found)


def tokens(responses: Sequence[Response]) -> list[Any]:
    return [response.tokens for response in responses]


OPTIONS = yaml.safe_load("""
- {}
- {min_new_tokens: 5}
- {temperature: 0}
- {top_p: 0.8, top_k: 20}
- {stop: [t4, t9]}
""")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_samples_drawn_ahead_are_those_drawn_one_by_one(
    options: dict[str, Any],
    llama: SharedModel,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host looks at 8 tokens at a time, and drops those after the end of a response."""
    sampling, ends = Sampling(max_new_tokens=21, **options), range(1, 6)
    monkeypatch.setattr(decoder, "SLOTS", 7)
    one_by_one = written(llama, sampling, ends=ends)
    # Rows end in the middle of 8 tokens
    assert len({len(response.tokens or ()) for response in one_by_one}) > 3
    request.getfixturevalue("as_on_a_gpu")
    ahead = written(llama, sampling, ends=ends)
    starts = assert_same_tokens(ahead, one_by_one)
    for ours, theirs, start in zip(ahead, one_by_one, starts, strict=True):
        wanted = theirs.logprobs[:start]
        assert ours.logprobs[:start] == pytest.approx(wanted, abs=1e-5)
        if start == len(ours.tokens):
            assert replace(ours, logprobs=theirs.logprobs) == theirs


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_that_has_diverged_does_not_sample(
    llama: SharedModel,
    ahead: bool,
    temperature: float,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ahead:
        request.getfixturevalue("as_on_a_gpu")
    weight = llama.model.get_output_embeddings().weight
    monkeypatch.setattr(weight, "data", torch.full_like(weight, float("nan")))
    with pytest.raises(RunFailed, match="training has diverged"):
        written(llama, Sampling(max_new_tokens=3, temperature=temperature), groups=2)


def test_a_prompt_of_tokens_may_hold_a_part_of_the_answer(llama: SharedModel) -> None:
    """What was written so far, and another prompt in between, do not change the rest of a greedy
    answer.
    """
    encoder, near = Encoder(llama.tokenizer), partial(pytest.approx, abs=1e-4)

    def greedy(prompts: Any, streams: list[list[int]], length: int) -> list[list[Any]]:
        sampling = Sampling(max_new_tokens=length, temperature=0)
        with noting():
            return generate(SamplingRequest(llama, UNMODIFIED, encoder, prompts, streams, sampling))

    prompts = [encoder.prompt(group.prompt) for group in questions(3)]
    whole = [answer for (answer,) in greedy(prompts, [[1]] * 3, 9)]
    begun = [(*prompt, *answer.tokens[:4]) for prompt, answer in zip(prompts, whole, strict=True)]
    found = greedy(begun[::-1], [[7], [8, 9], []], 5)
    for each, answer in zip(found, (whole[2:], whole[1:2] * 2, []), strict=True):
        for one, other in zip(each, answer, strict=True):
            start = same_start((*other.tokens[:4], *one.tokens), other.tokens)
            assert one.logprobs[: start - 4] == near(other.logprobs[4:start])


def test_an_empty_prompt_is_an_error(llama: SharedModel) -> None:
    with pytest.raises(DataError, match="cannot sample from an empty prompt"):
        written(llama, groups=[*questions(1), Group(())])


def test_a_sample_does_not_depend_on_its_batch(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(**named: Any) -> list[Any]:
        return tokens(written(llama, **named))

    every = drawn()  # 4 of each of 10 prompts
    assert_same_tokens(drawn(groups=3), every[: 3 * 4])
    assert_same_tokens(drawn(each=2), [row for n, row in enumerate(every) if n % 4 < 2])
    # Samples of one prompt differ, and so do seeds and places.
    assert all(len(set(every[at : at + 4])) == 4 for at in range(0, len(every), 4))
    assert drawn(seed=6) != every and drawn(path=("b",)) != every
    monkeypatch.setattr(decoder, "SLOTS", 3)
    assert_same_tokens(drawn(), every)


@pytest.mark.parametrize("slots", [128, 7])  # 7 slots differ in length
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_end_before_min_new_tokens(
    llama: SharedModel, slots: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "SLOTS", slots)
    ends = range(1, 90)
    sampling = Sampling(max_new_tokens=6, min_new_tokens=3, temperature=temperature)
    found = tokens(written(llama, sampling, groups=5, ends=ends))
    assert not any(set(row[:3]) & set(ends) or set(row[:-1]) & set(ends) for row in found)
    assert min(map(len, found)) == 4


def test_prompts_are_prefilled_within_the_token_budget(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tokens(written(llama))
    monkeypatch.setattr(SharedModel, "token_budget", property(lambda self: 5))
    parts: list[int] = []
    original = SharedModel.hidden

    def spy(self: SharedModel, name: str, packed: TreeLayout, ids: Tensor) -> Tensor:
        parts.append(len(ids))
        return original(self, name, packed, ids)

    monkeypatch.setattr(SharedModel, "hidden", spy)
    assert_same_tokens(written(llama), wanted)
    assert len(parts) > 2 and 10 < max(parts) <= 20  # four times the budget, as without gradients


def test_the_cache_stays_within_its_limit(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, held = 40_000, []
    original = Decoding.update_slots

    def spy(self: Decoding, *given: Any) -> None:
        original(self, *given)
        held.append(sum(x.nbytes for pair in self.cache.values() for x in pair))

    monkeypatch.setattr(decoder, "CACHE_BYTES", bound)
    monkeypatch.setattr(Decoding, "update_slots", spy)
    written(llama, Sampling(max_new_tokens=12), groups=30, each=2)
    assert len(held) > 5 and bound / 3 < max(held) <= bound


@pytest.mark.parametrize("packs", [True, False])
def test_sampling_that_does_not_fit_is_repeated_with_fewer_slots(
    llama: SharedModel, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "packs", packs)
    if not packs:
        monkeypatch.setattr(llama.model.config, "_attn_implementation", "sdpa")
    wanted, budget = tokens(written(llama)), llama.token_budget
    monkeypatch.setattr(llama.memory, "sampling_halvings", 0)
    original, sizes = SharedModel.next_logits, []

    def next_logits(self: SharedModel, name: str, hidden: Tensor) -> Tensor:
        if len(hidden) > 3:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
        sizes.append(len(hidden))
        return original(self, name, hidden)

    monkeypatch.setattr(SharedModel, "next_logits", next_logits)
    assert_same_tokens(written(llama), wanted)
    # Training packs as before
    assert max(sizes) in (2, 3) and llama.token_budget == budget


def test_a_gpu_decodes_as_many_slots_as_its_free_memory_holds(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sampling = Encoder(llama.tokenizer), Sampling(max_new_tokens=256)
    request = SamplingRequest(llama, UNMODIFIED, encoder, [(1,) * 256], [[1]], sampling)
    writer = decoder.Decoder(request, print)
    of_slot = decoder.slot_bytes(llama.model.config, llama.dtype.itemsize, 256, 256)
    assert of_slot == 2 * (2 * 2 * 8 * 4) * (256 + 2 * 256)

    def slots(free: float) -> int:
        monkeypatch.setattr(decoder, "available", lambda device: free)
        return writer.most_slots()

    assert slots(2.0**21) == 2**18 // of_slot < 128  # an eighth of little memory
    monkeypatch.setattr(llama, "device", torch.device("cuda"))
    assert slots(0.0) == 1 and slots(2.0**40) == decoder.SLOTS_ON_GPU
    logits = 6 * 4 * llama.model.config.vocab_size  # six copies in fp32
    assert 2**22 < slots(2.0**24) * of_slot < 2**23
    assert slots(2.0**28) == 2**27 // (of_slot + logits) < 2**27 // (of_slot + 24)


@pytest.mark.silent_bug(
    "sampling: stop strings",
    "Tokens are added after a stop string, or trimmed, and no longer match their "
    "log-probabilities.",
    "Each sampled token stays, with its log-probability, and none is added.",
    "allenai/open-instruct#1041",
    "NVIDIA/TensorRT-LLM#18190",
)
def test_a_stop_string_ends_a_response_and_stays_in_it(llama: SharedModel) -> None:
    free = written(llama, Sampling(max_new_tokens=12), groups=8, ends=[1], each=2, seed=2)
    stops = (" ".join(free[0].text.split()[4:6]), free[3].text.split()[7])
    stopped = Sampling(max_new_tokens=12, stop=stops)
    found = written(llama, stopped, groups=8, ends=[1], each=2, seed=2)
    decode, cut = Encoder(llama.tokenizer).decode, 0
    for long, short in zip(free, found, strict=True):
        words = (long.tokens or ())[: len(short.tokens or ())]
        if same_start(short.tokens or (), words) < len(words):
            continue
        assert len(short.logprobs or ()) == len(words)
        assert not any(stop in decode(words[:-1]) for stop in stops)
        if words != long.tokens:
            assert any(stop in short.text for stop in stops) and not short.truncated
            cut += 1
    assert cut >= 2


@pytest.mark.silent_bug(
    "sampling: end tokens",
    "Only one of several end tokens counts, and other responses run on or count as cut off.",
    "Every end token of the model and the template ends a response.",
    "huggingface/trl#7039",
)
def test_every_end_token_ends_a_response() -> None:
    """The template ends turns with `<|im_end|>`, which is not this tokenizer's EOS. A model may
    have more of them.
    """
    model = tiny_model()
    model.tokenizer.eos_token = "<|pad|>"
    encoder, sampling = Encoder(model.tokenizer, end_ids=[1]), Sampling(max_new_tokens=200)
    ends = set(model.tokenizer.convert_tokens_to_ids(["<|pad|>", "<|im_start|>", "<|im_end|>"]))
    found = sample(model, UNMODIFIED, encoder, questions(8), sampling, samples_per_prompt=4, seed=0)
    ended = set()
    for response in responses_of(found):
        *before, last = response.tokens or ()
        assert not ends & {*before} and response.truncated == (last not in ends)
        ended.add(last)
    assert ended > ends


def test_a_stop_string_may_have_more_than_32_tokens(llama: SharedModel) -> None:
    encoder, ids = Encoder(llama.tokenizer), list(range(20, 70))
    stop = encoder.decode(ids[5:45])
    assert decoder.has_stopped(encoder, ids, [stop])
    assert not decoder.has_stopped(encoder, ids[:44], [stop])
    made, faces = tiny_encoder(), "🙂" * 12  # of four tokens each
    assert decoder.has_stopped(made, made.text(f"a{faces}b"), ["never", faces])
