"""How a model samples, and options of what samples: keys that a recipe leaves out are as in
training.

Judges should see texts of the kind that training saw. Before a run starts, every key of `sampling`
that a recipe leaves out gets the value that the `rollout` of an online stage has: the first one
among the step's policies, or else the first one of the recipe. A reward takes the values of the
stage that it scores for. Without an online stage, the defaults of `rollout` apply.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict

from alignkit.contract.options import Field, Options


class Sampling(Options):
    """How a model samples.

    These are the keys under `sampling:` of what samples, and under `rollout:` of a stage that
    trains. Models and engines are asked with them.

    Attributes:
        max_new_tokens: The limit of a response; in an episode, of all turns of the policy.
        min_new_tokens: Below it no end token is sampled; a stop text ends a response nevertheless.
        temperature: 0 is greedy.
        top_p: 1 does not filter.
        top_k: 0 does not filter.
        stop: Texts that end a response and stay in it.
    """

    model_config = ConfigDict(frozen=True)

    max_new_tokens: int = Field(128, "maximum response length, in tokens", ge=1)
    min_new_tokens: int = Field(0, "minimum response length, in tokens", ge=0)
    temperature: float = Field(
        1.0, "sampling temperature, which log-probabilities also use; 0 is greedy", ge=0
    )
    top_p: float = Field(
        1.0, "sample from the most likely tokens with this total probability; 1: all", gt=0, le=1
    )
    top_k: int = Field(0, "sample from this many most likely tokens; 0: all", ge=0)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], "texts that end a response, even before min_new_tokens; they stay part of the response"
    )

    def check_values(self) -> None:
        """Raise ValueError if the least number of tokens is above the largest."""
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens "
                f"{self.max_new_tokens}"
            )


KEYS = tuple(Sampling.model_fields)


class SamplingOptions(Options):
    """Options of what samples responses."""

    sampling: Sampling = Field(
        default_factory=Sampling,
        description=(
            "how responses are sampled, such as {temperature: 0.7}; keys that are left out: as "
            "in training"
        ),
    )

    def policies_to_sample(self) -> list[str]:
        """The policies that respond, by whose training missing keys are filled in."""
        return []

    def asks_engine(self) -> bool:
        """A step that reads data instead names no policies."""
        return type(self).policies_to_sample is SamplingOptions.policies_to_sample or bool(
            self.policies_to_sample()
        )

    def follow(self, sampling: Sampling) -> None:
        """Fill the keys that are left out.

        Args:
            sampling: What they become.
        """
        keys = sampling.model_dump(include={*KEYS}) | self.sampling.model_dump(exclude_unset=True)
        keys["min_new_tokens"] = min(keys["min_new_tokens"], keys["max_new_tokens"])
        self.sampling = self.sampling.model_copy(update=keys)

    def sampled(self) -> dict[str, Any]:
        """The keys as `Models.sample` takes them, without those that change nothing."""
        values = {
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
        }
        return values | self.sampling.model_dump(exclude_defaults=True)

    def described(self) -> str:
        """The keys in words: `temperature 0.7, max_new_tokens 32`."""
        return ", ".join(f"{key} {value}" for key, value in self.sampled().items())
