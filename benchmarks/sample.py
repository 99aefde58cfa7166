"""Sampling 4 responses of 64 tokens to 32 prompts; the peer is transformers' `generate` at its best
batch size.

Both sides write equally long responses, because they may not sample an end of turn: all responses
have 64 tokens, or with `long_tail` each has its own long-tailed length, at which it ends.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks import data, models, trl
from benchmarks.floor import Shape, Work
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.data.group import Group
    from alignkit.models.generate import Slot
    from alignkit.tokens.encoder import Ids

BATCHES = (8, 32, 128)  # batch sizes tried with `generate`
CHECKED = 8  # responses whose log-probabilities are compared


def plan(job: Job) -> tuple[list[Group], int, int, list[int]]:
    """Prompts, samples per prompt, new tokens, and the length of each response, prompt by
    prompt.
    """
    groups = data.prompts(3, 6) if job.short else data.prompts(32, 64)
    samples, tokens = (2, 8) if job.short else (4, 64)
    rows = len(groups) * samples
    ends = data.long_tailed_caps(rows, tokens) if job.options["long_tail"] else [tokens] * rows
    return groups, samples, tokens, ends


def ours(job: Job, gate: Gate) -> None:
    from alignkit.contract.settings import Sampling
    from alignkit.models import generate as sampler
    from alignkit.models.generate import Slot
    from alignkit.models.shared_model import UNMODIFIED
    from alignkit.tokens.encoder import Encoder

    groups, samples, tokens, ends = plan(job)
    policy = models.load(job)
    encoder = Encoder(policy.tokenizer)
    sampling = Sampling(max_new_tokens=tokens, min_new_tokens=tokens)
    work = Work(Shape.of(job.source), job.dtype, lora=False)
    prompts = [encoder.prompt(group.prompt) for group in groups]
    lengths_of = [ends[start : start + samples] for start in range(0, len(ends), samples)]
    work.write(
        [(len(prompt), lengths) for prompt, lengths in zip(prompts, lengths_of, strict=True)]
    )

    left: list[int] = []

    def with_its_length(prompt: int, draws: Any, *rest: Any, **more: Any) -> Slot:
        return Slot(prompt, draws[: left.pop(0)], *rest, **more)

    seed = 0
    with patch.object(sampler, "Slot", with_its_length):
        while True:
            gate.begin()
            seed += 1
            left[:] = ends
            numbers = range(len(groups))
            request = sampler.build_request(
                policy,
                UNMODIFIED,
                encoder,
                groups,
                sampling,
                seed=seed,
                path=(),
                numbers=numbers,
                samples_per_prompt=samples,
            )
            sampled = sampler.attach(request, groups, sampler.generate(request))
            written = [
                (p, r) for p, group in zip(prompts, sampled, strict=True) for r in group.responses
            ]
            assert [len(response.tokens or ()) for _, response in written] == ends
            seen = written[:: math.ceil(len(written) / CHECKED)]
            logprobs = [logprob for _, response in seen for logprob in response.logprobs or ()]
            evidence = [[list(prompt), list(response.tokens or ())] for prompt, response in seen]
            gate.end(
                sum(ends), {"loss": -sum(logprobs) / len(logprobs)}, work.pieces, evidence=evidence
            )


def peer(job: Job, gate: Gate) -> None:
    import torch

    from alignkit.tokens.encoder import Encoder

    groups, samples, tokens, ends = plan(job)
    tokenizer = trl.tokenizer(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = trl.causal(job).to(device).eval()
    encoder = Encoder(tokenizer)
    prompts = [encoder.prompt(group.prompt) for group in groups for _ in range(samples)]
    # Sorting prompts by length saves padding.
    rows = sorted(zip(prompts, ends, strict=True), key=lambda row: -len(row[0]))
    batch, losses = len(rows), {}
    while True:
        gate.begin()
        if gate.checking:
            losses = {"loss": _nll(model, gate.evidence)}
            batch = _best_batch_size(model, tokenizer, rows, tokens)
        for start in range(0, len(rows), batch):
            _generate(model, tokenizer, rows[start : start + batch], tokens)
        gate.end(sum(ends), losses)


def _nll(model: Any, evidence: list[list[list[int]]]) -> float:
    """Mean of -log P in nats over all tokens of responses that the other side sampled."""
    import torch

    total = count = 0.0
    for prompt, response in evidence:
        ids = torch.tensor([prompt + response], device=model.device)
        with torch.no_grad():
            logprobs = torch.log_softmax(
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1
            )
        total -= float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())
        count += len(response)
    return total / count


def _best_batch_size(model: Any, tokenizer: Any, rows: list[tuple[Ids, int]], tokens: int) -> int:
    """The batch size with the most tokens per second on the longest prompts."""
    speeds = {}
    for size in sorted({min(size, len(rows)) for size in BATCHES}):
        start = time.perf_counter()
        _generate(model, tokenizer, rows[:size], tokens)
        speeds[size] = sum(end for _, end in rows[:size]) / (time.perf_counter() - start)
    return max(speeds, key=lambda size: speeds[size])


def _generate(model: Any, tokenizer: Any, rows: list[tuple[Ids, int]], tokens: int) -> None:
    """Sample without filters; each row ends at its own length, as if by an end of turn."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    ends = torch.tensor([end for _, end in rows], device=model.device)
    longest = max(len(prompt) for prompt, _ in rows)

    class Ends(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> Any:
            return input_ids.shape[1] - longest >= ends

    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt, _ in rows])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in rows])
    model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=pad,
        stopping_criteria=StoppingCriteriaList([Ends()]),
    )
