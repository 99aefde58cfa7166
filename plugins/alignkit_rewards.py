"""Rewards without a model (`length`, `python`), a normalised reward model, and a weighted sum (`weighted_sum`)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

import alignkit
from alignkit import (
    CombinedReward,
    Context,
    DataRef,
    Field,
    Group,
    Message,
    Register,
    Response,
    Reward,
    RewardCombination,
    RewardRef,
    RunFailed,
    hookimpl,
)
from alignkit import functional as F
from alignkit.errors import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class Length(Reward):
    """Longer is better, or nearer to a target is better: to test a set-up, and as a baseline for length bias."""

    class Options(alignkit.Options):
        unit: Literal["tokens", "characters", "words"] = Field("tokens", description="what is counted")
        target: int | None = Field(
            None, ge=0, description="reward is minus the distance to this length; none: the length itself"
        )
        scale: float = Field(1.0, description="multiplies the reward")

    options: Options

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return {"": [self._score(_length(response, self.options.unit)) for _, response in _rows(groups)]}

    def _score(self, length: int) -> float:
        target = self.options.target
        return self.options.scale * (length if target is None else -abs(length - target))


def _length(response: Response, unit: str) -> int:
    """Tokens are those the policy wrote, its end of turn included."""
    if unit == "tokens":
        if response.tokens is None:
            raise RunFailed(
                "reward 'length' counts tokens, but a response was not sampled here and has none\n"
                "help: unit: words or unit: characters"
            )
        return len(response.tokens) if response.written is None else sum(response.written)
    return len(_text(response)) if unit == "characters" else len(_text(response).split())


class Python(Reward):
    """A function of the user's own, with TRL's signature: `f(prompts, completions, **columns)`, one number each.

    Differs from TRL: columns the function does not name are not passed unless it takes `**kwargs`, and a failed
    function stops the run. As in TRL, None means "could not be scored" and the function may be `async`.
    """

    class Options(alignkit.Options):
        path: Path = Field(description="a .py file, relative to the recipe's folder")
        function: str = Field(description="name of a function in it")
        kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments for the function")
        conversational: bool = Field(
            False, description="prompts and completions are lists of messages, as TRL gives for chats; else strings"
        )

    options: Options
    _folder = Path()
    _call: Callable[..., Any] | None = None

    def check(self, folder: Path) -> None:
        self._folder = folder
        _load(self.file, self.options.function)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._folder = context.folder
        self._call = _load(self.file, self.options.function)

    @property
    def file(self) -> Path:
        return self._folder / self.options.path.expanduser()

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        if self._call is None:
            self._call = _load(self.file, self.options.function)
        rows = _rows(groups)
        if not rows:
            return {"": []}
        arguments = {**_arguments(rows, self.options.conversational), **self.options.kwargs}
        return {"": self._check(self._run(self._call, _accepted(self._call, arguments)), rows)}

    @property
    def _name(self) -> str:
        return f"reward function '{self.options.function}' of {self.options.path}"

    def _run(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        try:
            result = call(**arguments)
            return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result
        except Exception as error:  # whatever a user's function raises
            raise RunFailed(f"{self._name} raised {_describe(error, self.file)}") from error

    def _check(self, result: Any, rows: Sequence[tuple[Group, Response]]) -> list[float | None]:
        if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
            raise RunFailed(f"{self._name} returned {result!r:.200}, expected a list of {len(rows)} numbers")
        scores = list(result)
        if len(scores) != len(rows):
            raise RunFailed(f"{self._name} returned {len(scores)} scores for {len(rows)} completions")
        return [self._number(score, place, rows) for place, score in enumerate(scores)]

    def _number(self, score: Any, place: int, rows: Sequence[tuple[Group, Response]]) -> float | None:
        if score is None:
            return None
        value = math.nan
        if not isinstance(score, str | bytes):
            with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
                value = float(score)  # also scalars of numpy and torch
        if math.isfinite(value):
            return value
        group, response = rows[place]
        prompt = f" (prompt {group.id})" if group.id else ""
        raise RunFailed(
            f"{self._name} returned {score!r:.200} for completion {place} of {len(rows)}{prompt}, "
            f"expected a finite number, or None where it cannot be scored\n  completion: {_text(response)!r:.200}"
        )


def _load(file: Path, function: str) -> Callable[..., Any]:
    if not file.is_file():
        raise RunFailed(f"reward 'python': there is no file {file}")
    # A name of its own: two files called reward.py must not replace each other, nor a module of that name.
    name = "alignkit_reward_" + hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    try:
        # Not through importlib: its bytecode cache may be older than the bytes that `fingerprint` saw.
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except Exception as error:  # whatever a user's file raises
        del sys.modules[name]
        raise RunFailed(f"reward 'python': importing {file} raised {_describe(error, file)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = sorted(n for n, thing in vars(module).items() if inspect.isfunction(thing) and not n.startswith("_"))
        help = did_you_mean(function, names) or f"it has: {', '.join(names) or 'none'}"
        raise RunFailed(f"reward 'python': {file} has no function '{function}'; {help}")
    return found


def _describe(error: BaseException, file: Path) -> str:
    """The error, and the line of the user's file that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    place = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


