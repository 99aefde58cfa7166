"""The overhead of alignkit: a DPO step on the tiny model, compared with only its forward, backward
and optimizer.

With such a small model nearly everything is overhead; 1 - ratio is its share of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import data, models
from benchmarks.floor import Shape, Work, lengths
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel
    from alignkit.tokens.encoder import Encoded

BETA = 0.1


def ours(job: Job, gate: Gate) -> None:
    from alignkit.models.packing import Examples, flat, measure
    from alignkit.models.shared_model import UNMODIFIED

    policy = models.load(job)
    learner = models.learner(policy, "dpo", job.adapter(models.POLICY), beta=BETA)
    encoded = _pairs(job, policy)
    reference = measure(policy, UNMODIFIED, encoded)["logprobs"]
    examples = Examples(encoded, {"reference_logprobs": flat(reference)})
    steps = _steps(job)
    work = Work(Shape.of(job.source), job.dtype)
    for _ in range(steps):
        work.learn(lengths(encoded))
    while True:
        gate.begin()
        for _ in range(steps):
            metrics = learner.step(examples, 0.0)
        gate.end(steps, {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}, work.pieces)


def peer(job: Job, gate: Gate) -> None:
    """The same step written out, on a row that is already packed."""
    import torch

    from alignkit.models.packing import pack
    from alignkit.models.shared_model import UNMODIFIED

    policy = models.load(job)
    policy.add_role(models.ROLE, start=job.adapter(models.POLICY))
    parameters = list(policy.make_trainable(models.ROLE).values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    encoded = _pairs(job, policy)
    packed = pack(encoded)
    owner = packed.cells[:, 0].to(policy.device)
    responses = sum(len(group.responses) for group in encoded)

    def sums(role: str) -> torch.Tensor:
        """Log-probabilities [R] of the responses, better and worse alternately."""
        hidden = policy.hidden(role, packed.layout, packed.tokens)
        logprobs, *_ = policy.logprobs(role, hidden[packed.before], packed.targets)
        return logprobs.new_zeros(responses).index_add(0, owner, logprobs)

    with torch.no_grad():
        reference = sums(UNMODIFIED)
    steps = _steps(job)
    while True:
        gate.begin()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            better, worse = (sums(models.ROLE) - reference).view(-1, 2).unbind(1)
            loss = -torch.nn.functional.logsigmoid(BETA * (better - worse)).mean()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        gate.end(steps, {"loss": float(loss.detach()), "grad_norm": float(norm)})


def _pairs(job: Job, policy: SharedModel) -> list[Encoded]:
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    groups = data.groups(4, 2, 6, 6) if job.short else data.groups(8, 2, 16, 24)
    return encode_all(Encoder(policy.tokenizer), groups, models.MAX_LENGTH)


def _steps(job: Job) -> int:
    """The number of steps in a round; one takes milliseconds."""
    return 5 if job.short else 200
