"""Tasksets of verifiers v1 (Prime Intellect): a step reads their tasks, a reward scores answers,
and an environment plays tasks that have tools.

Source: the package verifiers 0.4, `verifiers.v1`. A task's hooks run as in a rollout of verifiers:
`setup`, the stops, `finalize`, metrics, and rewards with their weights. The policy is the harness:
no program, and no container. Toolsets run in this process, so where their configuration places them
does not matter. Tasks that need a container, pictures, or an environment that plays turns of its
own (`Env`) are refused.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alignkit
from alignkit import (
    Add,
    Artifact,
    Context,
    Environment,
    Field,
    Group,
    Message,
    Response,
    Reward,
    RunFailed,
    Step,
    StepContext,
    hookimpl,
)
from alignkit_plugins.rewards.python import NamedCode
from alignkit_plugins.text.rows import column_of

if TYPE_CHECKING:
    from verifiers.v1 import Task, Taskset, Toolset, Trace

COLUMN = "task"  # of the prompts: the task's data
log = logging.getLogger(__name__)


class TasksetOptions(alignkit.Options):
    taskset: str = Field(
        description="id of an installed taskset, such as `reverse-text-v1`; with `path`, its class"
    )
    path: Path | None = Field(
        None, description="a .py file with the class of a taskset that is not installed"
    )
    config: dict[str, Any] = Field({}, description="the taskset's configuration")

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions decide the scores."""
        module = "" if self.path is not None else self.code("", Path()).module
        return tuple(
            sorted({"verifiers", *importlib.metadata.packages_distributions().get(module, ())})
        )

    def code(self, user: str, folder: Path) -> NamedCode:
        """The code of the class. folder: the recipe's."""
        if self.path is not None:
            return NamedCode(user, self.taskset, folder / self.path.expanduser(), kind="class")
        # As verifiers does
        name = self.taskset.rsplit("/", 1)[-1].split("@", 1)[0].replace("-", "_").lower()
        return NamedCode(user, self.taskset, module=name, kind="taskset")

    def check(self, user: str, folder: Path) -> None:
        """Raise RunFailed if the taskset is not installed."""
        code = self.code(user, folder)
        if code.file is not None:
            code.load()
        elif not find_spec(code.module) and not find_spec(f"verifiers.v1.tasksets.{code.module}"):
            raise RunFailed(
                f"{user}: the taskset '{self.taskset}' is not installed: there is no module "
                f"{code.module}\n"
                "help: install its package, or name its file with `path` and its class with "
                "`taskset`"
            )

    def load(self, user: str, folder: Path) -> Taskset:
        """The taskset. Raises RunFailed if it cannot be loaded, or needs more than text."""
        self.check(user, folder)
        return _loaded(self.code(user, folder), json.dumps(self.config, sort_keys=True))


