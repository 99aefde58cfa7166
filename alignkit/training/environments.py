"""Environments: an episode for each response, whose turns the policy and the environment write in turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from alignkit import seeds
from alignkit.calls import blame, call, create, mistake
from alignkit.data.group import ROLES, Group, Message, Response, preview, responses_of
from alignkit.environment import EPISODE_KEY, Environment, tool_schemas
from alignkit.errors import DataError, RunFailed, error_context
from alignkit.models.generate import Partner, last_turn
from alignkit.registry import Component
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.tokens.turns import Turns
from alignkit.training.collectives import Collectives
from alignkit.training.context import StageContext

LONGEST = 1_000_000  # characters of an answer
MOST_TURNS = 8  # default of `max_turns`: those that the policy may write


@dataclass
class Episode:
    """One response's environment. row: names it in errors. prompt, turns: the conversation. cut: the environment did
    not end it.
    """

    environment: Environment
    row: str
    prompt: Sequence[Message] = ()
    turns: list[Message] = field(default_factory=list)
    cut: bool = False

    @property
    def calls(self) -> int:
        """Calls that could be read."""
        return sum(len(turn.get("tool_calls", ())) for turn in self.turns)

    @property
    def malformed_calls(self) -> int:
        return sum(len(turn.get("call_errors", ())) for turn in self.turns)

    @property
    def written(self) -> int:
        """Turns of the policy."""
        return sum(turn["role"] == "assistant" for turn in self.turns)

    def add(self, turns: Sequence[Message]) -> None:
        self.turns += turns
        self.environment.turns = tuple(copy.deepcopy(self.turns))

    def respond(self, turn: Message) -> list[Message] | None:
        """Add a turn of the policy; returns the messages that follow it. None: the episode is over."""
        self.add([turn])
        answers = call(self.environment, "respond", copy.deepcopy(turn), returns=_wrong_answers)
        return None if answers is None else [cast(Message, dict(message)) for message in answers]

    def scores(self) -> dict[str, float | None]:
        """The reward, and its parts if it has several; without a part there is no reward."""
        reward = call(self.environment, "get_reward", returns=_wrong_reward)
        if not isinstance(reward, Mapping):
            return {EPISODE_KEY: None if reward is None else float(reward)}
        parts = {f"{EPISODE_KEY}/{name}": None if value is None else float(value) for name, value in reward.items()}
        values = [value for value in parts.values() if value is not None]
        return {EPISODE_KEY: sum(values) if values and len(values) == len(parts) else None, **parts}


class EpisodeFactory:
    """Begins the episodes of an environment that a recipe names. tools: their JSON schemas."""

    def __init__(self, component: Component, stage: str, seed: int, folder: Path):
        """folder: the recipe's. Raises PluginError for a tool that cannot be described."""
        self.component, self.stage, self.seed, self.folder = component, stage, seed, folder
        environment = self._new()
        with blame(environment, ""):
            self.tools = tool_schemas(environment)

    def _new(self) -> Environment:
        environment: Environment = create(self.component, self.stage)
        environment.folder = self.folder
        return environment

    def begin(
        self, group: Group, row: str, place: tuple[int, ...], sample: int, first: Episode | None = None
    ) -> Episode:
        """Begin an episode. place: names its random numbers, with its sample. first: of another response to the prompt.

        Raises PluginError if its prompt is not that of the first.
        """
        environment = self._new()
        environment.random = seeds.stream(self.seed, self.stage, "environment", *place)
        columns = MappingProxyType(copy.deepcopy({**group.meta, "prompt": list(group.prompt)}))
        prompt = _opened(group.prompt, call(environment, "reset", columns, returns=_wrong_opening))
        if first is not None and prompt != first.prompt:
            text = "the responses to a prompt share it, so return the same for all of them; draw from self.random only"
            raise mistake(environment, "reset", text)
        environment.random = seeds.stream(self.seed, self.stage, "environment", *place, sample)
        return Episode(environment, row, prompt)


