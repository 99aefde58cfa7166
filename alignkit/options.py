"""Options of plugins, and the marks for options that refer to stages, data, rewards or judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Field


class Options(BaseModel):
    """Base class of every plugin's options.

    Unknown keys are errors. Give every field a description and, if possible, a range.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    def asks_engine(self) -> bool:
        """Whether what has these options samples from models, so that the recipe's engine is its stage's, too."""
        return False


_Options = Options  # a nested class has the name


class WithOptions:
    """Base class of what a recipe names with options, from which each instance is made."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options


@dataclass(frozen=True)
class Ref:
    """Marks an option as a reference, so that the stage graph is known before anything runs."""

    kind: str  # one that `alignkit.recipe.load` reads

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """A marker that `alignkit plugins --schema` replaces by the schema of such references."""
        return {"x-alignkit": self.kind}


StageRef = Annotated[str, Ref("stage")]  # a stage; stays text: `base`, `sft` or `sft@2`
PolicyRef = Annotated[str, Ref("policy")]  # a stage that can sample; stays text: `base`, `sft` or `sft@2`
RewardRef = Annotated[Any, Ref("reward")]  # a reward; becomes what `context.scorer` takes
DataRef = Annotated[Any, Ref("data")]  # data; becomes what `context.load` takes
FilterRef = Annotated[Any, Ref("filter")]  # a filter of scored groups; becomes a component
MonitorRef = Annotated[Any, Ref("monitor")]  # a monitor of samples; becomes a component
JudgeRef = Annotated[Any, Ref("judge")]  # a judge; becomes what `CheckedJudge` takes
EnvironmentRef = Annotated[Any, Ref("environment")]  # an environment; a stage plays it with every response
ConstitutionRef = Annotated[Any, Ref("constitution")]  # a constitution; becomes a tuple of `Principle`
