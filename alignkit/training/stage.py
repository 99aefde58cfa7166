"""The parts that both kinds of training stage share: roles, encoder, learner, checkpoints, metrics, summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from alignkit import shapes
from alignkit.algorithm import Algorithm, Phase, SelectContext, Source
from alignkit.calls import blame, call, mistake
from alignkit.data.group import Group
from alignkit.tokens.encoder import Encoded
from alignkit.training.auxiliary import auxiliary_loss
from alignkit.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alignkit.training.context import StageContext
from alignkit.training.encoding import ReferencePrompts, StageEncoder
from alignkit.training.learner import Learner
from alignkit.training.roles import StageRoles, add_roles

T = TypeVar("T")


def select(algorithm: Algorithm, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
    """The phases to learn from; groups that the algorithm puts into none form one."""
    chosen = call(algorithm, "select", groups, context, returns=shapes.selection)
    phases = [item for item in chosen if isinstance(item, Phase)]
    return phases or [Phase(chosen)]


def keep_mask(algorithm: Algorithm, groups: Sequence[Group]) -> list[bool]:
    """Whether the algorithm learns from each group."""
    return [bool(call(algorithm, "keep_group", group)) for group in groups]


class TrainerState:
    """A stage that is ready to train, from its last checkpoint if it has one.

    done: that checkpoint's state, empty if there is none. summary: for stage.json. reference_models: those on the
    reference's base model.
    """

    def __init__(self, context: StageContext, algorithm: Algorithm, temperature: float = 1.0):
        """temperature: of the policy's distributions; rollouts are learned at the temperature they were sampled at."""
        self.context, self.settings = context, context.settings
        self.models, self.model = context.models, context.model
        self.algorithm = algorithm
        with blame(algorithm, "needs"):
            needs = algorithm.needs
        if needs.old_logprobs and algorithm.source is Source.DATASET:
            text = "old_logprobs exist only for rollouts: declare `source = Source.ROLLOUTS`"
            raise mistake(algorithm, "needs", text)
        self.summary = context.summary
        self.encoder = StageEncoder(context, self.algorithm, self.summary)
        self.roles = add_roles(context, self.algorithm)
        self.reference_models = context.models_of(self.roles.reference_name)
        theirs, where = self.reference_models, f"stage '{context.name}': "
        policy = None if theirs is self.models else self.models.encoder
        self.reference_prompts = ReferencePrompts(self.algorithm, theirs.encoder, theirs.model, where, policy)
        self.learner = Learner(
            self.model,
            self.algorithm,
            self.settings,
            self.roles.trained,
            self.roles.values,
            temperature,
            auxiliary_loss(context, self.encoder),
            context.collectives,
        )
        self.done: dict[str, Any] = {}
        self._resume()
        self.metrics = context.metrics(int(self.done.get("metrics_bytes", 0)))
        context.activity(f"{context.stage.component.name} from {_described(self.roles, self.algorithm)}")

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.context.folder / "checkpoints", self.context.reporter.say)
        if checkpoint is None:
            return
        begun = self.algorithm.state  # by `select`: held-out rows are selected as in the first start
        self.learner.restore(checkpoint.tensors, checkpoint.state["learner"])
        self.algorithm.state = begun
        for base, models in self.context.bases().items():
            models.model.memory.restore(checkpoint.state.get("memory", {}).get(base) or {"halvings": 0})
        self.done = checkpoint.state
        self._warn_of_changes(checkpoint.state)
        self.context.say(f"continuing after {self.done['position']}")

    def _warn_of_changes(self, state: Mapping[str, Any]) -> None:
        """Report differences from the machine that wrote the checkpoint, if they change the result."""
        threads, dtype = torch.get_num_threads(), self.model.dtype_name
        if state["threads"] != threads:
            self.context.say(
                f"the checkpoint was written with {state['threads']} threads, but this run uses {threads}: the "
                f"result may differ in the last bits; set OMP_NUM_THREADS={state['threads']} to avoid this"
            )
        if state["dtype"] != dtype:  # `auto` depends on the processor
            self.context.say(
                f"the checkpoint was written in {state['dtype']}, but this machine uses {dtype}: the result will differ"
            )

    def restore_progress(self) -> None:
        """Continue with the checkpoint's summary, which has this start's counts, and with the algorithm's state."""
        if self.done:
            self.summary.clear()
            self.summary.update(self.done["summary"])
            self.learner.restore_algorithm(self.done["learner"])

    def checkpoint(self, number: int, position: str, **more: Any) -> None:
        """Write checkpoint `number`. position: `step 3 of 12`. more: state of the kind of stage."""
        tensors, state = self.learner.state()
        self.done = {
            "learner": state,
            "position": position,
            "threads": torch.get_num_threads(),
            "dtype": self.model.dtype_name,
            "metrics_bytes": self.metrics.sync(),
            "summary": self.summary,
            "memory": {base: models.model.memory.state() for base, models in self.context.bases().items()},
            **more,
        }
        folder, checkpoint = self.context.folder / "checkpoints", Checkpoint(tensors, self.done)
        path = self.context.collectives.on_rank0(lambda: save_checkpoint(folder, number, checkpoint))
        self.context.notify("checkpoint_saved", path=str(path))

    def measure(self, encoded: Sequence[Encoded], work: Callable[[list[Encoded]], Sequence[T]]) -> list[T]:
        """What `work` measures of each response, in order; each process does its share."""

        def measured(own: Sequence[int]) -> Sequence[T]:
            return work([encoded[index] for index in own])

        return self.context.collectives.map_sharded([len(group.rows) for group in encoded], measured)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write metrics and notify the event hooks."""
        if skipped := int(metrics.get("skipped", 0)):
            if "skipped_steps" not in self.summary:
                self.context.say(
                    f"a step was skipped, because {self.learner.unfit} was not finite; later ones are only counted"
                )
            self.summary["skipped_steps"] = self.summary.get("skipped_steps", 0) + skipped
        self.metrics.write(stage=self.context.name, step=step, **metrics)
        self.context.notify("metrics_logged", step=step, metrics=metrics)

    def keep_version(self, number: int) -> None:
        """Save the version `NAME@number`, if the recipe asks for versions."""
        if self.settings.keep_versions:
            self.save(self.context.folder / "kept" / str(number))

    def save(self, folder: Path | None = None) -> None:
        """Save the current weights in a folder; default: as the stage's result."""
        role, network = self.roles.trained, self.model.passes.copied(self.roles.trained)
        self.context.collectives.on_rank0(lambda: self.model.save(role, folder or self.context.adapter, network))

    def close(self) -> None:
        self.context.reporter.stop()
        self.roles.drop(self.model)
        self.metrics.sync()  # last: on a full disk it raises


def _described(roles: StageRoles, algorithm: Algorithm) -> str:
    """`'best' (reference: best; values: helpful's network with a zero head)`."""
    facts = [f"reference: {roles.reference_name}"] if algorithm.needs.reference_logprobs else []
    facts += [f"values: {roles.value_start}"] if roles.values is not None else []
    return f"'{roles.start}'" + (f" ({'; '.join(facts)})" if facts else "")
