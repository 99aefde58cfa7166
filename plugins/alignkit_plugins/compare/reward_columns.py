"""Groups scored by several rewards, each a column of tables: its own, and the parts of a
combination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import folder_parts


@dataclass(frozen=True)
class Column:
    """A score of every response.

    name: in the tables. key: the scorer's.
    model: the reward model that gives it, a RewardRef; None if there is none.
    """

    name: str
    key: str
    model: Any


def label(spec: Any) -> str:
    """The name of a reward in the tables; `spec` as in the recipe, or validated."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, dict):
        ((name, value),) = list(spec.items())[:1] or [("", "")]
        return _folder_label(str(value)) if name == "folder" else str(name)
    return _folder_label(spec.name) if spec.kind == "folder" else str(spec.name)


def _folder_label(folder: str) -> str:
    """A folder's name, and `RUN/STAGE` for a reward model of another run."""
    path = Path(folder)
    return (
        "/".join(folder_parts(folder)[-2:])
        if path.name == "adapter" and len(path.parts) > 2
        else path.name
    )


def columns_of(
    spec: Any, keys: Sequence[str] | Mapping[str, Any], rewards: Sequence[Any]
) -> list[Column]:
    """The columns of a reward whose scorer wrote these keys. A combination also shows its parts,
    except those that are among `rewards` themselves.
    """
    if spec.kind != "combine":
        return [Column(label(spec), REWARD_KEY, model=_model(spec))]
    parts = [key for key in keys if key != REWARD_KEY and spec.children.get(key) not in rewards]
    columns = [
        Column(f"{label(spec)}/{key}", key, model=_model(spec.children.get(key))) for key in parts
    ]
    return [*columns, Column(label(spec), REWARD_KEY, model=None)]


def _model(spec: Any) -> Any:
    return spec if spec is not None and spec.kind in ("stage", "folder") else None


def scored_by(
    groups: Sequence[Group],
    rewards: Sequence[Any],
    scorers: Sequence[Any],
    say: Callable[[str], None],
) -> tuple[list[Group], list[Column]]:
    """The groups with all columns among their responses' scores, and the columns.

    scorers: those of the rewards (`StepContext.scorer`), which see no scores of the data. say:
    called with the name of a reward before it scores.
    """
    unscored, merged, columns = bare(groups), list(groups), []
    for spec, scorer in zip(rewards, scorers, strict=True):
        say(label(spec))
        found = scorer.score(unscored)
        new = columns_of(spec, found[0].responses[0].scores, rewards)
        keys = {column.name: column.key for column in new}
        merged = [with_scores(old, scored, keys) for old, scored in zip(merged, found, strict=True)]
        columns += new
    return merged, columns


def bare(groups: Sequence[Group]) -> list[Group]:
    """The groups without scores."""
    found = []
    for group in groups:
        found.append(
            replace(
                group, responses=tuple(replace(response, scores={}) for response in group.responses)
            )
        )
    return found


def with_scores(group: Group, scored: Group, keys: Mapping[str, str]) -> Group:
    """The group with scores of the scored one, by new names. keys: the score of each name."""
    responses = []
    for old, new in zip(group.responses, scored.responses, strict=True):
        scores = {name: new.scores[key] for name, key in keys.items()}
        responses.append(replace(old, scores={**old.scores, **scores}))
    return replace(group, responses=tuple(responses))
