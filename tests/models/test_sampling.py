"""Sampling: draws, limits, stops and failures. That it writes what transformers writes is in
tests/net.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import encoder_with_ends, questions
from tiny import tiny_model
from torch import Tensor

from alignkit.data.group import Group
from alignkit.errors import DataError, RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.models import generate as decoder
from alignkit.models import generate as row_batch
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import pack
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.gpu import sampling as gpu
from alignkit_plugins.gpu.sampling import StaticDecoding
from tests.sampled import sample
from tests.training.scripted import choosing


@pytest.mark.parametrize("rows", [128, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"min_new_tokens": 5}, {"temperature": 0}, {"top_p": 0.8, "top_k": 20}, {"stop": ["t4", "t9"]}],
    ids=["plain", "minimum", "greedy", "filtered", "stops"],
)  # fmt: skip
def test_samples_drawn_ahead_are_those_drawn_one_by_one(
    options: dict[str, Any], rows: int, llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host looks at 8 tokens at a time, and drops those after the end of a row."""
    groups, encoder = questions(10), encoder_with_ends(llama, range(1, 6))
    sampling = Sampling(max_new_tokens=21, **options)
    monkeypatch.setattr(decoder, "ROWS", rows)

    def drawn() -> list[Any]:
        found = sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=4, seed=3)
        return [response for group in found for response in group.responses]

    one_by_one = drawn()
    # Rows end in the middle of 8 tokens
    assert len({len(response.tokens) for response in one_by_one}) > 3
    looks: list[int] = []
    original, ahead = torch.stack, gpu.write_ahead

    def spy(decoding: Any, *asked: Any) -> Any:
        monkeypatch.setattr(
            torch, "stack", lambda drawn: looks.append(len(drawn)) or original(drawn)
        )
        last = ahead(*asked)
        monkeypatch.setattr(torch, "stack", original)
        return last

    monkeypatch.setattr(StaticDecoding, "write_ahead", spy)
    monkeypatch.setattr(row_batch, "decoding_for", lambda device: StaticDecoding())
    for ours, theirs in zip(drawn(), one_by_one, strict=True):
        assert (ours.tokens, ours.text, ours.truncated) == (
            theirs.tokens,
            theirs.text,
            theirs.truncated,
        )
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    assert max(looks) == gpu.LOOK_EVERY


def test_a_policy_that_has_diverged_does_not_draw_ahead(
    llama: SharedModel, as_on_a_gpu: None
) -> None:
    head = llama.model.get_output_embeddings()
    before = head.weight.data
    try:
        head.weight.data = torch.full_like(before, float("nan"))
        with pytest.raises(RunFailed, match="training has diverged"):
            sample(
                llama,
                BASE,
                Encoder(llama.tokenizer),
                questions(2),
                Sampling(max_new_tokens=4),
                seed=0,
            )
    finally:
        head.weight.data = before


def test_a_prompt_of_tokens_may_hold_a_part_of_the_answer(policy: SharedModel) -> None:
    """What was written so far, and another prompt in between, do not change the rest of a greedy
    answer.
    """
    encoder, groups = Encoder(policy.tokenizer), questions(3)
    prompts = [encoder.prompt(group.prompt) for group in groups]
    whole = [
        w
        for each in generate(
            Generation(
                policy, BASE, encoder, prompts, [[1]] * 3, Sampling(max_new_tokens=9, temperature=0)
            )
        )
        for w in each
    ]
    begun = [(*prompt, *written.tokens[:4]) for prompt, written in zip(prompts, whole, strict=True)]
    sampling = Sampling(max_new_tokens=5, temperature=0)
    found = generate(Generation(policy, BASE, encoder, begun[::-1], [[7], [8, 9], []], sampling))
    assert [len(each) for each in found] == [1, 2, 0]
    for (first, *_), (_, *second), written in (
        (found[0], found[0], whole[2]),
        (found[1], found[1], whole[1]),
    ):
        for one in (first, *second):
            assert one.tokens == written.tokens[4:] and one.ended == written.ended
            assert one.logprobs == pytest.approx(written.logprobs[4:], abs=1e-4)


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "Old log-probabilities are those after filters, such as top_k.",
    "They are the policy's.",
    "huggingface/trl#2358",
)
@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.4}, {"min_new_tokens": 12}])
def test_filters_change_the_choice_and_not_the_reported_logprobs(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    groups, encoder, sampling = (
        questions(8),
        encoder_with_ends(llama, [1]),
        Sampling(max_new_tokens=12, **filters),
    )
    for rows in (128, 3):
        monkeypatch.setattr(decoder, "ROWS", rows)
        found = sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=2, seed=0)
        written = [r for g in found for r in g.responses]
        encoded = [e for g in found if (e := encoder.encode(g, 64)) is not None]
        row = pack(encoded)
        with torch.no_grad():
            hidden = llama.hidden(BASE, row.layout, row.tokens)
            policys, _ = llama.logprobs(BASE, hidden[row.before], row.targets)
        torch.testing.assert_close(
            torch.tensor([x for r in written for x in r.logprobs or ()]), policys, atol=1e-4, rtol=0
        )


