"""The reward `length`: for smoke tests, and as a baseline for length bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import alignkit
from alignkit import Field, Group, Response, Reward
from alignkit.data.group import responses_of
from alignkit.evaluation.answers import spaced
from alignkit_plugins.text.spoken import all_turns
from alignkit_plugins.text.text_metrics import sampled_length


class Length(Reward):
    """Reward long responses, or those near a target length: for smoke tests, and as a baseline for
    length bias.
    """

    class Options(alignkit.Options):
        unit: Literal["tokens", "characters", "words"] = Field(
            "tokens", "unit of length; tokens include thoughts, the others do not"
        )
        target: int | None = Field(
            None,
            "target length: the reward is minus the distance to it; null: the length itself",
            ge=0,
        )
        scale: float = Field(1.0, "factor of the reward")

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        self.score(groups)  # raises for the responses of a data set, which have no tokens

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        scores, target = list[float | None](), self.options.target
        for response in responses_of(groups):
            count = self._length(response)
            if target is not None:
                count = -abs(count - target)
            scores.append(self.options.scale * count)
        return scores

    def _length(self, response: Response) -> int:
        """Tokens are those that the policy wrote, including thoughts and its end of turn."""
        unit = self.options.unit
        if unit == "tokens":
            return sampled_length(
                response, "length", help="set `unit: words` or `unit: characters`"
            )
        text = all_turns(response)
        return len(text) if unit == "characters" else len(spaced(text).split())
