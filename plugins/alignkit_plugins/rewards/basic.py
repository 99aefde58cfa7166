"""Rewards without a model (`length`, `python`), and a normalized reward model."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

import alignkit
from alignkit import (
    Context,
    DataError,
    DataRef,
    Field,
    Group,
    Message,
    Response,
    Reward,
    RewardRef,
    RunFailed,
)
from alignkit import functional as F
from alignkit.errors import did_you_mean
from alignkit.evaluation.answers import spaced
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.formats.text_metrics import sampled_length
from alignkit_plugins.rewards.named_code import NamedCode, accepted, raised, required


class Length(Reward):
    """Reward long responses, or those near a target length: for smoke tests, and as a baseline for
    length bias.
    """

    class Options(alignkit.Options):
        unit: Literal["tokens", "characters", "words"] = Field(
            "tokens", description="unit of length; tokens include thoughts, the others do not"
        )
        target: int | None = Field(
            None,
            ge=0,
            description=(
                "target length: the reward is minus the distance to it; null: the length itself"
            ),
        )
        scale: float = Field(1.0, description="factor of the reward")

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        self.score(groups)  # raises for the responses of a data set, which have no tokens

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return {
            "": [self._score(_length(response, self.options.unit)) for _, response in _rows(groups)]
        }

    def _score(self, length: int) -> float:
        target = self.options.target
        return self.options.scale * (length if target is None else -abs(length - target))


def _length(response: Response, unit: str) -> int:
    """Tokens are those that the policy wrote, including thoughts and its end of turn; others are of
    its answers.
    """
    if unit == "tokens":
        return sampled_length(response, "length", help="set `unit: words` or `unit: characters`")
    said = all_turns(response)
    return len(said) if unit == "characters" else len(spaced(said).split())


GIVEN = ("prompts", "completions", "completion_ids")  # to every function


class Python(Reward):
    """The user's function with TRL's signature, `f(prompts, completions, **columns)`, which returns
    a number for each.

    As in TRL, None means that it does not apply to a response, and the function may be `async`.
    Differs from TRL: without `**kwargs` it receives only the columns that it names, and an
    exception stops the run.
    """

    class Options(alignkit.Options):
        path: Path | None = Field(
            None, description="path of a .py file, relative to the recipe's folder"
        )
        function: str = Field(
            description=(
                "name of the function in the file, or `package.module:name` of an installed one "
                "instead"
            )
        )
        kwargs: dict[str, Any] = Field(
            default_factory=dict, description="additional keyword arguments of the function"
        )
        conversational: bool = Field(
            False,
            description=(
                "pass prompts and completions as lists of messages, like TRL for chats, not as "
                "strings"
            ),
        )

        @model_validator(mode="after")
        def _one_place(self) -> Any:
            if (self.path is None) == (":" not in self.function):
                raise ValueError("set `path`, or write `function: package.module:name`")
            return self

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            module = self.function.rpartition(":")[0]
            names = importlib.metadata.packages_distributions() if module else {}
            return tuple(sorted(set(names.get(module.partition(".")[0], ()))))

    options: Options
    may_not_apply = True
    runs_code = True
    _folder = Path()
    _call: Callable[..., Any] | None = None

    def check(self, folder: Path) -> None:
        self._folder = folder
        self._call = self._code.load()

    def check_prompts(self, groups: Sequence[Group]) -> None:
        given = {*(name for group in groups for name in group.meta), *GIVEN, *self.options.kwargs}
        missing = [name for name in required(self._call or self._code.load()) if name not in given]
        if missing:
            columns = (
                ", ".join(dict.fromkeys(name for group in groups for name in group.meta)) or "none"
            )
            raise DataError(
                f"{self._name} needs the argument '{missing[0]}', but no prompt has a column of "
                f"this name (other columns: {columns})"
                + (f"\nhelp: {help}" if (help := did_you_mean(missing[0], given)) else "")
            )

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._folder = context.folder
        self._call = self._code.load()

    @property
    def _code(self) -> NamedCode:
        path, (module, _, name) = self.options.path, self.options.function.rpartition(":")
        return NamedCode("reward 'python'", name, path and self._folder / path.expanduser(), module)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        if self._call is None:
            self._call = self._code.load()
        rows = _rows(groups)
        if not rows:
            return {"": []}
        arguments = {**_arguments(rows, self.options.conversational), **self.options.kwargs}
        return {"": self._check(self._run(self._call, accepted(self._call, arguments)), rows)}

    @property
    def _name(self) -> str:
        where = f" of {self.options.path}" if self.options.path else ""
        return f"reward function '{self.options.function}'{where}"

    def _run(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        try:
            result = call(**arguments)
            return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            text = f"{self._name} raised {raised(error, self._code.file or Path())}"
            if isinstance(error, TypeError | AttributeError) and not self.options.conversational:
                text += (
                    "\n"
                    "help: prompts and completions are texts; for lists of messages, set "
                    "'conversational: true'"
                )
            raise RunFailed(text) from error

    def _check(self, result: Any, rows: Sequence[tuple[Group, Response]]) -> list[float | None]:
        if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
            raise RunFailed(
                f"{self._name} returned {result!r:.200}, expected a list of {len(rows)} numbers"
            )
        scores = list(result)
        if len(scores) != len(rows):
            raise RunFailed(
                f"{self._name} returned {len(scores)} scores for {len(rows)} completions"
            )
        return [self._number(score, place, rows) for place, score in enumerate(scores)]

    def _number(
        self, score: Any, place: int, rows: Sequence[tuple[Group, Response]]
    ) -> float | None:
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
            "expected a finite number, or None if it does not apply\n"
            f"  completion: {all_turns(response, thoughts=True)!r:.200}"
        )


async def _wait(result: Any) -> Any:
    return await result


def _arguments(
    rows: Sequence[tuple[Group, Response]], conversational: bool
) -> dict[str, list[Any]]:
    """TRL's arguments: lists with one entry per response; columns repeat over the responses of a
    prompt.
    """
    names = dict.fromkeys(name for group, _ in rows for name in group.meta)
    arguments: dict[str, list[Any]] = {
        name: [group.meta.get(name) for group, _ in rows] for name in names
    }
    if all(response.tokens is not None for _, response in rows):
        arguments["completion_ids"] = [list(response.tokens or ()) for _, response in rows]
    if conversational:
        arguments["prompts"] = [
            [_normalized(message) for message in group.prompt] for group, _ in rows
        ]
        arguments["completions"] = [_messages(response) for _, response in rows]
    else:
        arguments["prompts"] = [_prompt_text(group) for group, _ in rows]
        arguments["completions"] = [all_turns(response, thoughts=True) for _, response in rows]
    return arguments


def _rows(groups: Sequence[Group]) -> list[tuple[Group, Response]]:
    return [(group, response) for group in groups for response in group.responses]


def _normalized(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _messages(response: Response) -> list[dict[str, str]]:
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    return [_normalized(message) for message in response.messages]


def _prompt_text(group: Group) -> str:
    """The text of a single message; several messages become paragraphs `role: text`."""
    if len(group.prompt) == 1:
        return group.prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in group.prompt)


class Normalized(Reward):
    """A reward model's score, shifted so that demonstrations have mean 0 (InstructGPT 2022, section
    3.5).

    With `gain` it is also scaled so that they have variance 1; Ziegler et al. 2019 (section 2.1)
    did so with samples of the reference policy. Bias and gain are measured once, from the raw
    scores of all responses that have one.
    """

    class Options(alignkit.Options):
        reward_model: RewardRef = Field(
            description="stage that trains a reward model, or {folder: PATH}"
        )
        data: DataRef = Field(description="demonstrations that define the mean")
        gain: bool = Field(
            False, description="also scale scores, so that demonstrations have variance 1"
        )

        @field_validator("reward_model")
        @classmethod
        def _one_model(cls, value: Any) -> Any:
            if getattr(value, "kind", "stage") not in ("stage", "folder"):
                raise ValueError("expected a stage that trains a reward model, or {folder: PATH}")
            return value

    options: Options

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        model = self.options.reward_model
        known = [score for score in self._raw(context.load(self.options.data)) if score is not None]
        if not all(map(math.isfinite, known)):
            raise RunFailed(
                f"reward 'normalized': '{model.name}' returns scores that are not finite"
            )
        if not known:
            raise RunFailed(
                f"reward 'normalized': '{model.name}' could not score any demonstration"
            )
        import torch

        bias, gain = F.reward_normalizer(torch.tensor(known, dtype=torch.float64))
        self.bias, self.gain = bias, gain if self.options.gain else 1.0

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return {
            "": [
                None if raw is None else (raw + self.bias) * self.gain for raw in self._raw(groups)
            ]
        }

    def _raw(self, groups: Sequence[Group]) -> list[float | None]:
        return self.context.models[self.options.reward_model.name].scores(groups)
