"""The interface of a policy: what rewards, judges, steps, engines and apps can ask a model of the
run.

Shapes are in brackets, log-probabilities in nats and in float32, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from alignkit.data.group import Group, Message

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class Policy(Protocol):
    """A model of the run: a base model with the adapter and the scalar head of one stage.

    It is loaded by its reference (see `Models`). Not thread-safe: all policies on a base model
    share one network, which takes one adapter at a time.
    """

    def sample(
        self, prompts: Sequence[Group], *, seed: int, samples_per_prompt: int = 1, **sampling: Any
    ) -> list[Group]:
        """Sample responses to prompts. A prompt that leaves no room for `max_new_tokens` gets none.

        Args:
            prompts: Only their `prompt` and `tools` are read, and nothing else is returned with
                the responses.
            seed: The same seed gives the same responses.
            samples_per_prompt: Responses to each prompt.
            sampling: The keys of `Sampling`, such as `temperature=0.7`.

        Raises:
            ValueError: For invalid values such as `top_p=0`.
        """
        ...

    def logprobs(self, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """Log-probabilities of all responses, in order: [tokens] each, computed as in training.

        A response that was truncated to fit has fewer tokens; one whose prompt leaves no room has
        none.

        Args:
            groups: The responses to measure.
            temperature: The temperature of the distribution that is measured.
        """
        ...

    def predictions(self, groups: Sequence[Group]) -> list[tuple[Tensor, ...]]:
        """Log-probabilities of all responses, in order, and whether each token is the likeliest
        one: [tokens] each.

        A response has no tokens if its prompt leaves no room.

        Args:
            groups: The responses to measure.
        """
        ...

    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """The values of all responses by the scalar head of a reward model, in order; None if a
        prompt does not fit.

        Args:
            groups: The responses to score.
        """
        ...

    def next_token_logprobs(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """log P(first token of each answer | templated prompt + prefill), [prompts, answers].

        Not renormalized: the sum of the probabilities is the mass that the model puts on the
        answers. NaN if a prompt exceeds the model's context.

        Args:
            prompts: Conversations.
            answers: Texts whose first tokens are compared.
            prefill: What the answer begins with.
        """
        ...

    def save(self, folder: Path) -> list[str]:
        """Write the whole model for transformers, with its tokenizer; an adapter is merged into the
        base.

        Returns what a user must know of it, in sentences.

        Args:
            folder: A new folder.
        """
        ...


class Models(Protocol):
    """The policies and reward models of a run, by reference: `context.models["sft"].sample(prompts,
    seed=0)`.
    """

    def __getitem__(self, reference: str) -> Policy:
        """Return a policy, whose weights are loaded when it is first asked.

        Args:
            reference: `base`, a stage such as `sft`, a version that it kept such as `sft@2`, or an
                adapter's folder.
        """
        ...
