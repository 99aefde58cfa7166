"""Gold: a reward that is tracked and never learned from, measured on held-out prompts or on the stage's own samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from alignkit.data.group import Group, prompts_of, read_groups, write_groups
from alignkit.errors import DataError, RunFailed
from alignkit.models.sampling import Sampling
from alignkit.monitor import GOLD_KEY
from alignkit.reward import REWARD_KEY
from alignkit.training.context import StageContext
from alignkit.training.encoder import StageEncoder, counted
from alignkit.training.scoring import Scorer

SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt

Sample = Callable[[Sequence[Group], Sampling, tuple[str | int, ...]], list[Group]]


class GoldMeasure:
    """Measures gold, and keeps what it measured in the stage's folder.

    sample: the current policy's answers to prompts, with the random streams of a place.
    """

    def __init__(self, context: StageContext, scorer: Scorer | None, encoder: StageEncoder, sampling: Sampling):
        settings = context.settings
        self.context, self.scorer = context, scorer
        self.every = settings.gold_every or 1
        self.gold = Scorer(settings.gold, context.reward_context(), reducer=context.reducer)
        self.sampling = replace(sampling, samples_per_prompt=SAMPLES)
        self.prompts: list[Group] | None = None
        if settings.gold_prompts is not None:
            self.prompts = self._held_out(encoder)

    def _held_out(self, encoder: StageEncoder) -> list[Group]:
        context, settings, room = self.context, self.context.settings, self.sampling.max_new_tokens
        groups = encoder.prompts(prompts_of(context.load(settings.gold_prompts).groups), room)
        fitting = [group for group in groups if context.models.fits(group, encoder.max_length, room)]
        if not fitting:
            raise DataError(f"stage '{context.name}': no row of 'gold_prompts' is a prompt with room for a response")
        if len(fitting) < len(groups):
            left_out = counted(len(groups) - len(fitting), "prompt")
            context.say(f"gold_prompts: left out {left_out} without room for {room} new tokens")
        return fitting

    def due(self, iteration: int) -> bool:
        return (iteration - 1) % self.every == 0

    def measure(self, iteration: int, rollouts: Sequence[Group], sample: Sample) -> list[Group]:
        """Sample if there are held-out prompts, score by gold and by the stage's own reward, and write the samples."""
        groups = list(rollouts)
        if self.prompts is not None:
            groups = sample(self.prompts, self.sampling, (self.context.name, "gold", iteration))
            groups = self.scorer.score(groups) if self.scorer is not None else groups
        measured = [_with_gold(group, by_gold) for group, by_gold in zip(groups, self.gold.score(groups), strict=True)]
        self.context.reducer.led(lambda: write_groups(self._file(iteration), measured))
        return measured

    def read(self, iteration: int) -> list[Group]:
        """What was measured before the stage was interrupted. Raises RunFailed if it is gone."""
        file = self._file(iteration)
        try:
            return read_groups(file)
        except DataError as error:
            raise RunFailed(
                f"{file}: what gold said cannot be read: {error}\n"
                f"help: delete {self.context.folder}, and the stage starts over"
            ) from error

    def _file(self, iteration: int) -> Path:
        return self.context.folder / "gold" / f"{iteration:04d}.jsonl"


def _with_gold(group: Group, by_gold: Group) -> Group:
    """A group with the reward of another as its gold."""
    pairs = zip(group.responses, by_gold.responses, strict=True)
    scored = [replace(one, scores={**one.scores, GOLD_KEY: other.scores[REWARD_KEY]}) for one, other in pairs]
    return replace(group, responses=tuple(scored))