@cache
def _loaded(code: NamedCode, config: str) -> Taskset:
    from verifiers.v1 import Env, Task, Taskset, TasksetConfig
    from verifiers.v1.utils import loaders
    from verifiers.v1.utils.decorators import discover_decorated
    from verifiers.v1.utils.generic import concrete_type

    try:
        cls: Any = code.load() if code.file is not None else loaders.taskset_class(code.name)
        if not isinstance(cls, type) or not issubclass(cls, Taskset):
            raise TypeError(
                f"{code.name} is no subclass of verifiers.v1.Taskset; v0 environments cannot be "
                "used"
            )
        settings = concrete_type(cls, TasksetConfig, origin=Taskset) or TasksetConfig
        taskset = cls(
            settings.model_validate({**json.loads(config), "id": "" if code.file else code.name})
        )
        played = loaders.environment_class("" if code.file else code.name)
    except RunFailed:
        raise
    except Exception as error:  # whatever somebody's package raises
        raise RunFailed(
            f"{code.user}: {code.name} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    kind = taskset.task_type()
    if played is not loaders.SingleAgentEnv:
        assert issubclass(played, Env)
        raise RunFailed(
            f"{code.user}: {code.name} plays its tasks with {played.__name__}, which cannot be "
            "used here"
        )
    if kind.NEEDS_CONTAINER or discover_decorated(object.__new__(kind), "intercept"):
        what = (
            "need a container" if kind.NEEDS_CONTAINER else "intercept requests to a model server"
        )
        raise RunFailed(f"{code.user}: tasks of {code.name} {what}, which cannot be had here")
    assert issubclass(kind, Task)
    return taskset


def _task(taskset: Taskset, data: Any) -> Task:
    kind = taskset.task_type()
    task: Task = kind(kind.data_type().model_validate(data), taskset.config.task)
    return task


class VerifiersTasks(Step):
    """Writes a prompt for every task, with the task's data in the column `task`."""

    class Options(TasksetOptions):
        limit: int | None = Field(None, ge=1, description="use only the first N tasks")

    options: Options
    packages = ("verifiers",)

    def check(self, folder: Path) -> None:
        self.options.check("step 'verifiers'", folder)

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        taskset = options.load("step 'verifiers'", context.folder)
        if options.limit is None and not taskset.bounded:
            raise RunFailed(
                f"step 'verifiers': {options.taskset} has tasks without end\nhelp: set 'limit'"
            )
        try:
            tasks = list(itertools.islice(taskset, options.limit))
        except Exception as error:
            text = f"loading the tasks of {options.taskset} raised {type(error).__name__}: {error}"
            raise RunFailed(f"step 'verifiers': {text}") from error
        if not tasks:
            raise RunFailed(f"step 'verifiers': {options.taskset} has no task")
        groups = [_group(task) for task in tasks]
        return Artifact(groups=groups, summary={"tasks": len(groups)})


def _group(task: Task) -> Group:
    """A task as a prompt. Raises RunFailed if it needs more than text."""
    data = task.data
    name = f"step 'verifiers': task {data.name or data.idx}"
    if data.image is not None:
        raise RunFailed(
            f"{name} needs the container image {data.image}, and only text can be used here"
        )
    if data.prompt is None:
        raise RunFailed(
            f"{name} has no prompt: a user would open the conversation, which cannot be had here"
        )
    messages = (
        [Message(role="user", content=data.prompt)] if isinstance(data.prompt, str) else data.prompt
    )
    prompt = [each if isinstance(each, dict) else _message(each, name) for each in messages]
    if data.system_prompt is not None:
        prompt.insert(0, Message(role="system", content=data.system_prompt))
    return Group(tuple(prompt), meta={COLUMN: data.model_dump(mode="json", exclude_defaults=True)})


def _message(message: Any, task: str) -> Message:
    """A message of verifiers. Raises RunFailed for a picture."""
    parts = message.content if isinstance(message.content, list) else []
    if any(part.type != "text" for part in parts):
        raise RunFailed(f"{task} shows a picture, and only text can be used here")
    return Message(
        role=message.role, content="\n".join(part.text for part in parts) or message.content or ""
    )


def _trace(task: Task) -> Trace:
    from verifiers.v1 import AgentConfig, AgentInfo, Trace, TraceTask, VersionInfo
    from verifiers.v1.state import state_cls

    facts = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = AgentInfo(config=AgentConfig())
    return Trace(
        task=facts, agent=agent, state=state_cls(type(task))(), verifiers=VersionInfo(version="")
    )


def _tell(trace: Trace, prompt: Sequence[Message], turns: Sequence[Message], cut: bool) -> None:
    """Write a conversation into a trace. cut: its last turn has no end."""
    from verifiers.v1 import MessageNode, ModelCall

    trace.nodes, trace.calls = [], []
    for number, message in enumerate([*prompt, *turns]):
        sampled = number >= len(prompt) and message["role"] == "assistant"
        parent = number - 1 if number else None
        trace.nodes.append(MessageNode(parent=parent, message=_typed(message), sampled=sampled))
        if sampled:
            length = cut and number == len(prompt) + len(turns) - 1
            trace.calls.append(ModelCall(node=number, finish_reason="length" if length else "stop"))


def _typed(message: Message) -> dict[str, Any]:
    """A message as verifiers types it, which writes arguments of calls as JSON."""
    if message["role"] == "tool":
        return {
            "role": "tool",
            "tool_call_id": message.get("tool_call_id", ""),
            "content": message["content"],
        }
    if not (calls := message.get("tool_calls")):
        return {"role": message["role"], "content": message["content"]}
    written = [
        {
            "id": call.get("id", str(number)),
            "name": call["function"]["name"],
            "arguments": json.dumps(call["function"]["arguments"]),
        }
        for number, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": message["content"], "tool_calls": written}


class Verifiers(Reward):
    """The weighted sum of the task's rewards. None if one of its functions fails, as in
    verifiers.
    """

    class Options(TasksetOptions):
        pass

    options: Options

    def check(self, folder: Path) -> None:
        self._taskset = self.options.load("reward 'verifiers'", folder)
        if _toolsets(self._taskset):
            raise RunFailed(
                f"reward 'verifiers': tasks of {self.options.taskset} have tools\n"
                "help: set 'environment: {verifiers: ...}' and 'reward: environment'"
            )

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            column_of("verifiers", group, COLUMN, "read the prompts with the step 'verifiers'")

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.check(context.folder)

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        rows = [(group, response) for group in groups for response in group.responses]
        return [asyncio.run(self._score(group, response)) for group, response in rows]

    async def _score(self, group: Group, response: Response) -> float | None:
        from verifiers.v1 import SubprocessConfig
        from verifiers.v1.runtimes import provision_runtime
        from verifiers.v1.utils.decorators import invoke

        task = _task(self._taskset, group.meta[COLUMN])
        trace = _trace(task)
        turns = response.messages or [Message(role="assistant", content=response.text)]
        async with provision_runtime(
            SubprocessConfig(), trace.id, dict(task.runtime_env())
        ) as runtime:
            _tell(trace, group.prompt, (), cut=False)
            await invoke(task.setup, {"trace": trace, "runtime": runtime})
            rewards = await _scored(trace, task, runtime, group.prompt, turns, response.truncated)
        return None if rewards is None else sum(rewards.values())


class VerifiersEnvironment(Environment):
    """Plays a task: the policy calls its tools until a turn has no call, or one of the task's stops
    holds.
    """

    class Options(TasksetOptions):
        pass

    options: Options
    _answered = 0  # turns after which `respond` was asked

    def check(self, folder: Path) -> None:
        self.folder = folder
        self.tools()

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            column_of("verifiers", group, COLUMN, "read the prompts with the step 'verifiers'")

    @cached_property
    def _taskset(self) -> Taskset:
        return self.options.load("environment 'verifiers'", self.folder)

    @cached_property
    def _toolsets(self) -> list[Toolset]:
        return _toolsets(self._taskset)

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        from verifiers.v1.utils.decorators import discover_decorated

        found = {}
        for toolset in self._toolsets:
            for function in discover_decorated(toolset, "tool"):
                name = getattr(function, "tool_name", None) or function.__name__
                name = "_".join(filter(None, (toolset.server_name, name)))
                found[name] = self._tool(toolset, function)
        return found

    def _tool(self, toolset: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            toolset._inert_state = self._trace.state  # what `toolset.state` is where no server runs
            try:
                result = function(*arguments, **named)
                return _plain(asyncio.run(_wait(result)) if inspect.isawaitable(result) else result)
            except Exception as error:  # as a server of tools does, which tells the model
                raise ValueError(str(error) or type(error).__name__) from error

        doc = inspect.getdoc(function) or function.__name__
        names = "".join(f"\n    {name}: {name}" for name in inspect.signature(function).parameters)
        call.__doc__ = f"{doc}\n\nArgs:{names}" if names and "Args:" not in doc else doc
        return call

    def reset(self, row: Mapping[str, Any]) -> None:
        from verifiers.v1 import SubprocessConfig, Trace
        from verifiers.v1.runtimes import make_runtime
        from verifiers.v1.session import hook_boundary

        self._task, self._prompt = _task(self._taskset, row[COLUMN]), row["prompt"]
        self._trace, self._stops = _trace(self._task), self._task.hooks("stop")
        for stop in self._stops:
            if hook_boundary(stop, allow_trace=True) is not Trace:
                raise RunFailed(
                    f"environment 'verifiers': the stop {stop.__name__} asks for more than the "
                    "trace"
                )
        self._runtime = make_runtime(SubprocessConfig(), self._trace.id)
        self._runtime.env = dict(self._task.runtime_env())
        asyncio.run(self._begin())

    async def _begin(self) -> None:
        from verifiers.v1.utils.decorators import invoke

        await self._runtime.start()
        for toolset in self._toolsets:
            await toolset.setup()
            await toolset.setup_task(self._task.data)
        _tell(self._trace, self._prompt, (), cut=False)
        await invoke(self._task.setup, {"trace": self._trace, "runtime": self._runtime})

    def respond(self, turn: Message) -> Sequence[Message] | None:
        self._answered = len(self.turns)
        _tell(self._trace, self._prompt, self.turns, cut=False)
        for stop in self._stops:
            stopped = stop(self._trace)
            if asyncio.run(_wait(stopped)) if inspect.isawaitable(stopped) else stopped:
                self._trace.stop(stop.__name__)
                return None
        return self.call_tools(turn)

    def get_reward(self) -> Mapping[str, float] | None:
        return asyncio.run(self._end())

    async def _end(self) -> Mapping[str, float] | None:
        cut = self._answered < len(self.turns)
        try:
            return await _scored(
                self._trace, self._task, self._runtime, self._prompt, self.turns, cut
            )
        finally:
            await self._runtime.stop()


def _toolsets(taskset: Taskset) -> list[Toolset]:
    kind = taskset.task_type()
    return [*taskset.toolsets(taskset.config), *kind.toolsets(taskset.config.task)]


def _plain(result: Any) -> Any:
    """A tool's result as text or JSON values; a list of texts, which a server sends apart, as
    lines.
    """
    if isinstance(result, list) and all(isinstance(part, str) for part in result):
        return "\n".join(result)
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result


async def _wait(result: Any) -> Any:
    return await result


async def _scored(
    trace: Trace,
    task: Task,
    runtime: Any,
    prompt: Sequence[Message],
    turns: Sequence[Message],
    cut: bool,
) -> Mapping[str, float] | None:
    """The task's weighted rewards of a conversation, by name; None if the task's code fails, or
    gives none.
    """
    from verifiers.v1.utils.decorators import invoke

    _tell(trace, prompt, turns, cut)
    try:
        await invoke(task.finalize, {"trace": trace, "runtime": runtime})
        await task.score(trace, runtime)
    except Exception as error:  # in verifiers, too, a failed rollout is no reward
        _warn(f"verifiers: a task of {type(task).__name__} gave no reward: {error}")
        return None
    return {
        name: reward.value for name, reward in trace.rewards.items() if reward is not None
    } or None


@cache
def _warn(text: str) -> None:
    """Once: many answers fail in the same way."""
    log.warning(text)


@hookimpl
def register(add: Add) -> None:
    add("step", "verifiers", VerifiersTasks, "the tasks of a verifiers v1 taskset as prompts")
    add(
        "reward",
        "verifiers",
        Verifiers,
        "the rewards of a verifiers v1 task, for tasks without tools",
    )
    add(
        "environment",
        "verifiers",
        VerifiersEnvironment,
        "tasks of a verifiers v1 taskset, with their tools",
    )
