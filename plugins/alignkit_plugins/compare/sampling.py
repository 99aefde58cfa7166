"""How answers are sampled that people read or that are compared: not at the temperature of
training.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import field_validator

from alignkit import Field, Sampling, SamplingOptions

TEMPERATURE = 0.7  # of `evaluate`, chat and serve


def sampled_at(temperature: float) -> Any:
    """The field `sampling` of options, with a temperature for recipes that set none."""
    other = "other keys that are left out: as in training"
    return Field(
        default_factory=partial(Sampling, temperature=temperature),
        description=f"how responses are sampled; default temperature: {temperature:g}; {other}",
    )


class AnswerOptions(SamplingOptions):
    """Options of what samples answers at a temperature of its own, unless a recipe sets another
    one.
    """

    sampling: Sampling = sampled_at(TEMPERATURE)

    @field_validator("sampling")
    @classmethod
    def _own_temperature(cls, sampling: Sampling) -> Sampling:
        default = cls.model_fields["sampling"].get_default(call_default_factory=True)
        keys = sampling.model_dump(exclude_unset=True)
        return sampling.model_copy(update={"temperature": default.temperature} | keys)
