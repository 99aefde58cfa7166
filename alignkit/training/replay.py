"""The files of rollouts, which later iterations and stages can replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alignkit.data.group import Group, read_groups, write_groups
from alignkit.errors import RunFailed
from alignkit.io.digest import file_digest
from alignkit.training.active_stage import ActiveStage
from alignkit.training.rewards import Rewards
from alignkit.training.rollouts import with_scores


@dataclass(eq=False)
class RolloutFiles:
    """The scored rollouts of a stage on disk, one file per iteration, and those of the stages in
    `replay_from`.

    learns_from_reward: responses without a score are left out. digests: this stage's files by name,
    for its checkpoints.
    """

    stage: ActiveStage
    rewards: Rewards
    learns_from_reward: bool

    def __post_init__(self) -> None:
        self.folder, self.digests = self.stage.folder / "rollouts", dict[str, str]()

    def write(self, iteration: int, groups: Sequence[Group]) -> None:
        file = self._file(iteration)

        def written() -> str:
            write_groups(file, groups)
            return file_digest(file)

        self.digests[file.name] = self.stage.collectives.on_main_process(written)

    def state(self) -> dict[str, str]:
        """What a checkpoint keeps."""
        return self.digests

    def restore(self, digests: Mapping[str, str]) -> None:
        """Continue with the files of a checkpoint. Later ones are removed: they will be written
        again.

        Raises RunFailed if a file has changed since the checkpoint.
        """
        self.digests = dict(digests)
        # People may have deleted others
        for file in filter(Path.is_file, map(self.folder.joinpath, digests)):
            self._check(file)

        def remove_later() -> None:
            for path in self.folder.glob("*.jsonl"):
                if path.name not in digests:
                    path.unlink()

        self.stage.collectives.on_main_process(remove_later)

    def before(self, iteration: int) -> list[list[Group]]:
        """Scored rollouts of the stages in `replay_from`, then of this stage's earlier iterations.

        None, which is reported, if their scores cannot be compared with the current ones. Raises
        RunFailed if a file has changed since this stage wrote it.
        """
        if not self.rewards.comparable:
            name = self.rewards.name
            self.stage.say(
                f"earlier samples are not replayed: scores of '{name}' change between iterations"
            )
            return []
        for name in self.digests:
            self._check(self.folder / name)
        everything = [*self._replayed, *map(self.seen, range(1, iteration))]
        return list(map(with_scores, everything)) if self.learns_from_reward else everything

    def seen(self, iteration: int) -> list[Group]:
        """What an iteration sampled; empty if people deleted the file."""
        file = self._file(iteration)
        return read_groups(file) if file.is_file() else []

    def _check(self, file: Path) -> None:
        if not file.is_file() or file_digest(file) != self.digests[file.name]:
            raise RunFailed(
                f"{file} has changed since stage '{self.stage.name}' wrote it\n"
                f"help: delete {self.stage.folder.resolve()}, and the stage starts over"
            )

    def _file(self, iteration: int) -> Path:
        return self.folder / f"{iteration:04d}.jsonl"

    @cached_property
    def _replayed(self) -> list[list[Group]]:
        """Rollouts of other stages, scored again by this stage's reward, whose scale may differ
        from theirs.
        """
        penalty = self.stage.settings.rollout.missing_eos_penalty
        replayed: list[list[Group]] = []
        for earlier in self.stage.settings.replay_from:
            paths = sorted(
                (self.stage.folder.parent / earlier / "rollouts").glob("*.jsonl"),
                key=lambda path: int(path.stem),
            )
            if not paths:
                raise RunFailed(
                    f"stage '{self.stage.name}': replay_from: stage '{earlier}' has no rollouts"
                )
            for groups in map(read_groups, paths):
                replayed.append(self.rewards.score(groups, penalty))
        return replayed
