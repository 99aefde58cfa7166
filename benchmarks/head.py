"""Log-probabilities from hidden states, forward and backward: 4096 positions, of which 37% are
scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.floor import Shape, Work
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from torch import Tensor

SCORED = 0.37


@dataclass
class Problem:
    """hidden [B, T, H], tokens [B, T], scored [B, T], weight [V, H]; `hidden[:, t]` predicts
    `tokens[:, t + 1]`.
    """

    hidden: Tensor
    tokens: Tensor
    scored: Tensor
    weight: Tensor

    @classmethod
    def of(cls, job: Job) -> Problem:
        import torch

        shape = Shape.of(job.source)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, job.dtype)
        rows, length = (2, 64) if job.short else (8, 512)
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, length, shape.hidden, generator=generator).to(device, dtype)
        tokens = torch.randint(shape.vocabulary, (rows, length), generator=generator).to(device)
        scored = torch.zeros(rows, length, dtype=torch.bool, device=device)
        scored[:, -round(SCORED * length) :] = True  # responses follow their prompts
        weight = (
            torch.randn(shape.vocabulary, shape.hidden, generator=generator) / shape.hidden**0.5
        )
        return cls(hidden, tokens, scored, weight.to(device, dtype))

    def warm_up(self) -> Problem:
        """A few positions, whose first pass allocates what libraries allocate once."""
        last = slice(-4, None)
        return Problem(
            self.hidden[:1, last], self.tokens[:1, last], self.scored[:1, last], self.weight
        )


def run(job: Job, gate: Gate, score: Callable[[Problem, Tensor], Tensor]) -> None:
    """Run rounds of `score`, which returns the mean of -log P over the scored tokens, given the
    hidden states.
    """
    problem = Problem.of(job)
    work = Work(Shape.of(job.source), job.dtype)
    work.score_head(int(problem.scored[:, 1:].sum()))
    score(few := problem.warm_up(), few.hidden.clone().requires_grad_()).backward()
    while True:
        gate.begin()
        hidden = problem.hidden.detach().requires_grad_()
        loss = score(problem, hidden)
        loss.backward()
        assert hidden.grad is not None
        losses = {"loss": float(loss), "gradient": float(hidden.grad.norm())}
        del hidden
        gate.end(problem.tokens.numel(), losses, work.pieces)


def ours(job: Job, gate: Gate) -> None:
    from alignkit.kernels.backends import chosen
    from alignkit.kernels.lm_head import HeadSpec, TokenWants

    def score(problem: Problem, hidden: Tensor) -> Tensor:
        counts = problem.scored[:, 1:]
        tokens = problem.tokens[:, 1:][counts]
        backend, head = chosen(hidden.device, hidden.dtype), HeadSpec(problem.weight)
        return -backend.next_token(hidden[:, :-1][counts], tokens, head, TokenWants())[0].mean()

    run(job, gate, score)


def peer(job: Job, gate: Gate) -> None:
    """The head that TRL's trainers add to a model, with log-probabilities only: the least that they
    use it for.
    """
    from torch import nn
    from trl.trainer.utils import add_fused_lm_head

    class Bare(nn.Module):
        """A model that has already computed its hidden states."""

        def __init__(self, problem: Problem, hidden: Tensor) -> None:
            super().__init__()
            self.config = SimpleNamespace(get_text_config=SimpleNamespace)
            self.problem, self.hidden = problem, hidden

        def forward(self) -> None:
            """Replaced by TRL's method."""

        def base_model(self, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=self.hidden)

        def get_output_embeddings(self) -> Any:
            return SimpleNamespace(weight=self.problem.weight, bias=None)

    def score(problem: Problem, hidden: Tensor) -> Tensor:
        model: Any = Bare(problem, hidden)
        add_fused_lm_head(model)
        labels = problem.tokens.masked_fill(~problem.scored, -100)
        loss: Tensor = model(labels=labels, fused_lm_head=True).loss
        return loss

    run(job, gate, score)
