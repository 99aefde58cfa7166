"""The interface of an environment: it writes the turns between those of the policy, and rewards the whole episode.

Close to TRL's `environment_factory`: `reset`, public methods as tools, `get_reward`. Differs from TRL: `reset` takes
the row as one mapping, `respond` may answer without tools, and of a tool's exceptions only ValueError reaches the
policy.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError, validate_call

from alignkit.data.group import Group, Message
from alignkit.errors import PluginError, RunFailed, did_you_mean
from alignkit.options import WithOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

EPISODE_KEY = "episode"  # of an episode's reward in Response.scores; of its parts: `episode/NAME`


class Environment(WithOptions):
    """Base class of an environment. Every response has an instance of its own, made from the recipe's options.

    Public methods of a subclass are the tools that the policy may call. They need type hints and a docstring that
    describes every argument under `Args:`; both are shown to the policy.

    Attributes:
        runs_code: See `Reward`.
        random: A generator with a seed, the only source of randomness that makes a run repeatable. In `reset` it draws
            the same numbers for all responses to a prompt, and afterwards others for each.
        folder: The recipe's.
        turns: Of the episode so far, the policy's and the environment's; the prompt is not among them.
        refused_calls: Calls that no tool could take.
    """

    runs_code: ClassVar[bool] = False
    random: np.random.Generator
    folder: Path
    turns: Sequence[Message] = ()
    refused_calls = 0

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models; see `Reward.check`."""

    def check_reward(self) -> None:
        """Raise RunFailed if no episode can have a reward; called after `check` if the stage learns from episodes'."""
        if type(self).get_reward is Environment.get_reward:
            raise RunFailed(f"{type(self).__name__} has no method `get_reward`, so its episodes have no reward")

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if these prompts lack a column that episodes need; see `Reward.check_prompts`."""

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        """What the policy may call, by name; the same in all episodes of a stage. Default: the public methods."""
        return {name: getattr(self, name) for name in tool_functions(type(self))}

    def reset(self, row: Mapping[str, Any]) -> str | Sequence[Message] | None:
        """Begin the episode of a prompt.

        Returns what the prompt gets: text at the end of its last message, if that is the user's (else a message of the
        user), or messages behind it. It must be the same for all responses to a prompt.

        Args:
            row: The columns of the prompt's row, and its messages as `prompt`.
        """
        return None

    def respond(self, turn: Message) -> Sequence[Message] | None:
        """The messages that follow a finished turn of the policy; None ends the episode.

        Args:
            turn: `content`, and the calls in it as `tool_calls`; `call_errors` says what is wrong with calls that could
                not be read. By default the calls are answered by `tool` messages, and a turn without calls ends the
                episode. After the last turn that a stage allows (`max_turns`) the result is not used.
        """
        return self.call_tools(turn)

    def get_reward(self) -> float | Mapping[str, float | None] | None:
        """The episode's reward, or several by name; asked once, at its end. None: it has none, never 0."""
        return None

    def call_tools(self, turn: Message) -> list[Message] | None:
        """Answer the calls of a turn, in order; None if there are none.

        A call that does not fit its tool is answered by what is wrong with it, as is ValueError, which a tool raises to
        tell the policy something. Other exceptions of a tool are its author's mistakes.

        Args:
            turn: A turn of the policy.
        """
        answers = [self._answer(call) for call in turn.get("tool_calls", ())]
        answers += [Message(role="tool", name="", content=_error(text)) for text in turn.get("call_errors", ())]
        return answers or None

    def _answer(self, call: Mapping[str, Any]) -> Message:
        name = call["function"]["name"]
        message = Message(role="tool", name=name, content="")
        if "id" in call:
            message["tool_call_id"] = call["id"]
        tools = self.tools()
        if name not in tools:
            guess = did_you_mean(name, tools) or f"the tools are {', '.join(tools)}"
            return self._refusal(message, f"no tool '{name}'; {guess}")
        try:
            result = validate_call(tools[name])(**call["function"]["arguments"])
        except ValidationError as error:
            return self._refusal(message, _words(error))
        except ValueError as error:
            return self._refusal(message, str(error))
        return {**message, "content": _content(name, result)}

    def _refusal(self, message: Message, reason: str) -> Message:
        self.refused_calls += 1
        return {**message, "content": _error(reason)}


def player() -> Any:
    """The module that plays episodes. Stages without an environment do not load it."""
    return importlib.import_module("alignkit_plugins.environments.episodes")


def tool_functions(cls: type[Environment]) -> dict[str, Callable[..., Any]]:
    """The public methods that an environment's class and its bases define, by name: the policy's tools."""
    own = inspect.getmembers(cls, inspect.isfunction)
    return {name: f for name, f in own if not name.startswith("_") and not hasattr(Environment, name)}


def why_no_tool(name: str, function: Callable[..., Any]) -> str:
    """Why a bound method cannot be a tool; empty if it can. Only a run, which needs the schema, reads its docstring."""
    if not inspect.getdoc(function):
        return f"tool '{name}' needs a docstring, which the policy reads; a method that is no tool begins with '_'"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            return f"tool '{name}': '{parameter}' has no name and type that the policy could know"
        if parameter.annotation is parameter.empty:
            return f"tool '{name}': argument '{parameter.name}' needs a type hint"
    return ""


def tool_schemas(environment: Environment) -> list[dict[str, Any]]:
    """The JSON schemas of an environment's tools, as chat templates take them.

    Raises PluginError for a tool without type hints, or whose docstring does not describe its arguments.
    """
    from transformers.utils import get_json_schema

    found = []
    for name, function in environment.tools().items():
        if why := why_no_tool(name, function):
            raise PluginError(why)
        try:
            schema: dict[str, Any] = get_json_schema(function)
        except Exception as error:  # whatever transformers makes of the docstring
            raise PluginError(f"tool '{name}': {error}") from error
        found.append(schema)
    return found


def _words(error: ValidationError) -> str:
    """pydantic's errors in one line: `expression: Missing required argument; place: Unexpected keyword argument`."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False))


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


def _content(name: str, result: Any) -> str:
    """A tool's result as text. Raises TypeError if it is neither text nor JSON."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tool '{name}' must return text or JSON values, not {type(result).__name__}") from error
