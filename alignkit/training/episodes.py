"""Episodes of environments: for each response, the policy and an environment of its own write in
turn.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from alignkit import seeds
from alignkit.contract.engine import Completion
from alignkit.contract.environment import EPISODE_KEY, Environment, tool_schemas
from alignkit.data.group import Group, Message, Response, preview, user_turn, with_responses
from alignkit.errors import DataError, RunFailed, located_at
from alignkit.host import returns
from alignkit.host.calls import attributed_to, call, create, mistake
from alignkit.host.registry import Component
from alignkit.models.generate import EngineCall, SamplingRequest, attach, has_ended
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.tokens.turns import Turns, read_turn
from alignkit.training.active_stage import ActiveStage
from alignkit.training.collectives import Collectives

MOST_TURNS = 8  # the policy's turns, by default


@dataclass
class Episode:
    """One response's environment. name: of it in errors. prompt, turns: the conversation. cut: by
    a limit.

    tokens: of all turns, as they were sampled, with what the template writes between them.
    logprobs: of each, 0 for those of others; None if the engine returns none. own: for each token,
    whether the policy wrote it. ids, stream, label: of the request for its first turn. last: what
    the policy wrote last.
    """

    environment: Environment
    name: str
    prompt: list[Message]
    turns: list[Message] = field(default_factory=list)
    cut: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    ids: Ids = ()
    stream: int = 0
    label: str = ""
    last: Completion | None = None

    def count(self, key: str) -> int:
        """How many `tool_calls` or `call_errors` the turns have."""
        return sum(len(cast(Any, turn).get(key, ())) for turn in self.turns)

    @property
    def written(self) -> int:
        """Turns of the policy."""
        return [turn["role"] for turn in self.turns].count("assistant")

    def add(self, turns: Sequence[Message]) -> None:
        self.turns += turns
        self.environment.turns = tuple(copy.deepcopy(self.turns))

    def write(self, tokens: Sequence[int], logprobs: Sequence[float] | None, own: bool) -> None:
        self.tokens += tokens
        self.own += [own] * len(tokens)
        if self.logprobs is not None:
            self.logprobs = None if logprobs is None else [*self.logprobs, *logprobs]

    def respond(self, turn: Message) -> list[Message]:
        """Add a turn of the policy; returns the messages that follow it. None: the episode is
        over.
        """
        self.add([turn])
        answers = call(self.environment, "respond", copy.deepcopy(turn), returns=returns.messages)
        return _plain(answers)

    def hear(self, text: str) -> bool:
        """Add a turn with calls in tags, and the answers to it; returns whether the episode
        continues.
        """
        turn = read_turn(text, self.count("tool_calls"))
        answers = self.respond(turn)
        self.add(answers)
        return bool(answers)

    def scores(self) -> dict[str, float | None]:
        """The reward, and its parts if it has several; without a part there is no reward."""
        reward = call(self.environment, "get_reward", returns=returns.numbers)
        if not isinstance(reward, Mapping):
            return {EPISODE_KEY: _float(reward)}
        scores: dict[str, float | None] = {EPISODE_KEY: None}
        for name, value in reward.items():
            scores[f"{EPISODE_KEY}/{name}"] = _float(value)
        if reward and None not in reward.values():
            scores[EPISODE_KEY] = sum(map(float, reward.values()))
        return scores


@dataclass
class Factory:
    """Begins the episodes of an environment that a recipe names. folder: the recipe's. tools: their
    JSON schemas.
    """

    component: Component
    stage: str
    seed: int
    folder: Path
    tools: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        environment = self._new()
        with attributed_to(environment, ""):
            self.tools = tool_schemas(environment)

    def _new(self) -> Environment:
        environment: Environment = create(self.component, self.stage)
        environment.folder = self.folder
        return environment

    def begin(self, group: Group, name: str, path: Sequence[int], sample: int) -> Episode:
        """Begin an episode. path: names its random numbers, with its sample."""
        environment = self._new()
        environment.random = seeds.stream(self.seed, self.stage, "environment", *path)
        columns = MappingProxyType(copy.deepcopy({**group.meta, "prompt": list(group.prompt)}))
        opening = call(environment, "reset", columns, returns=_check_opening)
        environment.random = seeds.stream(self.seed, self.stage, "environment", *path, sample)
        return Episode(environment, name, _opened(group.prompt, opening))


class Episodes:
    """Plays a stage's environment with every response. Each turn is a request whose prompt is all
    that precedes it.
    """

    def __init__(
        self, factory: Factory, encoder: Encoder, max_length: int, most_turns: int | None = None
    ):
        """max_length: of a prompt with all turns, in tokens. most_turns: of the policy.

        Raises RunFailed for an unfit chat template.
        """
        self.factory, self.encoder, self.most_turns = factory, encoder, most_turns or MOST_TURNS
        self.turns = Turns(encoder, factory.tools)
        self.max_length = max_length
        try:
            self.turns.check("tool" if factory.tools else "user")
        except DataError as error:
            where = f"stage '{factory.stage}': environment '{factory.component.name}'"
            raise RunFailed(f"{where}: {error}") from error
        self._playing: list[list[Episode]] = []  # by prompt: the episodes that `begin` began last
        self._counts = Counter[str]()  # counted over the iteration's finished episodes

    def with_tools(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the environment's tools, which the template writes into the prompts."""
        return [replace(group, tools=(*group.tools, *self.factory.tools)) for group in groups]

    def forget(self) -> None:
        """Begin to count the episodes of another iteration."""
        self._counts.clear()

    def begin(
        self, prompts: Sequence[Group], samples: int, iteration: int, numbers: Sequence[int]
    ) -> list[Group]:
        """Begin episodes, and return the prompts with what the environments add to them.

        numbers: of the prompts in the iteration, which name the random numbers. Raises RunFailed if
        a prompt leaves no room for a response, and PluginError if the responses to one have
        different prompts.
        """
        self._playing, groups = [], []
        for group, number in zip(prompts, numbers, strict=True):
            episodes: list[Episode] = []
            where = f"in the episode of {group.origin or 'the prompt'}: {preview(group)}, response"
            for sample in range(samples):
                name = f"{where} {sample + 1}"
                with located_at(name):
                    episode = self.factory.begin(group, name, (iteration, number), sample)
                    episodes.append(episode)
                    if episode.prompt != episodes[0].prompt:
                        raise mistake(
                            episode.environment,
                            "reset",
                            "the responses to a prompt share it, so return the same for all of "
                            "them; draw from self.random only",
                        )
            opened = replace(group, prompt=tuple(episodes[0].prompt))
            if len(self.encoder.prompt(opened.prompt, opened.tools)) >= self.max_length:
                raise RunFailed(
                    f"stage '{self.factory.stage}': with what the environment's `reset` adds, the "
                    f"prompt of {group.origin or preview(opened)} leaves no room in max_length "
                    f"{self.max_length}"
                )
            self._playing.append(episodes)
            groups.append(opened)
        return groups

    def limited(self, request: SamplingRequest) -> SamplingRequest:
        """A request for the first turns, with the room of each."""
        rooms = []
        for prompt, episodes in enumerate(self._playing):
            for sample, episode in enumerate(episodes):
                episode.ids, episode.label = request.prompts[prompt], request.labels[prompt]
                episode.stream = request.streams[prompt][sample]
            rooms.append(self._room(request, episodes[0]))
        return replace(request, rooms=rooms)

    def play(
        self,
        call: EngineCall,
        groups: Sequence[Group],
        completions: Sequence[Sequence[Completion]],
    ) -> list[Group]:
        """Play all episodes to their ends. Returns the groups with whole episodes, and their
        rewards among the scores.

        call, completions: of the first turns. Later ones have random streams of their own.
        """
        request = call.request
        for episodes, each in zip(self._playing, completions, strict=True):
            for episode, one in zip(episodes, each, strict=True):
                episode.last = one
        # The first turn has had the fewest tokens.
        sampling = request.sampling.model_copy(update={"min_new_tokens": 0})
        going, turn = self._going(request, chain.from_iterable(self._playing)), 0
        while going:
            turn += 1
            following = replace(
                request,
                prompts=[(*episode.ids, *episode.tokens) for episode in going],
                streams=[[seeds.number(episode.stream, "turn", turn)] for episode in going],
                sampling=sampling,
                labels=[episode.label for episode in going],
                rooms=[self._room(request, episode) for episode in going],
            )
            for episode, (one,) in zip(going, call.follow(following), strict=True):
                episode.last = one
            going = self._going(request, going)
        last = []
        for episodes in self._playing:
            last.append([episode.last for episode in episodes if episode.last is not None])
        finished = []
        for group, episodes in zip(attach(request, groups, last), self._playing, strict=True):
            responses = map(self._finished, episodes, group.responses)
            finished.append(with_responses(group, responses))
        return finished

    def _room(self, request: SamplingRequest, episode: Episode, more: int = 0) -> int:
        """Tokens that the policy may still write in an episode, if `more` of others come first."""
        room = self.max_length - len(episode.ids) - len(episode.tokens) - more
        return min(request.sampling.max_new_tokens - sum(episode.own), room)

    def _going(self, request: SamplingRequest, episodes: Iterable[Episode]) -> list[Episode]:
        """The episodes that continue with another turn of the policy."""
        going = []
        for episode in episodes:
            with located_at(episode.name):
                if self._continues(request, episode):
                    going.append(episode)
        return going

    def _continues(self, request: SamplingRequest, episode: Episode) -> bool:
        one = episode.last
        assert one is not None
        episode.write(one.tokens, one.logprobs, own=True)
        turn = self.turns.read(one.tokens, episode.count("tool_calls"))
        # The environment does not see a turn without an end.
        if not has_ended(self.encoder, one.tokens, request.sampling.stop):
            episode.add([turn])
            return False
        before = [*episode.prompt, *episode.turns]
        answers = episode.respond(turn)
        if not answers:
            return False
        try:
            ids = self.turns.between(before, turn, answers, one.tokens[-1])
        except DataError as error:
            text = f"what it returned cannot be rendered: {error}"
            raise mistake(episode.environment, "respond", text) from error
        # There must be room for another turn of the policy behind it.
        if self._room(request, episode, len(ids)) < 1 or episode.written >= self.most_turns:
            episode.cut = True
            return False
        episode.add(answers)
        episode.write(ids, [0.0] * len(ids), own=False)
        return True

    def _finished(self, episode: Episode, response: Response) -> Response:
        with located_at(episode.name):
            scores = episode.scores()
        self._counts.update(
            episodes=1,
            turns=episode.written,
            calls=episode.count("tool_calls"),
            malformed_calls=episode.count("call_errors"),
            refused_calls=episode.environment.refused_calls,
            cut=episode.cut,
        )
        if len(episode.turns) == 1:
            return replace(response, scores=scores)
        return replace(
            response,
            messages=tuple(episode.turns),
            tokens=tuple(episode.tokens),
            logprobs=None if episode.logprobs is None else tuple(episode.logprobs),
            action_mask=tuple(episode.own),
            scores=scores,
        )

    def metrics(self, collectives: Collectives) -> dict[str, float]:
        """Means over the iteration's episodes of all processes."""
        totals = collectives.sum(self._counts)
        episodes = totals.pop("episodes")
        return {f"environment/{name}": total / episodes for name, total in totals.items()}


def episodes_of(stage: ActiveStage) -> Episodes:
    """What plays a stage's environment."""
    settings = stage.settings
    assert settings.environment is not None
    folder = stage.reward_context().folder
    factory = Factory(settings.environment, stage.name, stage.seed, folder)
    max_length = min(settings.max_length, stage.model.context_length)
    return Episodes(factory, stage.models.encoder, max_length, settings.rollout.max_turns)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _plain(messages: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    return [cast(Message, dict(message)) for message in messages or ()]


def _opened(prompt: Sequence[Message], opening: Any) -> list[Message]:
    """The prompt with what `reset` returned."""
    if not isinstance(opening, str):
        return [*prompt, *_plain(opening)]
    if not prompt or prompt[-1]["role"] != "user":
        return [*prompt, user_turn(opening)]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + opening}]


def _check_opening(opening: Any) -> None:
    if isinstance(opening, str):
        opening = [{"role": "user", "content": opening}]
    returns.messages(opening)