def test_an_empty_prompt_is_an_error(llama: SharedModel) -> None:
    with pytest.raises(DataError, match="cannot sample from an empty prompt"):
        sample(
            llama,
            BASE,
            Encoder(llama.tokenizer),
            [*questions(1), Group(())],
            Sampling(max_new_tokens=4),
            seed=0,
        )


def test_a_sample_does_not_depend_on_its_batch(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, encoder = questions(10), encoder_with_ends(llama, range(1, 12))
    sampling = Sampling(max_new_tokens=10)

    def draw(
        groups: Sequence[Group], count: int = 4, seed: int = 7, place: str = "a"
    ) -> list[list[Any]]:
        found = sample(
            llama,
            BASE,
            encoder,
            groups,
            sampling,
            samples_per_prompt=count,
            seed=seed,
            path=(place,),
        )
        return [[response.tokens for response in group.responses] for group in found]

    all_of_them = draw(groups)
    assert draw(groups[:3]) == all_of_them[:3]
    assert draw(groups, 2) == [rows[:2] for rows in all_of_them]
    monkeypatch.setattr(decoder, "ROWS", 3)
    assert draw(groups) == all_of_them
    # Samples of one prompt differ, and so do seeds and places.
    assert all(len(set(rows)) == len(rows) for rows in all_of_them)
    assert draw(groups, seed=6) != all_of_them
    assert draw(groups, place="b") != all_of_them


@pytest.mark.parametrize("rows", [128, 7])
def test_no_end_before_min_new_tokens(
    llama: SharedModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "ROWS", rows)  # 7 rows differ in length
    ends = set(range(1, 90))
    encoder = encoder_with_ends(llama, sorted(ends))
    groups = questions(5)
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=6, min_new_tokens=3, temperature=temperature)
        found = sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=4, seed=0)
        rows = [response.tokens or () for group in found for response in group.responses]
        assert all(not ends & set(row[:3]) and not ends & set(row[:-1]) for row in rows)
        assert 4 in {len(row) for row in rows}
        assert all(len(row) > 3 for row in rows)


def test_prompts_are_prefilled_within_the_token_budget(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, encoder, sampling = (
        questions(12),
        encoder_with_ends(llama, range(1, 12)),
        Sampling(max_new_tokens=10),
    )
    wanted = [
        g.responses
        for g in sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=3, seed=5)
    ]
    monkeypatch.setattr(SharedModel, "token_budget", property(lambda self: 5))
    parts: list[int] = []
    original = SharedModel.hidden

    def spy(self: SharedModel, name: str, packed: TreeLayout, tokens: Tensor) -> Tensor:
        parts.append(len(tokens))
        return original(self, name, packed, tokens)

    monkeypatch.setattr(SharedModel, "hidden", spy)
    found = [
        g.responses
        for g in sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=3, seed=5)
    ]
    assert [[r.tokens for r in rows] for rows in found] == [
        [r.tokens for r in rows] for rows in wanted
    ]
    assert len(parts) > 2 and max(parts) <= 20  # four times the budget, as without gradients


def test_the_cache_stays_within_its_limit(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, held = 40_000, []
    monkeypatch.setattr(decoder, "CACHE_BYTES", bound)
    original = Decoding.update_rows

    def spy(self: Decoding, *given: Any) -> None:
        original(self, *given)
        held.append(sum(x.numel() * x.element_size() for pair in self.cache.values() for x in pair))

    monkeypatch.setattr(Decoding, "update_rows", spy)
    sample(
        llama,
        BASE,
        encoder_with_ends(llama, range(1, 12)),
        questions(30),
        Sampling(max_new_tokens=12),
        samples_per_prompt=2,
        seed=5,
    )
    assert len(held) > 5 and bound / 3 < max(held) <= bound


@pytest.mark.parametrize("packs", [True, False])
def test_sampling_that_does_not_fit_is_repeated_with_fewer_rows(
    llama: SharedModel, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, encoder, sampling = (
        questions(10),
        encoder_with_ends(llama, range(1, 12)),
        Sampling(max_new_tokens=10),
    )
    monkeypatch.setattr(llama, "packs", packs)
    if not packs:
        monkeypatch.setattr(llama.model.config, "_attn_implementation", "sdpa")
    wanted = [
        g.responses
        for g in sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=4, seed=5)
    ]
    original, sizes = SharedModel.next_logits, []

    def next_logits(self: SharedModel, name: str, hidden: Tensor) -> Tensor:
        if len(hidden) > 3:
            raise RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            )
        sizes.append(len(hidden))
        return original(self, name, hidden)

    monkeypatch.setattr(SharedModel, "next_logits", next_logits)
    monkeypatch.setattr(llama.memory, "sampling_halvings", 0)
    budget = llama.token_budget
    found = [
        g.responses
        for g in sample(llama, BASE, encoder, groups, sampling, samples_per_prompt=4, seed=5)
    ]
    assert [[r.tokens for r in rows] for rows in found] == [
        [r.tokens for r in rows] for rows in wanted
    ]
    # Training packs its rows as before
    assert max(sizes) in (2, 3) and llama.token_budget == budget


