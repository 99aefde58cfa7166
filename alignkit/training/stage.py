"""What training stages share, from a data set or in iterations: roles, the learner, encoding, checkpoints, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignkit import seeds
from alignkit.algorithm import REWARD, Algorithm
from alignkit.data.group import Group, previews, resolved_pairs
from alignkit.data.sources import DataSpec
from alignkit.errors import DataError
from alignkit.io.progress import Metrics, Reporter
from alignkit.models.encoding import Encoded, encode_all
from alignkit.models.service import ModelService
from alignkit.models.shared_model import BASE
from alignkit.recipe.schema import RewardSpec, Stage, specs
from alignkit.reward import Context
from alignkit.settings import Settings
from alignkit.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alignkit.training.learner import Learner, Mix

ENCODING_FACTS = {
    "no_room": "left out: the prompt leaves no room in max_length",
    "cut": "responses cut at max_length",
    "equal_pairs": "pairs left out: equal in tokens",
    "uncounted_pairs": "pairs left out: no token of a response counts",
}


@dataclass
class StageContext:
    """What a training stage works with."""

    stage: Stage
    engine: ModelService
    folder: Path
    seed: int
    load: Callable[[DataSpec], Any]
    context: Callable[[], Context]
    earlier_stage: Callable[[str], Path]
    reporter: Reporter
    notify: Callable[..., None]
    should_stop: Callable[[], None]

    @property
    def settings(self) -> Settings:
        assert self.stage.settings is not None
        return self.stage.settings

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


class StageWork:
    """What both kinds of training stage share: roles, learner, checkpoints, metrics."""

    def __init__(self, run: StageContext, algorithm: Algorithm):
        self.run_, self.algorithm = run, algorithm
        self.settings, self.engine, self.policy = run.settings, run.engine, run.engine.policy
        self.summary: dict[str, Any] = {}
        self.max_length = min(self.settings.max_length, self.policy.context)
        if self.max_length < self.settings.max_length:
            run.reporter.say(f"{run.name}: max_length is {self.max_length}, the model's context")
        self.role = f"{run.name}~new"
        self.value_role: str | None = None
        head = "scalar" if algorithm.trains is REWARD else "language"
        self.policy.seed = seeds.number(run.seed, run.name, "init")
        source = self.settings.from_ or BASE
        start = self.engine.role(source)
        self.policy.add_role(self.role, start=start, head=head)  # type: ignore[arg-type]
        self.reference_name = self.settings.reference or source
        self.reference = self.engine.role(self.reference_name)
        value_source = self._add_value_role() if algorithm.needs.values else None
        self.learner = Learner(
            self.policy, algorithm, self.settings, self.role, self.value_role, self._temperature(), self._mix()
        )
        checkpoint = load_checkpoint(run.folder / "checkpoints", run.reporter.say)
        self.done: dict[str, Any] = {}
        if checkpoint is not None:
            self.learner.restore(checkpoint.tensors, checkpoint.state["learner"])
            self.done = checkpoint.state
            self._tell_changes(checkpoint.state)
            run.reporter.say(f"{run.name}: continuing after {self.done['position']}")
        self.metrics = Metrics(run.folder / "metrics.jsonl", int(self.done.get("metrics_bytes", 0)))
        facts = [f"starts from {source}"]
        if algorithm.needs.reference_logprobs:
            facts.append(f"reference is {self.reference_name}")
        if value_source is not None:
            facts.append(f"value starts from {value_source}")
        run.reporter.say(f"{run.name}: {run.stage.component.name}, {', '.join(facts)}")

    def _tell_changes(self, state: Mapping[str, Any]) -> None:
        """What else than on the machine that wrote the checkpoint changes the result."""
        threads, dtype = torch.get_num_threads(), self.policy.dtype_name
        if state["threads"] != threads:
            self._say(
                f"the checkpoint was written with {state['threads']} threads, now there are {threads}: the result may "
                "differ in the last bits (OMP_NUM_THREADS sets it)"
            )
        if (before := state.get("dtype", dtype)) != dtype:  # `auto` on another processor
            self._say(f"the checkpoint was written in {before}, this machine takes {dtype}: the result will differ")

    def _say(self, text: str) -> None:
        self.run_.reporter.say(f"{self.run_.name}: {text}")

    def _temperature(self) -> float:
        return 1.0

    def _add_value_role(self) -> str:
        """InstructGPT starts the value function from a reward model; without one it starts at zero. Gives which.

        The head is kept only where that model's own score is the reward: a combination is on another scale (Llama 2's
        is whitened), and a value on a wrong scale is worse than none.
        """
        self.value_role = f"{self.run_.name}~value"
        if self.algorithm.needs.shared_values:
            self.policy.add_head(self.value_role, self.role)
            return "a zero head on the policy"
        reward = self.settings.reward
        models = [spec.name for spec in specs(reward, RewardSpec) if spec.kind == "stage"]
        source = self.settings.value_from or (models[0] if models else None)
        start = self.role if source is None else self.engine.role(source)
        role = self.policy.add_role(self.value_role, start=start, head="scalar")
        own = source is not None and reward is not None and reward.kind == "stage" and reward.name == source
        if own and not self.algorithm.needs.centered_values:
            return str(source)
        assert role.head is not None
        role.head.data.zero_()
        return "a zero head" if source is None else f"{source} with a zero head"

    def _mix(self) -> Mix | None:
        mix = self.settings.mix
        if mix is None or mix.weight == 0:
            return None
        groups = self.run_.load(mix.data).groups
        if any(bool(g.prompt) != (mix.objective == "sft") or len(g.responses) != 1 for g in groups):
            wanted = (
                "raw text, without prompts" if mix.objective == "text" else "demonstrations: prompts with one response"
            )
            raise DataError(f"{self.run_.name}.mix: objective '{mix.objective}' wants {wanted}")
        encoded = self._encode(groups)
        if not encoded:
            raise DataError(f"{self.run_.name}.mix.data has no usable row")
        size = mix.batch_size or self.settings.batch_size or 1

        def draw(count: int) -> list[Encoded]:
            # Epochs over the second stream follow from the number of steps alone, so that a resumed run agrees.
            first = self.learner.steps * size
            picks = []
            for place in range(first, first + count):
                epoch, at = divmod(place, len(encoded))
                order = seeds.stream(self.run_.seed, self.run_.name, "mix", epoch).permutation(len(encoded))
                picks.append(encoded[int(order[at])])
            return picks

        return Mix(draw, mix.weight, size)

    def _encode(self, groups: Sequence[Group]) -> list[Encoded]:
        """Encode and report what did not fit."""
        found = self._encoded(groups)
        if counts := self._count_unfit():
            named = self.engine.encoder.groups
            facts = "; ".join(f"{n} {ENCODING_FACTS[name]} ({previews(named[name])})" for name, n in counts.items())
            self._say(f"of {len(groups)} groups: {facts}")
        return found

    def _encoded(self, groups: Sequence[Group]) -> list[Encoded]:
        encoder = self.engine.encoder
        encoder.forget_counts()
        scoring = self.algorithm.trains is REWARD
        return encode_all(encoder, groups, self.max_length, turns=self.algorithm.trained_turns(), scoring=scoring)

    def _count_unfit(self) -> dict[str, int]:
        """Add what the last `_encoded` could not use to the summary; gives that."""
        counts = {name: count for name, count in self.engine.encoder.counts.items() if count}
        if counts:
            self._add_counts("encoding", counts)
        return counts

    def _add_counts(self, key: str, counts: Mapping[str, int]) -> None:
        before = self.summary.get(key, {})
        self.summary[key] = {name: before.get(name, 0) + counts.get(name, 0) for name in {**before, **counts}}

    def _require(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """Groups the algorithm can learn from; others are reported, but for those whose pairs the encoder counted."""
        kept, lost = self._usable(encoded)
        self._count_lost(lost)
        if lost:
            self._say(f"{len(lost)} rows without {wanted(self.algorithm)} are left out: {previews(lost)}")
        return kept

    def _usable(self, encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[Group]]:
        needs = self.algorithm.needs
        kept, lost = [], []
        for e in encoded:
            if len(e.rows) >= needs.min_samples and (e.pairs or not needs.pairs):
                kept.append(e)
            elif not (needs.pairs and resolved_pairs(e.group)):
                lost.append(e.group)
        return kept, lost

    def _count_lost(self, lost: Sequence[Group]) -> None:
        if lost:
            self.summary["without_signal"] = self.summary.get("without_signal", 0) + len(lost)

    def checkpoint(self, number: int, position: str, **more: Any) -> None:
        tensors, state = self.learner.state()
        everything = {
            "learner": state,
            "position": position,
            "threads": torch.get_num_threads(),
            "dtype": self.policy.dtype_name,
            "metrics_bytes": self.metrics.sync(),
            "summary": self.summary,
            **more,
        }
        path = save_checkpoint(self.run_.folder / "checkpoints", number, Checkpoint(tensors, everything))
        self.done = everything
        self.run_.notify("checkpoint_saved", path=str(path))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.metrics.write(stage=self.run_.name, step=step, **metrics)
        self.run_.notify("metrics_logged", step=step, metrics=metrics)

    def finish(self) -> dict[str, Any]:
        self.metrics.sync()
        if not self.run_.adapter.exists():
            self.policy.save(self.role, self.run_.adapter)
        return self.summary

    def close(self) -> None:
        self.policy.drop_role(self.role)
        if self.value_role is not None:
            self.policy.drop_role(self.value_role)
        self.run_.reporter.stop()

    def run(self) -> dict[str, Any]:
        raise NotImplementedError


def wanted(algorithm: Algorithm) -> str:
    needs = []
    if algorithm.needs.pairs:
        needs.append("pairs of a better and a worse response")
    if algorithm.needs.min_samples > 1:
        needs.append(f"{algorithm.needs.min_samples} responses a prompt")
    return ", ".join(needs) or "a response with a token that counts"
