"""Calls an environment as a run does: with limits, with checks of what it says, and its mistakes named."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from alignkit import seeds
from alignkit.calls import blame, call, create, mistake
from alignkit.data.group import ROLES, Group, Message
from alignkit.environment import EPISODE_KEY, Environment, tool_schemas
from alignkit.registry import Component

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
    def written(self) -> int:
        """Turns of the policy."""
        return sum(turn["role"] == "assistant" for turn in self.turns)

    def add(self, turns: Sequence[Message]) -> None:
        self.turns += turns
        self.environment.turns = tuple(copy.deepcopy(self.turns))


class CheckedEnvironment:
    """An environment that a recipe names. tools: their JSON schemas."""

    def __init__(self, component: Component, stage: str, seed: int, turns: int, folder: Path):
        """folder: the recipe's. Raises PluginError for a tool that cannot be described."""
        self.component, self.stage, self.seed, self.most_turns, self.folder = component, stage, seed, turns, folder
        self.kind: type[Environment] = component.registration.implementation
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
        opening = call(environment, "reset", columns, returns=_wrong_opening)
        prompt = _opened(group.prompt, opening)
        if first is not None and prompt != first.prompt:
            text = "the responses to a prompt share it, so return the same for all of them; draw from self.random only"
            raise mistake(environment, "reset", text)
        environment.random = seeds.stream(self.seed, self.stage, "environment", *place, sample)
        return Episode(environment, row, prompt)

    def respond(self, episode: Episode, turn: Message) -> list[Message] | None:
        """The messages that follow a turn of the policy, which the episode has already; None: the episode is over."""
        answers = call(episode.environment, "respond", copy.deepcopy(turn), returns=_wrong_answers)
        return None if answers is None else [cast(Message, dict(message)) for message in answers]

    def scores(self, episode: Episode) -> dict[str, float | None]:
        """The episode's reward, and its parts if it has several; without a part there is no reward."""
        reward = call(episode.environment, "get_reward", returns=_wrong_reward)
        if not isinstance(reward, Mapping):
            return {EPISODE_KEY: None if reward is None else float(reward)}
        parts = {str(name): None if value is None else float(value) for name, value in reward.items()}
        known = [value for value in parts.values() if value is not None]
        total = sum(known) if known and len(known) == len(parts) else None
        return {EPISODE_KEY: total, **{f"{EPISODE_KEY}/{name}": value for name, value in parts.items()}}


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
