"""Sampling: draws, limits, stops and failures. That it writes what transformers writes is in
tests/net.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import encoder_with_ends, questions
from tiny import tiny_model
from torch import Tensor

from alignkit.data.group import Group, Response
from alignkit.errors import DataError, RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.models import generate as decoder
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.gpu import sampling as gpu
from alignkit_plugins.gpu.sampling import StaticDecoding
from tests.sampled import sample
from tests.training.scripted import choosing

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
    found = sample(policy, BASE, encoder_with_ends(policy, ends), groups, sampling, **named)
    return [response for group in found for response in group.responses]


def tokens(responses: Sequence[Response]) -> list[Any]:
    return [response.tokens for response in responses]


@pytest.mark.parametrize("rows", [128, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 5},
        {"temperature": 0},
        {"top_p": 0.8, "top_k": 20},
        {"stop": ["t4", "t9"]},
    ],
    ids=str,
)
def test_samples_drawn_ahead_are_those_drawn_one_by_one(
    options: dict[str, Any],
    rows: int,
    llama: SharedModel,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host looks at 8 tokens at a time, and drops those after the end of a row."""
    sampling, ends = Sampling(max_new_tokens=21, **options), range(1, 6)
    monkeypatch.setattr(decoder, "ROWS", rows)
    one_by_one = written(llama, sampling, ends=ends)
    # Rows end in the middle of 8 tokens
    assert len({len(response.tokens or ()) for response in one_by_one}) > 3
    request.getfixturevalue("as_on_a_gpu")
    looks: list[int] = []
    ahead, stack = gpu.write_ahead, torch.stack

    def spy(decoding: Any, *asked: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "stack", lambda drawn: looks.append(len(drawn)) or stack(drawn))
            return ahead(*asked)

    monkeypatch.setattr(StaticDecoding, "write_ahead", spy)
    for ours, theirs in zip(written(llama, sampling, ends=ends), one_by_one, strict=True):
        assert (ours.tokens, ours.text, ours.truncated) == (
            theirs.tokens,
            theirs.text,
            theirs.truncated,
        )
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    assert max(looks) == gpu.LOOK_EVERY == 8


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


def test_a_prompt_of_tokens_may_hold_a_part_of_the_answer(policy: SharedModel) -> None:
    """What was written so far, and another prompt in between, do not change the rest of a greedy
    answer.
    """
    encoder = Encoder(policy.tokenizer)

    def greedy(prompts: Any, streams: list[list[int]], length: int) -> list[list[Any]]:
        sampling = Sampling(max_new_tokens=length, temperature=0)
        return generate(Generation(policy, BASE, encoder, prompts, streams, sampling))

    prompts = [encoder.prompt(group.prompt) for group in questions(3)]
    whole = [answer for (answer,) in greedy(prompts, [[1]] * 3, 9)]
    begun = [(*prompt, *answer.tokens[:4]) for prompt, answer in zip(prompts, whole, strict=True)]
    found = greedy(begun[::-1], [[7], [8, 9], []], 5)
    assert [len(each) for each in found] == [1, 2, 0]
    for ours, answer in ((found[0], whole[2]), (found[1], whole[1])):
        for one in ours:
            assert one.tokens == answer.tokens[4:] and one.ended == answer.ended
            assert one.logprobs == pytest.approx(answer.logprobs[4:], abs=1e-4)


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "Old log-probabilities are those after filters, such as top_k.",
    "They are the policy's.",
    "huggingface/trl#2358",
)
@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.4}, {"min_new_tokens": 12}])
@pytest.mark.parametrize("rows", [128, 3])
def test_filters_change_the_choice_and_not_the_reported_logprobs(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], rows: int
) -> None:
    monkeypatch.setattr(decoder, "ROWS", rows)
    encoder, sampling = encoder_with_ends(llama, [1]), Sampling(max_new_tokens=12, **filters)
    found = sample(llama, BASE, encoder, questions(8), sampling, samples_per_prompt=2, seed=0)
    encoded = [one for group in found if (one := encoder.encode(group, 64)) is not None]
    policys = torch.cat(measure(llama, BASE, encoded)["logprobs"])
    sampled = [
        x for group in found for response in group.responses for x in response.logprobs or ()
    ]
    torch.testing.assert_close(torch.tensor(sampled), policys, atol=1e-4, rtol=0)


def test_an_empty_prompt_is_an_error(llama: SharedModel) -> None:
    with pytest.raises(DataError, match="cannot sample from an empty prompt"):
        written(llama, groups=[*questions(1), Group(())])