def test_other_errors_end_sampling(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(SharedModel, "next_logits", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        sample(
            llama, BASE, Encoder(llama.tokenizer), questions(2), Sampling(max_new_tokens=4), seed=0
        )


def test_a_gpu_decodes_as_many_rows_as_its_free_memory_holds(
    llama: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Generation(
        llama, BASE, Encoder(llama.tokenizer), [(1,) * 256], [[1]], Sampling(max_new_tokens=256)
    )
    writer = decoder.Decoder(request, lambda: None)
    monkeypatch.setattr(decoder, "available", lambda device: 2.0**21)
    on_cpu = writer.most_rows()
    of_row = decoder.row_bytes(llama.model.config, llama.dtype.itemsize, 256, 256)
    assert on_cpu == 2**18 // of_row < 128  # an eighth of little memory
    monkeypatch.setattr(llama, "device", torch.device("cuda"))
    rows = []
    for free in (0.0, 2.0**24, 2.0**40):
        monkeypatch.setattr(decoder, "available", lambda device, free=free: free)
        rows.append(writer.most_rows())
    assert rows[0] == 1 and 2**22 < rows[1] * of_row < 2**23 and rows[2] == decoder.ROWS_ON_GPU


@pytest.mark.silent_bug(
    "sampling: stop strings",
    "Tokens are added after a stop string, or trimmed, and no longer match their "
    "log-probabilities.",
    "Each sampled token stays, with its log-probability, and none is added.",
    "allenai/open-instruct#1041",
    "NVIDIA/TensorRT-LLM#18190",
)
def test_a_stop_string_ends_a_response_and_stays_in_it(llama: SharedModel) -> None:
    encoder, groups = Encoder(llama.tokenizer), questions(8)
    free = sample(
        llama, BASE, encoder, groups, Sampling(max_new_tokens=12), samples_per_prompt=2, seed=2
    )
    stops = (" ".join(free[0].responses[0].text.split()[4:6]), free[1].responses[1].text.split()[7])
    found = sample(
        llama,
        BASE,
        encoder,
        groups,
        Sampling(max_new_tokens=12, stop=stops),
        samples_per_prompt=2,
        seed=2,
    )
    cut = 0
    for before, after in zip(free, found, strict=True):
        for long, short in zip(before.responses, after.responses, strict=True):
            words = (long.tokens or ())[: len(short.tokens or ())]
            assert short.tokens == words and len(short.logprobs or ()) == len(words)
            assert not any(stop in encoder.decode(words[:-1]) for stop in stops)
            if len(words) < len(long.tokens or ()):
                assert any(stop in short.text for stop in stops)
                assert not short.truncated
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

    def third(ids: Tensor, logits: Tensor) -> Tensor:
        """Write letters, then only `end` from the third token on."""
        wanted = token if ids.shape[1] == start + 2 else 40
        return torch.full_like(logits, float("-inf")).index_fill(1, torch.tensor([wanted]), 0.0)

    encoder, groups = Encoder(model.tokenizer, end_ids=more), questions(1)
    start = len(encoder.prompt(groups[0].prompt))
    choosing(monkeypatch, lambda encoder: third)
    (group,) = sample(model, BASE, encoder, groups, Sampling(max_new_tokens=6), seed=0)
    assert group.responses[0].tokens == (40, 40, token) and not group.responses[0].truncated


def test_a_policy_that_has_diverged_does_not_sample(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    model.add_role("new")
    for parameter in model.parameters_of("new").values():
        parameter.data.fill_(math.nan)
    group = Group(({"role": "user", "content": "how are you?"},), ())
    for temperature in (0.0, 1.0):
        with pytest.raises(RunFailed, match="training has diverged"):
            sample(
                model,
                "new",
                Encoder(model.tokenizer),
                [group],
                Sampling(max_new_tokens=3, temperature=temperature),
                samples_per_prompt=2,
                seed=0,
            )
