"""The rules of environments: described tools, text, and episodes that can be repeated."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alignkit.calls import call, create
from alignkit.data.group import Group, Message
from alignkit.environment import Environment
from alignkit.registry import Component
from alignkit.testing.surroundings import SEED, Surroundings, conform
from alignkit.tokens.turns import CALL, END_CALL, read_turn
from alignkit.training.environments import Episode, EpisodeFactory

ROWS: Sequence[Mapping[str, Any]] = ({"prompt": "What is 2 + 3?"}, {"prompt": "Say something kind."})
TURNS = (f'{CALL}{{"name": "no_such_tool", "arguments": {{}}}}{END_CALL}', f"{CALL}{{{END_CALL}", "The answer is 5.")
AGAIN = "what is random must be drawn from self.random"
ALONE = "episodes must not share anything: keep what an episode remembers on `self`, and set it in `reset`"

Played = tuple[Any, ...]  # all that an episode was


def check_environment(
    cls: type[Environment],
    options: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    turns: Sequence[str] = TURNS,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that an environment breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        rows: The columns of prompts, with the user's words as `prompt`.
        turns: What the policy writes in every episode, with calls in `<tool_call>` tags, until the environment ends it.
        folder: The recipe's; default: the current one.
    """
    problems = partial(_problems, groups=[_group(row) for row in rows], turns=turns)
    conform("environment", cls, options, problems, folder=folder)


def _group(row: Mapping[str, Any]) -> Group:
    columns = {name: value for name, value in row.items() if name != "prompt"}
    return Group((Message(role="user", content=str(row.get("prompt", ""))),), meta=columns)


def _problems(
    around: Surroundings, component: Component, groups: Sequence[Group], turns: Sequence[str]
) -> Iterator[str]:
    factory = EpisodeFactory(component, "", SEED, around.folder)
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)
    before = copy.deepcopy(list(groups))
    expected = [_played(factory, group, place, turns) for place, group in enumerate(groups)]
    if list(groups) != before:
        yield "`reset` changes the row that it is given"
    again = [_played(factory, group, place, turns) for place, group in enumerate(groups)]
    yield from _changes("playing an episode again", expected, again, AGAIN)
    together = _played_together(factory, groups, turns)
    yield from _changes("playing all episodes at the same time", expected, together, ALONE)
    for place, group in enumerate(groups):  # raises if `reset` does not return the same for both
        factory.begin(group, "", (place,), 1, factory.begin(group, "", (place,), 0))


def _played(factory: EpisodeFactory, group: Group, place: int, turns: Sequence[str]) -> Played:
    episode = factory.begin(group, "", (place,), 0)
    for text in turns:
        if not _turn(factory, episode, text):
            break
    return _result(episode)


def _played_together(factory: EpisodeFactory, groups: Sequence[Group], turns: Sequence[str]) -> list[Played]:
    """Turn by turn, as a run does."""
    episodes = [factory.begin(group, "", (place,), 0) for place, group in enumerate(groups)]
    going = list(episodes)
    for text in turns:
        going = [episode for episode in going if _turn(factory, episode, text)]
    return [_result(episode) for episode in episodes]


def _turn(factory: EpisodeFactory, episode: Episode, text: str) -> bool:
    """Whether the episode continues."""
    turn = read_turn(SimpleNamespace(), text, "", factory.tools, episode.calls)
    answers = episode.respond(turn)
    episode.add(answers or [])
    return answers is not None


def _result(episode: Episode) -> Played:
    return list(episode.prompt), episode.turns, episode.scores()


def _changes(cause: str, expected: Sequence[Played], actual: Sequence[Played], help: str) -> list[str]:
    """One line about the first episode that differs."""
    for index, (old, new) in enumerate(zip(expected, actual, strict=True)):
        for method, before, after in zip(("reset", "respond", "get_reward"), old, new, strict=True):
            if before != after:
                return [f"`{method}`: {cause} changes row {index} from {before!r:.200} to {after!r:.200}: {help}"]
    return []
