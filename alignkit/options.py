"""Options: the keys that a recipe may write for a plugin, and marks for those that refer to something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Field


class Options(BaseModel):
    """Base of every plugin's options. Unknown keys are errors; every field has a description and, if it can, a range."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Ref:
    """Marks an option as a reference, so that the graph of stages is known before anything runs."""

    kind: Literal["stage", "policy", "from", "reward", "data", "judge"]


StageRef = Annotated[str, Ref("stage")]  # stays text: `base`, `sft` or `sft@2`
PolicyRef = Annotated[str, Ref("policy")]  # the same, but not a reward model
RewardRef = Annotated[Any, Ref("reward")]  # becomes a RewardSpec
DataRef = Annotated[Any, Ref("data")]  # becomes a DataSpec
JudgeRef = Annotated[Any, Ref("judge")]  # becomes a Component
