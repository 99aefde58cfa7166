"""Episodes of environments: for each response, the policy and an environment of its own write in turn."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

from alignkit import DataError, Environment, Group, Message, Response, RunFailed, seeds, shapes
from alignkit.calls import blame, call, create, mistake
from alignkit.data.group import preview
from alignkit.environment import EPISODE_KEY, tool_schemas
from alignkit.errors import error_context
from alignkit.models.generate import Partner, last_turn
from alignkit.registry import Component
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.training.collectives import Collectives
from alignkit.training.context import StageContext
from alignkit_plugins.environments.turns import Turns, read_turn

MOST_TURNS = 8  # of the policy, by default
ANSWERS = shapes.optional(shapes.messages(["system", "user", "tool"]))


@dataclass
class Episode:
    """One response's environment. row: names it in errors. prompt, turns: the conversation. cut: by a limit."""

    environment: Environment
    row: str
    prompt: list[Message]
    turns: list[Message] = field(default_factory=list)
    cut: bool = False

    def count(self, key: str) -> int:
        """How many `tool_calls` or `call_errors` the turns have."""
        return sum(len(cast(Any, turn).get(key, ())) for turn in self.turns)

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
        answers = call(self.environment, "respond", copy.deepcopy(turn), returns=ANSWERS)
        return None if answers is None else _plain(answers)

    def hear(self, text: str, tools: Sequence[Any]) -> bool:
        """Add a turn with calls in tags, and the answers to it; returns whether the episode continues."""
        answers = self.respond(read_turn(SimpleNamespace(), text, "", tools, self.count("tool_calls")))
        self.add(answers or [])
        return answers is not None

    def scores(self) -> dict[str, float | None]:
        """The reward, and its parts if it has several; without a part there is no reward."""
        reward = call(self.environment, "get_reward", returns=shapes.numbers)
        if not isinstance(reward, Mapping):
            return {EPISODE_KEY: _float(reward)}
        scores = {f"{EPISODE_KEY}/{name}": _float(value) for name, value in reward.items()}
        known = [score for score in scores.values() if score is not None]
        complete = known and len(known) == len(scores)
        return {EPISODE_KEY: sum(known) if complete else None, **scores}


@dataclass
class Factory:
    """Begins the episodes of an environment that a recipe names. folder: the recipe's. tools: their JSON schemas."""

    component: Component
    stage: str
    seed: int
    folder: Path
    tools: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        environment = self._new()
        with blame(environment, ""):
            self.tools = tool_schemas(environment)

    def _new(self) -> Environment:
        environment: Environment = create(self.component, self.stage)
        environment.folder = self.folder
        return environment

    def begin(self, group: Group, row: str, path: Sequence[int], sample: int, first: Episode | None = None) -> Episode:
        """Begin an episode. path: names its random numbers, with its sample. first: of another response to the prompt.

        Raises PluginError if its prompt is not that of the first.
        """
        environment = self._new()
        environment.random = seeds.stream(self.seed, self.stage, "environment", *path)
        columns = MappingProxyType(copy.deepcopy({**group.meta, "prompt": list(group.prompt)}))
        opening = call(environment, "reset", columns, returns=_wrong_opening)
        episode = Episode(environment, row, _opened(group.prompt, opening))
        if first is not None and episode.prompt != first.prompt:
            text = "the responses to a prompt share it, so return the same for all of them; draw from self.random only"
            raise mistake(environment, "reset", text)
        environment.random = seeds.stream(self.seed, self.stage, "environment", *path, sample)
        return episode


