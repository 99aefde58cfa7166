"""What is known of a model's training: the prompts that it has seen, and whether its scores are log-odds.

An evaluation on prompts that were trained on says little about others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from alignkit.data.group import Group, prompts_of, sha256_of
from alignkit.data.sources import DataSpec
from alignkit.io.stage_results import read_record
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs
from alignkit.runs.stage_store import StageStore


def trained_on(
    model: str | RewardSpec,
    prompts: Sequence[Group],
    recipe: Recipe,
    chosen: Callable[[str], str | None],
    read: Callable[[DataSpec], Iterable[Group]],
) -> dict[str, set[int]]:
    """For each training stage of a model, the places of the prompts in its data; stages without any are left out.

    model: a policy, or a reward with any number of reward models. A model's stages are its own and those that its
    starting weights come from. chosen: the policy that a step selected. read: the groups of a data entry that are not
    held out. Prompts are equal if their words are.
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(prompts):
        places.setdefault(_words(group), []).append(place)
    found: dict[str, set[int]] = {}
    rewards = [spec.name for spec in specs(model, RewardSpec) if spec.kind == "stage"]
    names = [model] if isinstance(model, str) else rewards
    for stage in chain.from_iterable(_lineage(name, recipe, chosen) for name in names):
        trained = [group for spec in _training_data(stage) for group in read(spec)]
        # A dialogue is learned from its first answer on, and asked about at its last.
        words = {_words(group) for group in (*trained, *prompts_of(trained)) if group.prompt}
        seen = {place for key in words & places.keys() for place in places[key]}
        if seen:
            found[stage.name] = seen
    return found


def log_odds(store: StageStore, reward: RewardSpec) -> bool | None:
    """What the stage that trained a reward model says of its scores (`Algorithm.log_odds`); None if that is unknown.

    store: of the run, for its own stages. A reward model of another run lies in the folder of its stage.
    """
    if reward.kind not in ("stage", "folder"):
        return None
    folder = store.artifact(reward.name) if reward.kind == "stage" else Path(reward.name)
    stage = folder.parent if folder.name == "adapter" else folder.parent.parent  # STAGE/kept/K
    said = read_record(stage).get("log_odds")
    return said if isinstance(said, bool) else None


def _lineage(name: str, recipe: Recipe, chosen: Callable[[str], str | None]) -> Iterator[Stage]:
    """The training stages that a model went through, latest first."""
    reference: str | None = name
    while reference is not None and (stage := recipe.stages.get(reference.partition("@")[0])) is not None:
        if stage.settings is None:
            reference = chosen(stage.name)
        else:
            yield stage
            reference = stage.settings.from_


def _training_data(stage: Stage) -> list[DataSpec]:
    settings = stage.settings
    if settings is None:
        return []
    entries = [settings.data, settings.prompts, settings.mix.data if settings.mix else None]
    return [entry for entry in entries if entry is not None]


def _words(group: Group) -> str:
    """The same for prompts with the same roles and words."""
    return sha256_of([[turn["role"], turn.get("content", "").strip()] for turn in group.prompt])
