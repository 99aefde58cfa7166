"""Packed rows and decoding against transformers' own attention, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from architectures import check_logprobs, plain, ragged, tokens

from alignkit import functional as F
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import GroupSpan
from alignkit.models.packing import pack
from alignkit.models.shared_model import BASE, SharedModel


@pytest.mark.silent_bug(
    "masks: packing",
    "Packed examples attend to each other, or their positions run on.",
    "Packed rows compute what separate rows do.",
    "huggingface/trl#1230",
    "huggingface/nanoVLM#201",
    "hiyouga/LlamaFactory#7318",
)
def test_packed_rows_match_separate_rows(policy: SharedModel, way: str) -> None:
    check_logprobs(policy)


def test_hidden_states_match_at_prompts_and_responses(policy: SharedModel, way: str) -> None:
    groups = ragged()
    row = pack(groups)
    with torch.no_grad():
        found = policy.hidden(BASE, row.layout, row.tokens)
        model = getattr(model := plain(policy), model.base_model_prefix)
        parts = []
        for group in groups:
            prompt = list(group.prompt)
            parts.append(model(input_ids=torch.tensor([prompt])).last_hidden_state[0])
            for response in group.rows:
                whole = model(
                    input_ids=torch.tensor([prompt + list(response.tokens)])
                ).last_hidden_state[0]
                parts.append(whole[len(prompt) :])
    torch.testing.assert_close(found, torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "responses", "split"),
    [(60, (25,) * 6, True), (60, (20, 25, 25, 25, 25), True), (256, (128, 128), False),
     (20, (200, 5), False), (9, (7,), False),
     (30, (), False), (30, (20, 0, 20, 20, 20), False)],
)  # fmt: skip
def test_responses_are_split_if_that_saves_products(
    prompt: int, responses: tuple[int, ...], split: bool
) -> None:
    assert GroupSpan(0, prompt, responses).split_responses is split


@pytest.fixture(scope="module")
def gradients(policy: SharedModel) -> dict[str, torch.Tensor | None]:
    """Of `weights` times the log-probabilities, one response at a time."""
    model = plain(policy)
    at, weights = 0, torch.linspace(-1, 1, len(pack(ragged()).targets))
    for group in ragged():
        for response in group.rows:
            ids = torch.tensor([[*group.prompt, *response.tokens]])
            logprobs = F.token_logprobs(model(input_ids=ids).logits[0, :-1], ids[0, 1:])[
                len(group.prompt) - 1 :
            ]
            (logprobs * weights[at : at + len(logprobs)]).sum().backward()
            at += len(logprobs)
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradients_match(
    policy: SharedModel, way: str, gradients: dict[str, torch.Tensor | None]
) -> None:
    role = policy.add_role("trained")
    try:
        parameters = policy.make_trainable("trained")
        row = pack(ragged())
        hidden = policy.hidden("trained", row.layout, row.tokens)
        weights = torch.linspace(-1, 1, len(row.targets))
        (policy.logprobs("trained", hidden[row.before], row.targets)[0] * weights).sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(
                parameter.grad, gradients[name], atol=1e-4, rtol=1e-4, msg=name
            )
    finally:
        assert role.model is not policy.model
        policy.drop_role("trained")


@torch.no_grad()
@pytest.mark.parametrize("entering", [2, 9])
def test_rows_enter_while_others_continue(policy: SharedModel, entering: int) -> None:
    """A prompt that is shorter than the other rows by then, and a longer one."""
    model = plain(policy)
    lengths = [4, 2, 6, entering]
    rows = [tokens(n + 8, 30 + number) for number, n in enumerate(lengths)]
    decoding, at, active = Decoding(), list(lengths), [0, 1, 2]

    def enter(keep: Sequence[int], new: Sequence[int]) -> None:
        starts = [sum(lengths[n] for n in new[:i]) for i in range(len(new))]
        segments = [GroupSpan(start, lengths[n], ()) for start, n in zip(starts, new, strict=True)]
        prefill = TreeLayout(segments, store_kv=True)
        policy.hidden(BASE, prefill, torch.tensor([t for n in new for t in rows[n][: lengths[n]]]))
        decoding.update_rows(keep, 8, prefill, range(len(new)))

    enter([], active)
    for step in range(7):
        if step == 3:
            enter([0, 2], [3])
            active = [0, 2, 3]
        new = torch.tensor([[rows[n][at[n]]] for n in active])
        positions = torch.tensor([[at[n]] for n in active])
        with attention.using(decoding), policy.using_role(BASE) as ours:
            backbone = getattr(ours, ours.base_model_prefix)
            states = backbone(
                input_ids=new, position_ids=positions, use_cache=False
            ).last_hidden_state
        decoding.advance()
        for n, logits in zip(active, policy.next_logits(BASE, states[:, 0]), strict=True):
            at[n] += 1
            wanted = model(input_ids=torch.tensor([rows[n][: at[n]]])).logits[0, -1]
            torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
