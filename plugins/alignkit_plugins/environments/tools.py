"""The tools of an environment: what the policy reads of them, and the answers to its calls."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError, validate_call

from alignkit import Environment, Message
from alignkit.errors import PluginError, did_you_mean


def tool_schemas(environment: Environment) -> list[dict[str, Any]]:
    """The JSON schemas of an environment's tools, as chat templates take them.

    Raises PluginError for a tool without type hints, or whose docstring does not describe its
    arguments.
    """
    from transformers.utils import get_json_schema

    found = []
    for name, function in environment.tools().items():
        if why := _why_no_tool(name, function):
            raise PluginError(why)
        try:
            schema: dict[str, Any] = get_json_schema(function)
        except Exception as error:  # whatever transformers makes of the docstring
            raise PluginError(f"tool '{name}': {error}") from error
        found.append(schema)
    return found


def _why_no_tool(name: str, function: Callable[..., Any]) -> str:
    """Why a bound method cannot be a tool; empty if it can."""
    if not inspect.getdoc(function):
        return (
            f"tool '{name}' needs a docstring, which the policy reads; a method that is no tool "
            "begins with '_'"
        )
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.POSITIONAL_ONLY,
        ):
            return f"tool '{name}': '{parameter}' has no name and type that the policy could know"
        if parameter.annotation is parameter.empty:
            return f"tool '{name}': argument '{parameter.name}' needs a type hint"
    return ""


def answers(environment: Environment, turn: Message) -> list[Message]:
    """The answers to the calls of a turn, in order; see `Environment.call_tools`."""
    found = [_answer(environment, call) for call in turn.get("tool_calls", ())]
    return found + [
        Message(role="tool", name="", content=_error(text)) for text in turn.get("call_errors", ())
    ]


def _answer(environment: Environment, call: Mapping[str, Any]) -> Message:
    name, tools = call["function"]["name"], environment.tools()
    message = Message(role="tool", name=name, content="")
    if "id" in call:
        message["tool_call_id"] = call["id"]
    if name not in tools:
        guess = did_you_mean(name, tools) or f"the tools are {', '.join(tools)}"
        refusal = f"no tool '{name}'; {guess}"
    else:
        try:
            result = validate_call(tools[name])(**call["function"]["arguments"])
            return {**message, "content": _content(name, result)}
        except ValidationError as error:
            refusal = _words(error)
        except ValueError as error:
            refusal = str(error)
    environment.refused_calls += 1
    return {**message, "content": _error(refusal)}


def _words(error: ValidationError) -> str:
    """pydantic's errors in one line: `expression: Missing required argument; place: Unexpected
    keyword argument`.
    """
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
        for each in error.errors(include_url=False)
    )


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


def _content(name: str, result: Any) -> str:
    """A tool's result as text. Raises TypeError if it is neither text nor JSON."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"tool '{name}' must return text or JSON values, not {type(result).__name__}"
        ) from error