class Episodes:
    """Plays a stage's environment with every response. partner: its answers, for the sampling of this iteration."""

    def __init__(self, factory: Factory, encoder: Encoder, max_length: int, most_turns: int | None = None):
        """max_length: of a prompt with all turns, in tokens. most_turns: of the policy.

        Raises RunFailed for an unfit chat template.
        """
        self.factory, self.encoder, self.most_turns = factory, encoder, most_turns or MOST_TURNS
        self.turns = Turns(encoder, factory.tools)
        self.partner = Partner(self.reply, max_length)
        try:
            self.turns.check("tool" if factory.tools else "user")
        except DataError as error:
            raise RunFailed(f"stage '{factory.stage}': environment '{factory.component.name}': {error}") from error
        self._playing: list[list[Episode]] = []  # of each prompt, those that `begin` began last
        self._counts = Counter[str]()  # of the iteration's episodes that are over

    def with_tools(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the environment's tools, which the template writes into the prompts."""
        return [replace(group, tools=(*group.tools, *self.factory.tools)) for group in groups]

    def forget(self) -> None:
        """Begin to count the episodes of another iteration."""
        self._counts.clear()
        self.partner.counts.clear()

    def begin(self, prompts: Sequence[Group], samples: int, iteration: int, numbers: Sequence[int]) -> list[Group]:
        """Begin episodes, and return the prompts with what the environments add to them.

        numbers: of the prompts in the iteration, which name the random numbers. Raises RunFailed if a prompt leaves no
        room for a response.
        """
        self._playing, groups = [], []
        for group, number in zip(prompts, numbers, strict=True):
            episodes: list[Episode] = []
            self._playing.append(episodes)
            for sample in range(samples):
                row = f"in the episode of {group.origin or 'the prompt'}: {preview(group)}, response {sample + 1}"
                with error_context(row):
                    first = episodes[0] if episodes else None
                    episodes.append(self.factory.begin(group, row, (iteration, number), sample, first))
            groups.append(replace(group, prompt=tuple(episodes[0].prompt)))
            if len(self.encoder.prompt(groups[-1].prompt, group.tools)) >= self.partner.max_length:
                raise RunFailed(
                    f"stage '{self.factory.stage}': with what the environment's `reset` adds, the prompt of "
                    f"{group.origin or preview(groups[-1])} leaves no room in max_length {self.partner.max_length}"
                )
        return groups

    def reply(self, prompt: int, sample: int, tokens: Sequence[int], room: int) -> Ids | None:
        """The tokens that follow a turn of the policy; None if its episode is over. See `generate.Reply`."""
        episode = self._playing[prompt][sample]
        with error_context(episode.row):
            turn = self.turns.read(tokens, episode.count("tool_calls"))
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
        finished = []
        for group, episodes in zip(groups, self._playing, strict=True):
            responses = map(self._finished, episodes, group.responses)
            finished.append(replace(group, responses=tuple(responses)))
        return finished

    def _finished(self, episode: Episode, response: Response) -> Response:
        with error_context(episode.row):
            if response.truncated:  # its last turn had no end, so the environment has not seen it
                tokens = last_turn(response.tokens or (), response.written)
                episode.add([self.turns.read(tokens, episode.count("tool_calls"))])
            scores = episode.scores()
        self._counts["episodes"] += 1
        self._counts["turns"] += episode.written
        self._counts["calls"] += episode.count("tool_calls")
        self._counts["malformed_calls"] += episode.count("call_errors")
        self._counts["refused_calls"] += episode.environment.refused_calls
        self._counts["cut"] += episode.cut
        if len(episode.turns) == 1:
            return replace(response, scores=scores)
        return replace(response, messages=tuple(episode.turns), scores=scores)

    def metrics(self, collectives: Collectives) -> dict[str, float]:
        """Means over the iteration's episodes of all processes, and the tokens that were read, or had been before."""
        read = self.partner.counts
        tokens = collectives.sum({"prefill_tokens": read["read"], "prefill_tokens_saved": read["saved"]})
        totals = collectives.sum(self._counts)
        episodes = totals.pop("episodes")
        return {f"environment/{name}": total / episodes for name, total in totals.items()} | tokens


def episodes_of(context: StageContext) -> Episodes:
    """What plays a stage's environment."""
    settings = context.settings
    assert settings.environment is not None
    factory = Factory(settings.environment, context.name, context.seed, context.reward_context().folder)
    max_length = min(settings.max_length, context.model.context)
    return Episodes(factory, context.models.encoder, max_length, settings.rollout.max_turns)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    return [cast(Message, dict(message)) for message in messages]


def _opened(prompt: Sequence[Message], opening: Any) -> list[Message]:
    """The prompt with what `reset` returned."""
    if not isinstance(opening, str):
        return [*prompt, *_plain(opening or ())]
    if not prompt or prompt[-1]["role"] != "user":
        return [*prompt, Message(role="user", content=opening)]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + opening}]


def _wrong_opening(opening: Any) -> str:
    return ANSWERS([{"role": "user", "content": opening}] if isinstance(opening, str) else opening)
