"""Options of steps and rewards that sample responses: missing ones are as in training.

A report should judge texts of the kind that training saw. Before a run starts, every option here that a recipe leaves
out gets the value that the `rollout` of an online stage has: the first one among the step's policies, or else the first
one of the recipe. A reward takes the values of the stage that it scores for. Without an online stage, the defaults of
`rollout` apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from alignkit.options import Options
from alignkit.settings import Rollout

_NEUTRAL: dict[str, Any] = {"min_new_tokens": 0, "top_p": 1.0, "top_k": 0, "stop": []}


class ResponseOptions(Options):
    """When a sampled response ends. Greedy decoding needs no other options."""

    max_new_tokens: int | None = Field(
        default=None, ge=1, description="maximum response length, in tokens; default: as in training"
    )
    min_new_tokens: int | None = Field(
        default=None, ge=0, description="minimum response length, in tokens; default: as in training"
    )
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(
        default=None, description="texts that end a response; they stay part of it; default: as in training"
    )
    _followed: str = PrivateAttr("")  # whose values were taken
    _notes: list[str] = PrivateAttr(default_factory=list)  # what a reader of the results must know

    @model_validator(mode="after")
    def _ordered(self) -> Any:
        if None not in (self.max_new_tokens, self.min_new_tokens) and self.min_new_tokens > self.max_new_tokens:  # type: ignore[operator]
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self

    def policies_to_sample(self) -> list[str]:
        """The policies that respond, by whose training missing options are filled in."""
        return []

    def asks_engine(self) -> bool:
        """A step that reads data instead names no policies."""
        return type(self).policies_to_sample is ResponseOptions.policies_to_sample or bool(self.policies_to_sample())

    def follow(self, values: Mapping[str, Any], source: str, notes: list[str]) -> None:
        """Fill the options that are left out with these values. source: names whose they are. notes: see `notes`.

        Values that change nothing are left out, so that results are reused when another algorithm has no rollout.
        """
        for key in self._keys():
            value = values.get(key)
            if getattr(self, key) is None and value is not None and (key not in _NEUTRAL or value != _NEUTRAL[key]):
                setattr(self, key, value)
                self._followed = source
        if self.min_new_tokens and self.max_new_tokens:
            self.min_new_tokens = min(self.min_new_tokens, self.max_new_tokens)
        self._notes = notes

    def sampling(self) -> dict[str, Any]:
        """The options as `Models.sample` takes them, without those that change nothing."""
        values = {key: getattr(self, key) for key in self._keys()}
        values = {key: getattr(_DEFAULTS, key) if value is None else value for key, value in values.items()}
        return {key: value for key, value in values.items() if key not in _NEUTRAL or value != _NEUTRAL[key]}

    @property
    def notes(self) -> list[str]:
        """How policies of a step were trained differently from how they are sampled and scored here."""
        return list(self._notes)

    def described(self) -> str:
        """The options in words: `temperature 0.7, max_new_tokens 32 (what is not set: as in stage align)`."""
        text = ", ".join(f"{key} {value}" for key, value in self.sampling().items())
        return f"{text} (what is not set: as in {self._followed})" if self._followed else text

    @classmethod
    def _keys(cls) -> list[str]:
        return [key for key in Rollout.model_fields if key in cls.model_fields and key != "samples_per_prompt"]


class SamplingOptions(ResponseOptions):
    """How responses are sampled."""

    temperature: float | None = Field(default=None, gt=0, description="sampling temperature; default: as in training")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="sample from the most likely tokens with this total probability; default: as in training",
    )
    top_k: int | None = Field(
        default=None, ge=0, description="sample from this many most likely tokens; 0: all; default: as in training"
    )


_DEFAULTS = Rollout()
