"""alignkit: align language models with human and AI feedback, from YAML recipes and plugins.

A plugin imports this one name. Nothing here loads torch before it is used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "algorithm": (
        "Algorithm Batch DATASET Field Loss Needs Options Outputs POLICY Pairs Per Phase REWARD ROLLOUTS Runner "
        "SelectContext StageDefaults Term per_group per_pair per_response per_token"
    ),
    "data": "Group Message Pair Response resolved_pairs",
    "errors": "AlignkitError BadRow DataError PluginError RecipeError RemoteError RunFailed",
    "formats": "Format",
    "hookspecs": "hookimpl",
    "recipe": "DataRef JudgeRef PolicyRef RewardRef StageRef",
    "reward": "Combine Combined Context Judge Models Reward Verdict",
    "step": "Artifact Step StepContext",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names.split()}
_MODULES = ("agreement", "dialogues", "functional", "ranking", "statistics")
__all__ = [*sorted(_HOME), *_MODULES]

if TYPE_CHECKING:
    from alignkit import agreement as agreement
    from alignkit import dialogues as dialogues
    from alignkit import functional as functional
    from alignkit import ranking as ranking
    from alignkit import statistics as statistics
    from alignkit.algorithm import (
        DATASET,
        POLICY,
        REWARD,
        ROLLOUTS,
        Algorithm,
        Batch,
        Field,
        Loss,
        Needs,
        Options,
        Outputs,
        Pairs,
        Per,
        Phase,
        Runner,
        SelectContext,
        StageDefaults,
        Term,
        per_group,
        per_pair,
        per_response,
        per_token,
    )
    from alignkit.data import Group, Message, Pair, Response, resolved_pairs
    from alignkit.errors import AlignkitError, BadRow, DataError, PluginError, RecipeError, RemoteError, RunFailed
    from alignkit.formats import Format
    from alignkit.hookspecs import hookimpl
    from alignkit.recipe import DataRef, JudgeRef, PolicyRef, RewardRef, StageRef
    from alignkit.reward import Combine, Combined, Context, Judge, Models, Reward, Verdict
    from alignkit.step import Artifact, Step, StepContext


class _Lazy(ModuleType):
    """Stands for a module that is imported when something in it is asked for: `import` alone loads no torch."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # who inspects modules (pluggy, inspect) wants nothing from this one
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _Lazy(f"alignkit.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"alignkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute '{name}'")
