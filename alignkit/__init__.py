"""alignkit: align language models with human and AI feedback, from YAML recipes and plugins.

This is the name that plugins import. Importing it does not load torch; using some of its names
does.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "algorithm": "Algorithm Needs SelectContext Skip Source StageDefaults Trains",
    "batch": "Batch Loss Outputs Pairs Term per_group per_pair per_response per_token",
    "commands": "RegisterCommand",
    "data.group": "Group Message Pair Response",
    "engine": "Completion Engine EngineContext",
    "environment": "Environment",
    "errors": "AlignkitError BadRow DataError RecipeError RunFailed",
    "formats": "Format",
    "hookspecs": "Add hookimpl",
    "judges": "CheckedJudge",
    "kinds": "Filter Launcher Monitor Observation Reader TrackedRun Tracker",
    "options": "DataRef Field JudgeRef Options PolicyRef RewardRef",
    "report": "Report Table",
    "policy": "Models Policy",
    "reward": "CombinedReward Context Judge Rating Reward RewardCombination Verdict",
    "runs.start": "run",
    "sampling": "Sampling SamplingOptions",
    "step": "Artifact Step StepContext StepData",
}
_HOME = dict[str, str]()
for _module, _names in _WHERE.items():
    _HOME |= dict.fromkeys(_names.split(), _module)
_MODULES = ("evaluation", "functional")
__all__ = [*sorted(_HOME), *_MODULES]

if TYPE_CHECKING:
    from alignkit import evaluation as evaluation
    from alignkit import functional as functional
    from alignkit.algorithm import (
        Algorithm,
        Needs,
        SelectContext,
        Skip,
        Source,
        StageDefaults,
        Trains,
    )
    from alignkit.batch import (
        Batch,
        Loss,
        Outputs,
        Pairs,
        Term,
        per_group,
        per_pair,
        per_response,
        per_token,
    )
    from alignkit.commands import RegisterCommand
    from alignkit.data.group import Group, Message, Pair, Response
    from alignkit.engine import Completion, Engine, EngineContext
    from alignkit.environment import Environment
    from alignkit.errors import AlignkitError, BadRow, DataError, RecipeError, RunFailed
    from alignkit.formats import Format
    from alignkit.hookspecs import Add, hookimpl
    from alignkit.judges import CheckedJudge
    from alignkit.kinds import Filter, Launcher, Monitor, Observation, Reader, TrackedRun, Tracker
    from alignkit.options import DataRef, Field, JudgeRef, Options, PolicyRef, RewardRef
    from alignkit.policy import Models, Policy
    from alignkit.report import Report, Table
    from alignkit.reward import (
        CombinedReward,
        Context,
        Judge,
        Rating,
        Reward,
        RewardCombination,
        Verdict,
    )
    from alignkit.runs.start import run
    from alignkit.sampling import Sampling, SamplingOptions
    from alignkit.step import Artifact, Step, StepContext, StepData


class _Lazy(ModuleType):
    """A module that is imported on first use, so that `from alignkit import functional` does not
    load torch.
    """

    def __getattr__(self, name: str) -> Any:
        # Asked for by pluggy and inspect, which need nothing of the real module
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _Lazy(f"alignkit.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"alignkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute '{name}'")