async def _wait(result: Any) -> Any:
    return await result


def _arguments(rows: Sequence[tuple[Group, Response]], conversational: bool) -> dict[str, list[Any]]:
    """TRL's arguments: one entry per response in each list, columns repeated over a prompt's responses."""
    names = dict.fromkeys(name for group, _ in rows for name in group.meta)
    arguments: dict[str, list[Any]] = {name: [group.meta.get(name) for group, _ in rows] for name in names}
    if all(response.tokens is not None for _, response in rows):
        arguments["completion_ids"] = [list(response.tokens or ()) for _, response in rows]
    if conversational:
        arguments["prompts"] = [[_normalized(message) for message in group.prompt] for group, _ in rows]
        arguments["completions"] = [_messages(response) for _, response in rows]
    else:
        arguments["prompts"] = [_prompt_text(group) for group, _ in rows]
        arguments["completions"] = [_text(response) for _, response in rows]
    return arguments


def _accepted(call: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function names, or all of them when it takes `**kwargs`."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return dict(arguments)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def _rows(groups: Sequence[Group]) -> list[tuple[Group, Response]]:
    return [(group, response) for group in groups for response in group.responses]


def _normalized(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _messages(response: Response) -> list[dict[str, str]]:
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    return [_normalized(message) for message in response.messages]


def _text(response: Response) -> str:
    """What the assistant said: its turns of a longer dialogue are joined by line breaks."""
    if response.messages is None:
        return response.text
    return "\n".join(message["content"] for message in response.messages if message["role"] == "assistant")


def _prompt_text(group: Group) -> str:
    """A single message's words; several messages as `role: words` blocks."""
    if len(group.prompt) == 1:
        return group.prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in group.prompt)


class Normalized(Reward):
    """A reward model's score, shifted so that demonstrations have mean 0 (InstructGPT 2022, section 3.5).

    With `gain` also scaled so that they have variance 1, as Ziegler et al. 2019, section 2.1, did with samples of the
    reference policy. Bias and gain are measured once, from raw scores; what could not be scored does not count.
    """

    class Options(alignkit.Options):
        reward_model: RewardRef = Field(description="a stage that trains a reward model, or {folder: PATH}")
        data: DataRef = Field(description="demonstrations")
        gain: bool = Field(False, description="scale too, so that demonstrations have variance 1")

        @field_validator("reward_model")
        @classmethod
        def _one_model(cls, value: Any) -> Any:
            if isinstance(value, dict) and list(value) != ["folder"]:
                raise ValueError("expected a stage that trains a reward model, or {folder: PATH}")
            return value

    options: Options

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        model = self.options.reward_model
        if model.kind not in ("stage", "folder"):
            raise RunFailed(
                f"reward 'normalized': '{model.name}' is no reward model\n"
                "help: reward_model is a stage that trains one, or {folder: PATH}"
            )
        known = [score for score in self._raw(context.load(self.options.data)) if score is not None]
        if not all(map(math.isfinite, known)):
            raise RunFailed(f"reward 'normalized': '{model.name}' gives scores that are not numbers")
        if not known:
            raise RunFailed(f"reward 'normalized': '{model.name}' could score none of the demonstrations")
        import torch

        bias, gain = F.reward_normalizer(torch.tensor(known, dtype=torch.float64))
        self.bias, self.gain = bias, gain if self.options.gain else 1.0

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return {"": [None if raw is None else (raw + self.bias) * self.gain for raw in self._raw(groups)]}

    def _raw(self, groups: Sequence[Group]) -> list[float | None]:
        return self.context.models.scores(self.options.reward_model.name, groups)


class WeightedSum(RewardCombination):
    """Sum of weight times reward, not whitened. A response that lacks a part stays NaN."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(min_length=1, description="rewards by a name of your choice")
        weights: dict[str, float] = Field(description="a number for each of these names")

        @model_validator(mode="after")
        def _same_names(self) -> WeightedSum.Options:
            if lacking := sorted(self.rewards.keys() - self.weights.keys()):
                raise ValueError(f"no weight for {', '.join(lacking)}")
            if unknown := sorted(self.weights.keys() - self.rewards.keys()):
                raise ValueError(f"a weight for {', '.join(unknown)}, which is not among the rewards")
            return self

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """components: name -> [R]."""
        total = sum(weight * components[name] for name, weight in self.options.weights.items())
        plain: Tensor = next(iter(components.values())).new_zeros(()) + total  # [R]
        metrics = {f"{name}_mean": float(components[name].nanmean()) for name in self.options.weights}
        return CombinedReward(reward=plain, raw=plain, metrics={**metrics, "raw_mean": float(plain.nanmean())})


@hookimpl
def register_rewards(register: Register) -> None:
    register("length", Length, summary="length of the response, or its distance to a target")
    register("python", Python, summary="a function in a file of yours, with TRL's signature")
    register("normalized", Normalized, summary="a reward model's score, 0 on average for demonstrations")


@hookimpl
def register_combinations(register: Register) -> None:
    register("weighted_sum", WeightedSum, summary="sum of rewards times weights")
