"""Which algorithms learn from the keys that a stage has, if the one that it names learns from others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from alignkit.algorithm import ROLLOUTS, Needs, Trains
from alignkit.external import ExternalTrainer
from alignkit.registry import Registry


def wrong_kind(name: str, algorithm: Any, written: Collection[str], registry: Registry) -> tuple[str, str] | None:
    """The message and the help for a stage whose keys are those of the other kind of algorithm; None if they are not.

    algorithm: the class that the stage names. written: the stage's keys.
    """
    if issubclass(algorithm, ExternalTrainer):  # which keys it reads depends on its options
        return None
    online = algorithm.source is ROLLOUTS
    theirs, own = ("data", "prompts") if online else ("prompts", "data")
    if theirs not in written or own in written:
        return None
    if online:
        message = f"{name} learns from its own responses to 'prompts', but the stage has 'data'"
        instead = "'prompts: FILE' and 'reward: REWARD'" if _reward(algorithm) else "'prompts: FILE'"
        first = f"{name} needs {instead} instead of 'data'"
    else:
        message = f"{name} learns from 'data', but the stage has 'prompts', as algorithms do that sample"
        needs = getattr(algorithm, "needs", None)
        what = "pairs in a file" if isinstance(needs, Needs) and needs.pairs else "a file"
        first = f"{name} learns from {what}: 'data: FILE' instead of the stage's keys"
    names = _same_keys(name, not online, "reward" in written, registry)
    if not names:
        return message, first
    closest, *others = names
    also = f", as {'do' if len(others) > 1 else 'does'} {', '.join(others)}" if others else ""
    return message, f"{first}; {closest} takes these keys{also}"


def _same_keys(name: str, online: bool, reward: bool, registry: Registry) -> list[str]:
    """The algorithms that train policies from samples, or from files; those that are named like this one come first."""
    found = [
        one.name
        for one in registry.registrations("algorithm")
        if (one.implementation.source is ROLLOUTS) == online
        and one.implementation.trains is Trains.POLICY
        and not issubclass(one.implementation, ExternalTrainer)
        and (not reward or _reward(one.implementation))
    ]
    return sorted(found, key=lambda other: (not (name in other or other in name), other))


def _reward(algorithm: Any) -> bool:
    """Whether an algorithm has a reward, as far as that is known without its options."""
    needs = getattr(algorithm, "needs", None)
    return needs.reward if isinstance(needs, Needs) else True
