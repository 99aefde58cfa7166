"""Gold: a reward that is tracked and never learned from, measured on held-out prompts or on the stage's own samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from alignkit.data.group import Group, prompts_of
from alignkit.errors import DataError, RunFailed
from alignkit.io.atomic import make_folder, write_text
from alignkit.models.sampling import Sampling
from alignkit.reward import REWARD_KEY
from alignkit.training.context import StageContext
from alignkit.training.encoder import StageEncoder, counted
from alignkit.training.scoring import Scorer
from alignkit.watching.snapshot import Look, look_at, look_from, rows_of

SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt

Sample = Callable[[Sequence[Group], Sampling, tuple[str | int, ...]], list[Group]]


class GoldMeasure:
    """Measures gold, and keeps what it measured in the stage's folder.

    sample: the current policy's answers to prompts, with the random streams of a place.
    """

    def __init__(self, context: StageContext, scorer: Scorer | None, encoder: StageEncoder, sampling: Sampling):
        settings = context.settings
        self.context, self.scorer = context, scorer
        self.every, self.folder = settings.gold_every or 1, context.folder / "gold"
        self.gold = Scorer(settings.gold, context.reward_context(), reducer=context.reducer)
        self.sampling = replace(sampling, samples_per_prompt=SAMPLES)
        self.prompts: list[Group] | None = None
        if settings.gold_prompts is not None:
            self.prompts = self._held_out(encoder)
        elif sampling.samples_per_prompt < SAMPLES:
            context.say(
                "warning: with one response to each prompt nobody can tell what the reward pays for, so there is no "
                "alarm against reward hacking; set 'gold_prompts', or 'rollout: {samples_per_prompt: 2}'"
            )
        if settings.reward is not None and settings.gold == settings.reward:
            context.say("warning: gold is the reward itself, so it cannot tell whether the reward is hacked")

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

    def measure(self, iteration: int, rollouts: Sequence[Group], sample: Sample) -> Look:
        """Sample if there are held-out prompts, score by gold and by the stage's own reward, and write the answers."""
        groups = list(rollouts)
        if self.prompts is not None:
            groups = sample(self.prompts, self.sampling, (self.context.name, "gold", iteration))
            groups = self.scorer.score(groups) if self.scorer is not None else groups
        scored = self.gold.score(groups)
        scores = [response.scores[REWARD_KEY] for group in scored for response in group.responses]
        look = look_at(iteration, groups, scores)
        self.context.reducer.led(lambda: self._write(look))
        return look

    def _write(self, look: Look) -> None:
        make_folder(self.folder)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(look)]
        write_text(self.folder / f"{look.iteration:04d}.jsonl", "\n".join(lines) + "\n")

    def read(self, iteration: int) -> Look:
        """What was measured before the stage was interrupted. Raises RunFailed if it is gone."""
        file = self.folder / f"{iteration:04d}.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # answers may contain U+2028 and the like
            return look_from(iteration, list(map(json.loads, lines)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFailed(
                f"{file}: what gold said cannot be read ({type(error).__name__})\n"
                f"help: delete {self.context.folder}, and the stage starts over"
            ) from error