def test_a_sample_does_not_depend_on_its_batch(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(**named: Any) -> list[list[Any]]:
        rows = tokens(written(llama, **named))
        each = named.get("each", 4)
        return [rows[at : at + each] for at in range(0, len(rows), each)]

    every = drawn()
    assert drawn(groups=3) == every[:3]
    assert drawn(each=2) == [rows[:2] for rows in every]
    # Samples of one prompt differ, and so do seeds and places.
    assert all(len(set(rows)) == len(rows) for rows in every)
    assert drawn(seed=6) != every and drawn(path=("b",)) != every
    monkeypatch.setattr(decoder, "ROWS", 3)
    assert drawn() == every


@pytest.mark.parametrize("rows", [128, 7])  # 7 rows differ in length
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_end_before_min_new_tokens(
    llama: SharedModel, rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "ROWS", rows)
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
    assert tokens(written(llama)) == wanted
    assert len(parts) > 2 and max(parts) <= 20  # four times the budget, as without gradients


def test_the_cache_stays_within_its_limit(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, held = 40_000, []
    original = Decoding.update_rows

    def spy(self: Decoding, *given: Any) -> None:
        original(self, *given)
        held.append(sum(x.nbytes for pair in self.cache.values() for x in pair))

    monkeypatch.setattr(decoder, "CACHE_BYTES", bound)
    monkeypatch.setattr(Decoding, "update_rows", spy)
    written(llama, Sampling(max_new_tokens=12), groups=30, each=2)
    assert len(held) > 5 and bound / 3 < max(held) <= bound


def failing(when: Callable[[int], bool], error: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of which the head's logits were computed. when: it raises instead."""
    original, sizes = SharedModel.next_logits, []

    def next_logits(self: SharedModel, name: str, hidden: Tensor) -> Tensor:
        if when(len(hidden)):
            raise RuntimeError(error)
        sizes.append(len(hidden))
        return original(self, name, hidden)

    monkeypatch.setattr(SharedModel, "next_logits", next_logits)
    return sizes


@pytest.mark.parametrize("packs", [True, False])
def test_sampling_that_does_not_fit_is_repeated_with_fewer_rows(
    llama: SharedModel, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "packs", packs)
    if not packs:
        monkeypatch.setattr(llama.model.config, "_attn_implementation", "sdpa")
    wanted, budget = tokens(written(llama)), llama.token_budget
    monkeypatch.setattr(llama.memory, "sampling_halvings", 0)
    out_of_memory = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    sizes = failing(lambda rows: rows > 3, out_of_memory, monkeypatch)
    assert tokens(written(llama)) == wanted
    # Training packs its rows as before
    assert max(sizes) in (2, 3) and llama.token_budget == budget


def test_other_errors_end_sampling(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(lambda rows: True, "sizes do not match", monkeypatch)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        written(llama)


def test_a_gpu_decodes_as_many_rows_as_its_free_memory_holds(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sampling = Encoder(llama.tokenizer), Sampling(max_new_tokens=256)
    request = Generation(llama, BASE, encoder, [(1,) * 256], [[1]], sampling)
    writer = decoder.Decoder(request, lambda: None)
    of_row = decoder.row_bytes(llama.model.config, llama.dtype.itemsize, 256, 256)

    def rows(free: float) -> int:
        monkeypatch.setattr(decoder, "available", lambda device: free)
        return writer.most_rows()

    assert rows(2.0**21) == 2**18 // of_row < 128  # an eighth of little memory
    monkeypatch.setattr(llama, "device", torch.device("cuda"))
    assert rows(0.0) == 1 and rows(2.0**40) == decoder.ROWS_ON_GPU
    assert 2**22 < rows(2.0**24) * of_row < 2**23


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
        assert short.tokens == words and len(short.logprobs or ()) == len(words)
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
@pytest.mark.parametrize(
    ("end", "more"), [("<|im_end|>", []), ("<|pad|>", []), ("<|im_start|>", [1])]
)
def test_every_end_token_ends_a_response(
    tmp_path: Path, end: str, more: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template ends turns with `<|im_end|>`, which is not this tokenizer's EOS. A model may
    have more of them.
    """
    model = tiny_model(tmp_path)
    model.tokenizer.eos_token = "<|pad|>"
    token = model.tokenizer.convert_tokens_to_ids(end)
    encoder, groups = Encoder(model.tokenizer, end_ids=more), questions(1)
    start = len(encoder.prompt(groups[0].prompt))

    def third(ids: Tensor, logits: Tensor) -> Tensor:
        """Write letters, then only `end` from the third token on."""
        wanted = token if ids.shape[1] == start + 2 else 40
        return torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([wanted]), 0.0)

    choosing(monkeypatch, lambda encoder: third)
    (group,) = sample(model, BASE, encoder, groups, Sampling(max_new_tokens=6), seed=0)
    assert group.responses[0].tokens == (40, 40, token) and not group.responses[0].truncated
