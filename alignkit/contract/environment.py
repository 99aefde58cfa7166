"""The interface of an environment: it writes the turns between those of the policy, and rewards the
whole episode.

Close to TRL's `environment_factory`: `reset`, public methods as tools, `get_reward`. Differs from
TRL: `reset` takes the row as one mapping, `respond` may answer without tools, and of a tool's
exceptions only ValueError reaches the policy.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, validate_call

from alignkit.contract.options import WithOptions
from alignkit.data.group import Group, Message
from alignkit.errors import PluginError, RunFailed, did_you_mean, faults_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

# Key of an episode's reward in Response.scores; its parts are `episode/NAME`
EPISODE_KEY = "episode"


class Environment(WithOptions):
    """Base class of an environment. Every response has an instance of its own, made from the
    recipe's options.

    Public methods of a subclass are the tools that the policy may call. They need type hints and a
    docstring that describes every argument under `Args:`; both are shown to the policy.

    Attributes:
        random: A generator with a seed, the only source of randomness that makes a run repeatable.
            In `reset` it draws the same numbers for all responses to a prompt, and afterwards
            others for each.
        folder: The recipe's.
        turns: The episode's turns so far, the policy's and the environment's; the prompt is not
            among them.
        refused_calls: Calls that no tool could take.
    """

    random: np.random.Generator
    folder: Path
    turns: Sequence[Message] = ()
    refused_calls = 0

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models; see
        `Reward.check`.
        """

    def check_reward(self) -> None:
        """Raise RunFailed if no episode can have a reward; called after `check` if the stage learns
        from episodes'.
        """
        if type(self).get_reward is Environment.get_reward:
            raise RunFailed(
                f"{type(self).__name__} has no method `get_reward`, so its episodes have no reward"
            )

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if these prompts lack a column that episodes need; see
        `Reward.check_prompts`.
        """

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """What the policy may call, by name; the same in all episodes of a stage. Default: the
        public methods.
        """
        names = [name for name, _ in inspect.getmembers(type(self), inspect.isfunction)]
        return {
            name: getattr(self, name)
            for name in names
            if name[0] != "_" and not hasattr(Environment, name)
        }

    def reset(self, row: Mapping[str, Any]) -> str | Sequence[Message] | None:
        """Begin the episode of a prompt.

        Returns what the prompt gets: text at the end of its last message, if that is the user's
        (else a message of the user), or messages behind it. It must be the same for all responses
        to a prompt.

        Args:
            row: The columns of the prompt's row, and its messages as `prompt`.
        """
        return None

    def respond(self, turn: Message) -> Sequence[Message] | None:
        """The messages that follow a finished turn of the policy; None ends the episode.

        Args:
            turn: `content`, and the calls in it as `tool_calls`; `call_errors` says what is wrong
                with calls that could not be read. By default the calls are answered by `tool`
                messages, and a turn without calls ends the episode. After the last turn that a
                stage allows (`max_turns`) the result is not used.
        """
        return self.call_tools(turn)

    def get_reward(self) -> float | Mapping[str, float | None] | None:
        """The episode's reward, or several by name; asked once, at its end. None: it has none,
        never 0.
        """
        return None

    def call_tools(self, turn: Message) -> list[Message] | None:
        """Answer the calls of a turn, in order; None if there are none.

        A call that does not fit its tool is answered by what is wrong with it, as is ValueError,
        which a tool raises to tell the policy something. Other exceptions of a tool are its
        author's mistakes.

        Args:
            turn: A turn of the policy.
        """
        return answers(self, turn) or None


_Parameter = inspect.Parameter
WITHOUT_NAME = (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD, _Parameter.POSITIONAL_ONLY)


def tool_schemas(environment: Environment) -> list[dict[str, Any]]:
    """The JSON schemas of an environment's tools, as chat templates take them.

    Raises PluginError for a tool without type hints, or whose docstring does not describe its
    arguments.
    """
    from transformers.utils import get_json_schema

    schemas: list[dict[str, Any]] = []
    for name, function in environment.tools().items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in WITHOUT_NAME:
                unknown = f"'{parameter}' has no name and type that the policy could know"
                raise PluginError(f"tool '{name}': {unknown}")
        try:
            schemas.append(get_json_schema(function))
        except Exception as error:  # whatever transformers makes of the docstring
            help = "a method that is no tool begins with '_'"
            raise PluginError(f"tool '{name}': {error}\nhelp: {help}") from error
    return schemas


def answers(environment: Environment, turn: Message) -> list[Message]:
    """The answers to the calls of a turn, in order; see `Environment.call_tools`."""
    messages = []
    for call in turn.get("tool_calls", ()):
        message = Message(role="tool", name=call["function"]["name"], content="")
        if "id" in call:
            message["tool_call_id"] = call["id"]
        try:
            message["content"] = _result(environment, call["function"])
        except ValueError as error:
            environment.refused_calls += 1
            message["content"] = _as_json({"error": str(error)})
        messages.append(message)
    for text in turn.get("call_errors", ()):
        messages.append(Message(role="tool", name="", content=_as_json({"error": text})))
    return messages


def _result(environment: Environment, function: Mapping[str, Any]) -> str:
    """What a tool returns for a call. Raises ValueError for what the policy should know."""
    name, tools = function["name"], environment.tools()
    if name not in tools:
        guess = did_you_mean(name, tools) or f"the tools are {', '.join(tools)}"
        raise ValueError(f"no tool '{name}'; {guess}")
    try:
        result = validate_call(tools[name])(**function["arguments"])
    except ValidationError as error:
        raise ValueError("; ".join(faults_of(error))) from error
    if isinstance(result, str):
        return result
    try:
        return _as_json(result)
    except (TypeError, ValueError) as error:
        kind = type(result).__name__
        raise TypeError(f"tool '{name}' must return text or JSON values, not {kind}") from error


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
