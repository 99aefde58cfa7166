"""A tracker: one number of each step as a line of RUN/rewards.tsv."""

from collections.abc import Mapping

from alignkit import Add, TrackedRun, Tracker, hookimpl


class Rewards(Tracker):
    def start(self, run: TrackedRun) -> None:
        self.file = run.folder / "rewards.tsv"

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if "reward" in metrics:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{stage}\t{step}\t{metrics['reward']:.4f}\n")


@hookimpl
def register(add: Add) -> None:
    add("tracker", "rewards_tsv", Rewards, "the reward of each step")
