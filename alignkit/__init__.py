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
    "contract.algorithm": "Algorithm Needs SelectContext Skip Source StageDefaults Trains",
    "contract.batch": "Batch Loss Outputs Pairs Term per_group per_pair per_response per_token",
    "contract.commands": "RegisterCommand",
    "contract.engine": "Completion Engine EngineSetup",
    "contract.environment": "Environment",
    "contract.formats": "Format",
    "contract.hookspecs": "Add hookimpl",
    "contract.kinds": "Filter Launcher Monitor MonitorReport Reader TrackedRun Tracker",
    "contract.options": "DataRef Field JudgeRef Options PolicyRef RewardRef",
    "contract.policy": "Models Policy",
    "contract.report": "Report Table",
    "contract.reward": "CombinedReward Context Judge Rating Reward RewardCombination Verdict",
    "contract.settings": "Sampling SamplingOptions",
    "contract.step": "Artifact Step StepContext StepData",
    "data.group": "Group Message Pair Response",
    "errors": "AlignkitError BadRow DataError RecipeError RunFailed",
    "host.judges": "CheckedJudge",
    "runs.start": "run",
}
_HOME = dict[str, str]()
for _module, _names in _WHERE.items():
    _HOME |= dict.fromkeys(_names.split(), _module)
_MODULES = ("evaluation", "functional")
__all__ = [*sorted(_HOME), *_MODULES]

if TYPE_CHECKING:
    from alignkit import evaluation as evaluation
    from alignkit import functional as functional
    from alignkit.contract.algorithm import (
        Algorithm,
        Needs,
        SelectContext,
        Skip,
        Source,
        StageDefaults,
        Trains,
    )
    from alignkit.contract.batch import (
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
    from alignkit.contract.commands import RegisterCommand
    from alignkit.contract.engine import Completion, Engine, EngineSetup
    from alignkit.contract.environment import Environment
    from alignkit.contract.formats import Format
    from alignkit.contract.hookspecs import Add, hookimpl
    from alignkit.contract.kinds import (
        Filter,
        Launcher,
        Monitor,
        MonitorReport,
        Reader,
        TrackedRun,
        Tracker,
    )
    from alignkit.contract.options import DataRef, Field, JudgeRef, Options, PolicyRef, RewardRef
    from alignkit.contract.policy import Models, Policy
    from alignkit.contract.report import Report, Table
    from alignkit.contract.reward import (
        CombinedReward,
        Context,
        Judge,
        Rating,
        Reward,
        RewardCombination,
        Verdict,
    )
    from alignkit.contract.settings import Sampling, SamplingOptions
    from alignkit.contract.step import Artifact, Step, StepContext, StepData
    from alignkit.data.group import Group, Message, Pair, Response
    from alignkit.errors import AlignkitError, BadRow, DataError, RecipeError, RunFailed
    from alignkit.host.judges import CheckedJudge
    from alignkit.runs.start import run


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