class Episodes:
    """Plays a stage's environment with every response. partner: its answers, for the sampling of this iteration."""

    def __init__(self, factory: EpisodeFactory, encoder: Encoder, max_length: int, most_turns: int = MOST_TURNS):
        """max_length: of a prompt with all turns, in tokens. most_turns: of the policy.

        Raises RunFailed for an unfit chat template.
        """
        self.factory, self.encoder, self.most_turns = factory, encoder, most_turns
        self.turns = Turns(encoder, factory.tools)
        self.partner = Partner(self.reply, max_length)
        try:
            self.turns.check("tool" if factory.tools else "user")
        except DataError as error:
            raise RunFailed(f"stage '{factory.stage}': environment '{factory.component.name}': {error}") from error
        self._playing: dict[tuple[int, int], Episode] = {}  # those that `begin` began last
        self._all: list[Episode] = []

    def with_tools(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the environment's tools, which the template writes into the prompts."""
        return [replace(group, tools=(*group.tools, *self.factory.tools)) for group in groups]

    def forget(self) -> None:
        """Forget the episodes of the iteration before."""
        self._playing, self._all = {}, []
        self.partner.counts.clear()

    def begin(self, prompts: Sequence[Group], samples: int, iteration: int, numbers: Sequence[int]) -> list[Group]:
        """Begin episodes, and return the prompts with what the environments add to them.

        numbers: of the prompts in the iteration, which name the random numbers. Raises RunFailed if a prompt leaves no
        room for a response.
        """
        self._playing, groups = {}, []
        for p, (group, number) in enumerate(zip(prompts, numbers, strict=True)):
            for k in range(samples):
                row = f"in the episode of {group.origin or 'the prompt'}: {preview(group)}, response {k + 1}"
                with error_context(row):
                    first = self._playing.get((p, 0))
                    self._playing[p, k] = self.factory.begin(group, row, (iteration, number), k, first)
            groups.append(replace(group, prompt=tuple(self._playing[p, 0].prompt)))
            if len(self.encoder.prompt(groups[-1].prompt, group.tools)) >= self.partner.max_length:
                raise RunFailed(
                    f"stage '{self.factory.stage}': with what the environment's `reset` adds, the prompt of "
                    f"{group.origin or preview(groups[-1])} leaves no room in max_length {self.partner.max_length}"
                )
        self._all += self._playing.values()
        return groups

    def reply(self, prompt: int, sample: int, tokens: Sequence[int], room: int) -> Ids | None:
        """The tokens that follow a turn of the policy; None if its episode is over. See `active_sequence.Reply`."""
        episode = self._playing[prompt, sample]
        with error_context(episode.row):
            turn = self.turns.read(tokens, episode.calls)
            before = [*episode.prompt, *episode.turns]
            answers = episode.respond(turn)
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
        # In the order of responses, as `begin` made them.
        pairs = zip(self._playing.values(), responses_of(groups), strict=True)
        finished = iter([self._finished(episode, response) for episode, response in pairs])
        return [replace(group, responses=tuple(next(finished) for _ in group.responses)) for group in groups]

    def _finished(self, episode: Episode, response: Response) -> Response:
        with error_context(episode.row):
            if response.truncated:  # its last turn had no end, so the environment has not seen it
                episode.add([self.turns.read(last_turn(response.tokens or (), response.written), episode.calls)])
            scores = episode.scores()
        several = len(episode.turns) > 1
        return replace(response, messages=tuple(episode.turns) if several else None, scores=scores)

    def metrics(self, collectives: Collectives) -> dict[str, float]:
        """Means over the iteration's episodes of all processes, and the tokens that were read, or had been before."""
        played, counts = self._all, self.partner.counts
        sums = {
            "environment/turns": sum(e.written for e in played),
            "environment/calls": sum(e.calls for e in played),
            "environment/malformed_calls": sum(e.malformed_calls for e in played),
            "environment/refused_calls": sum(e.environment.refused_calls for e in played),
            "environment/cut": sum(e.cut for e in played),
        }
        tokens = {"prefill_tokens": counts["read"], "prefill_tokens_saved": counts["saved"]}
        totals = collectives.sum({**sums, **tokens, "episodes": len(played)})
        return {name: totals[name] / totals["episodes"] for name in sums} | {name: totals[name] for name in tokens}


def episodes_of(context: StageContext) -> Episodes | None:
    """What plays a stage's environment, if it has one."""
    settings = context.settings
    if settings.environment is None:
        return None
    factory = EpisodeFactory(settings.environment, context.name, context.seed, context.reward_context().folder)
    max_length = min(settings.max_length, context.model.context)
    return Episodes(factory, context.models.encoder, max_length, settings.rollout.max_turns or MOST_TURNS)


def _opened(prompt: Sequence[Message], opening: Any) -> list[Message]:
    """The prompt with what `reset` returned."""
    if opening is None:
        return list(prompt)
    if not isinstance(opening, str):
        return [*prompt, *(cast(Message, dict(message)) for message in opening)]
    if not prompt or prompt[-1]["role"] != "user":
        return [*prompt, Message(role="user", content=opening)]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + opening}]


def _wrong_opening(opening: Any) -> str:
    return _wrong_answers([{"role": "user", "content": opening}] if isinstance(opening, str) else opening)


def _wrong_answers(messages: Any) -> str:
    """What is wrong with the messages of an environment; None is right."""
    if messages is None:
        return ""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        kind = "an empty list" if messages == [] else type(messages).__name__
        return f"return a list of messages, or None, not {kind}"
    for message in messages:
        role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
        if role not in ROLES or role == "assistant" or not isinstance(content, str):
            wrong = f"role {role!r:.40} and content of type {type(content).__name__}"
            return f"a message needs a role (tool, user or system) and text as content; this one has {wrong}"
    size = sum(len(message["content"]) for message in messages)
    if size > LONGEST:
        return f"it returned {size:,} characters; at most {LONGEST:,} are read"
    try:
        "".join(message["content"] for message in messages).encode()
    except UnicodeEncodeError as error:
        return f"its text is not Unicode: {error.reason}"
    return ""


def _wrong_reward(reward: Any) -> str:
    parts = {"the reward": reward}
    if isinstance(reward, Mapping):
        parts = {f"the reward's part '{name}'": value for name, value in reward.items()}
    for what, value in parts.items():
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            return f"{what} is {value!r:.60}; return a finite number, or None if there is none"
    return ""
