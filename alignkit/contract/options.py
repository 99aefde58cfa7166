"""Options of plugins, and the marks for options that refer to stages, data, rewards or judges."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic import Field as field
from pydantic_core import PydanticUndefined, core_schema


def Field(default: Any = PydanticUndefined, description: str | None = None, **more: Any) -> Any:
    """A field of options.

    Args:
        default: Without one, the field is required.
        description: What `alignkit plugins NAME` says of it.
        more: What pydantic's `Field` takes, such as `ge=0`.
    """
    return field(default, description=description, **more)


class Options(BaseModel):
    """Base class of every plugin's options.

    Unknown keys are errors. Give every field a description and, if possible, a range.

    Properties of a reward's options say more of its scores. `packages`: names of packages whose
    versions decide them. `grader`: a name that rewards and judges share if they measure the same, so
    that none of them is an independent measure of what another one taught; default: the plugin's,
    whatever its options are. `verifies`: whether the scores only say that an answer is the prompt's
    known one, which makes them independent of training on prompts that were not trained on.

    changes_no_result: options, such as an address, that may change without making a stage's result
    another one.
    """

    changes_no_result: ClassVar[frozenset[str]] = frozenset()

    # A reference may be the default of an option.
    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*")
    @classmethod
    def _of_a_recipe(cls, value: Any, info: ValidationInfo) -> Any:
        """A file that a recipe names must exist, and starts at the recipe's folder."""
        if isinstance(value, Path) and info.context is not None:
            return info.context.file(value)
        return value

    @model_validator(mode="after")
    def _values_fit(self) -> Any:
        self.check_values()
        return self

    def check_values(self) -> None:
        """Raise ValueError if values do not fit each other."""

    def asks_engine(self) -> bool:
        """Whether what has these options samples from models, so that the recipe's engine is its
        stage's, too.
        """
        return False


_Options = Options  # a nested class has the name


class WithOptions:
    """Base class of what a recipe names with options, from which each instance is made."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options


# Arguments that alignkit itself gives to functions and classes which are registered.
GIVEN = {
    "params",
    "lr",
    "step",
    "total",
    "warmup",
    "rate",
    "cache",
    "path",
    # Arguments of transformers' schedules
    "optimizer",
    "last_epoch",
    "num_warmup_steps",
    "num_training_steps",
    "warmup_type",
}


def options_of_call(function: Callable[..., Any]) -> type[Options]:
    """The options of a function or class without `Options`: its arguments, but for those that
    alignkit gives.
    """
    try:
        hints = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except (NameError, TypeError):  # names that only type checkers import
        hints = {}
    fields: dict[str, Any] = {
        name: (
            hints.get(name, Any),
            ... if argument.default is argument.empty else argument.default,
        )
        for name, argument in inspect.signature(function).parameters.items()
        if name not in GIVEN
        and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    }
    return create_model("Options", __base__=Options, **fields)


@dataclass(frozen=True)
class Ref:
    """Marks an option as a reference, so that the stage graph is known before anything runs."""

    kind: str  # `read_KIND` of `alignkit.recipe.references.Resolver` reads it

    def read(self, value: Any, info: ValidationInfo) -> Any:
        """Replace what a recipe writes by what it means. Outside of a recipe, a value is what it
        means.
        """
        if value is None or info.context is None:
            return value
        return info.context.resolve(self.kind, value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schema = handler(source)
        if schema["type"] == "any":  # any other type is checked first
            return core_schema.with_info_before_validator_function(self.read, schema)
        return core_schema.with_info_after_validator_function(self.read, schema)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """A marker that `alignkit plugins --schema` replaces by the schema of such references."""
        return {"x-alignkit": self.kind}


StageRef = Annotated[str, Ref("stage")]  # a stage; stays text: `base`, `sft` or `sft@2`
PolicyRef = Annotated[str, Ref("policy")]
"""An option that names a stage that can sample, or `base`. Stays text: `base`, `sft` or `sft@2`."""
RewardRef = Annotated[Any, Ref("reward")]
"""An option that names a reward. Becomes what `StepContext.scorer` takes."""
DataRef = Annotated[Any, Ref("data")]
"""An option that names data. Becomes what `StepContext.load` takes."""
FilterRef = Annotated[Any, Ref("filter")]  # a filter of scored groups; becomes a component
MonitorRef = Annotated[Any, Ref("monitor")]  # a monitor of samples; becomes a component
JudgeRef = Annotated[Any, Ref("judge")]
"""An option that names a judge. Becomes what `CheckedJudge` takes."""
# An environment; a stage plays it with every response
EnvironmentRef = Annotated[Any, Ref("environment")]


def in_recipe(kind: str) -> AfterValidator:
    """Marks text that a recipe checks and completes, such as the name of a base model."""
    return AfterValidator(Ref(kind).read)
