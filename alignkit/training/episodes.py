"""The episodes of a stage: an environment for each response, whose turns are sampled by `models` and stored here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignkit.calls import mistake
from alignkit.data.group import Group, Response, preview
from alignkit.errors import DataError, RunFailed, error_context
from alignkit.models.generate import Partner, last_turn
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.tokens.turns import Turns
from alignkit.training.checked_environment import MOST_TURNS, CheckedEnvironment, Episode
from alignkit.training.collectives import Collectives
from alignkit.training.context import StageContext


class Episodes:
    """Plays a stage's environment with every response. partner: its answers, for the sampling of this iteration."""

    def __init__(self, environment: CheckedEnvironment, encoder: Encoder, max_length: int):
        """max_length: of a prompt with all turns, in tokens.

        Raises RunFailed for an unfit chat template.
        """
        self.environment, self.encoder = environment, encoder
        self.stage, self.most_turns = environment.stage, environment.most_turns
        self.turns = Turns(encoder, self.environment.tools)
        self.partner = Partner(self.reply, max_length)
        try:
            self.turns.check("tool" if environment.tools else "user")
        except DataError as error:
            named = f"stage '{self.stage}': environment '{environment.component.name}'"
            raise RunFailed(f"{named}: {error}") from error
        self._playing: dict[tuple[int, int], Episode] = {}  # those that `begin` began last
        self._all: list[Episode] = []

    def with_tools(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the environment's tools, which the template writes into the prompts."""
        return [replace(group, tools=(*group.tools, *self.environment.tools)) for group in groups]

    def forget(self) -> None:
        """Forget the episodes of the iteration before."""
        self._playing, self._all = {}, []
        self.partner.counts.clear()

    def begin(self, prompts: Sequence[Group], samples: int, place: tuple[int, Sequence[int]]) -> list[Group]:
        """Begin episodes, and return the prompts with what the environments add to them.

        place: the iteration, and the prompts' numbers in it, which name the random numbers. Raises RunFailed if a
        prompt leaves no room for a response.
        """
        iteration, numbers = place
        self._playing, groups = {}, []
        for p, group in enumerate(prompts):
            first: Episode | None = None
            for k in range(samples):
                row = f"in the episode of {group.origin or 'the prompt'}: {preview(group)}, response {k + 1}"
                with error_context(row):
                    episode = self.environment.begin(group, row, (iteration, numbers[p]), k, first)
                first = first or episode
                self._playing[p, k] = episode
            groups.append(replace(group, prompt=tuple(self._playing[p, 0].prompt)))
            self._check_room(groups[-1])
        self._all += self._playing.values()
        return groups

    def _check_room(self, group: Group) -> None:
        if len(self.encoder.prompt(group.prompt, group.tools)) >= self.partner.max_length:
            raise RunFailed(
                f"stage '{self.stage}': with what the environment's `reset` adds, the prompt of "
                f"{group.origin or preview(group)} leaves no room in max_length {self.partner.max_length}"
            )

    def reply(self, prompt: int, sample: int, tokens: Sequence[int], room: int) -> Ids | None:
        """The tokens that follow a turn of the policy; None if its episode is over. See `active_sequence.Reply`."""
        episode = self._playing[prompt, sample]
        with error_context(episode.row):
            turn = self.turns.read(tokens, episode.calls)
            before = [*episode.prompt, *episode.turns]
            episode.add([turn])
            answers = self.environment.respond(episode, turn)
            if answers is None:
                return None
            try:
                ids = self.turns.between(before, turn, answers, tokens[-1], room)
            except DataError as error:
                text = f"what it returned cannot be rendered: {error}"
                raise mistake(episode.environment, "respond", text) from error
        if ids is None or episode.written >= self.most_turns:
            episode.cut = True
            return None
        episode.add(answers)
        return ids

    def finish(self, groups: Sequence[Group]) -> list[Group]:
        """The sampled groups with their turns, and the episodes' rewards among the scores."""
        finished = []
        for p, group in enumerate(groups):
            responses = (self._finished(self._playing[p, k], r) for k, r in enumerate(group.responses))
            finished.append(replace(group, responses=tuple(responses)))
        return finished

    def _finished(self, episode: Episode, response: Response) -> Response:
        with error_context(episode.row):
            if response.truncated:  # its last turn had no end, so the environment has not seen it
                episode.add([self.turns.read(last_turn(response.tokens or (), response.written), episode.calls)])
            scores = self.environment.scores(episode)
        several = len(episode.turns) > 1
        return replace(response, messages=tuple(episode.turns) if several else None, scores=scores)

    def metrics(self, collectives: Collectives) -> dict[str, float]:
        """Means over the iteration's episodes of all processes, and the tokens that were read, or had been before."""
        played, counts = self._all, self.partner.counts
        sums = {
            "turns": sum(e.written for e in played),
            "calls": sum(e.calls for e in played),
            "malformed_calls": sum(len(turn.get("call_errors", ())) for e in played for turn in e.turns),
            "refused_calls": sum(e.environment.refused_calls for e in played),
            "cut": sum(e.cut for e in played),
        }
        own = {f"environment/{name}": total for name, total in sums.items()}
        tokens = {"prefill_tokens": counts["read"], "prefill_tokens_saved": counts["saved"]}
        totals = collectives.sum({**own, **tokens, "episodes": len(played)})
        return {name: totals[name] / totals["episodes"] for name in own} | {name: totals[name] for name in tokens}


def episodes_of(context: StageContext) -> Episodes | None:
    """What plays a stage's environment, if it has one."""
    settings, rollout = context.settings, context.settings.rollout
    if settings.environment is None:
        return None
    turns = rollout.max_turns or MOST_TURNS
    max_length = min(settings.max_length, context.model.context)
    folder = context.reward_context().folder
    environment = CheckedEnvironment(settings.environment, context.name, context.seed, turns, folder)
    return Episodes(environment, context.models.encoder, max_length)
