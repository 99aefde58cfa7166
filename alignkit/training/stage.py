"""The parts that both kinds of training stage share: roles, encoder, learner, checkpoints, metrics, summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alignkit import seeds
from alignkit.algorithm import Algorithm, Needs, Source, Trains
from alignkit.calls import blame, call, mistake
from alignkit.data.group import Group
from alignkit.io.atomic import replace_folder
from alignkit.io.digest import file_digest
from alignkit.models.shared_model import HeadKind, SharedModel
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.tokens.encoder import Encoded
from alignkit.training.context import StageContext
from alignkit.training.encoding import ReferencePrompts, StageEncoder
from alignkit.training.learner import Learner
from alignkit.training.sampler import auxiliary_loss

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
FILES = {TENSORS, STATE}
T = TypeVar("T")


@dataclass
class Checkpoint:
    """Everything a stage's numbers depend on: tensors (weights and optimizer) and JSON state."""

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `folder/NUMBER` with checksums, then remove all but the newest `keep` checkpoints."""
    from safetensors.torch import save_file

    target = folder / f"{number:06d}"
    with replace_folder(target) as new:
        tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
        save_file(tensors, new / TENSORS)
        (new / STATE).write_text(json.dumps(checkpoint.state, sort_keys=True), encoding="utf-8")
        sums = {file.name: file_digest(file) for file in sorted(new.iterdir())}
        (new / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for old in _numbered(folder)[:-keep]:  # the new one is durable by now
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is not damaged, or None if there are none. Damaged ones are reported through `say`.

    If all are damaged, there is nothing to continue from: the stage starts over, and says so.
    """
    from safetensors.torch import load_file

    checkpoints = _numbered(folder)
    for path in reversed(checkpoints):
        damage = _damage(path)
        if not damage:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(load_file(path / TENSORS), state)
        say(f"checkpoint {path} is damaged ({damage}); trying the previous one")
    if checkpoints:
        say(f"all checkpoints in {folder} are damaged; the stage starts over")
        shutil.rmtree(folder, ignore_errors=True)  # another process of the run may be faster
    return None


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _damage(path: Path) -> str:
    """The damage of a checkpoint in words; empty if there is none."""
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name in FILES:
            if file_digest(path / name) != sums[name]:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    return ""


@dataclass(frozen=True)
class StageRoles:
    """Names of roles.

    trained: the policy or reward model. reference: a role of the base model, or of a whole model. start,
    reference_name: as the recipe names them.
    values: the value function's role, if the algorithm needs one.
    """

    trained: str
    start: str
    reference: str
    reference_name: str
    values: str | None = None

    def drop(self, model: SharedModel) -> None:
        """Remove the roles that belong to this stage only."""
        model.drop_role(self.trained)
        if self.values is not None:
            model.drop_role(self.values)


def add_roles(context: StageContext, algorithm: Algorithm) -> StageRoles:
    """Add the stage's roles to the shared model."""
    models, settings, needs = context.models, context.settings, algorithm.needs
    context.model.seed = seeds.number(context.seed, context.name, "init")
    start = settings.from_ or models.name
    trained = f"{context.name}~new"
    head: HeadKind = "scalar" if algorithm.trains is Trains.REWARD else "language"
    context.model.add_role(trained, start=models.role(start), head=head)
    reference_name = settings.reference or start
    reference = context.models_of(reference_name).role(reference_name)
    values = None
    if needs.values:
        values = add_value_role(context, needs, trained)
    return StageRoles(trained, start, reference, reference_name, values)


def add_value_role(context: StageContext, needs: Needs, policy_role: str) -> str:
    """Add the value function's role; returns its name.

    As in InstructGPT, it starts from a reward model. That model's head is kept only if
    its score is the reward: a combination has another scale (Llama 2's is whitened), and values on a wrong scale are
    worse than zeros.
    """
    models, reward = context.models, context.settings.reward
    name = f"{context.name}~value"
    if needs.shared_values:
        context.model.add_head(name, policy_role)
        return name
    reward_models = [spec.name for spec in specs(reward, RewardSpec) if spec.kind == "stage"]
    source = context.settings.value_from or (reward_models[0] if reward_models else None)
    start = policy_role if source is None else models.role(source)
    role = context.model.add_role(name, start=start, head="scalar")
    is_the_reward = source is not None and reward is not None and reward.kind == "stage" and reward.name == source
    if needs.centered_values or not is_the_reward:
        assert role.head is not None
        role.head.data.zero_()
    return name


def keep_mask(algorithm: Algorithm, groups: Sequence[Group]) -> list[bool]:
    """Whether the algorithm learns from each group."""
    return [bool(call(algorithm, "keep_group", group)) for group in groups]


class TrainerState:
    """A stage that is ready to train, from its last checkpoint if it has one.

    done: that checkpoint's state, empty if there is none. parts: what a checkpoint keeps in addition to weights and
    optimizer, objects with `state()` and `restore(state)` by name. summary: for stage.json. reference_models: those on
    the model that the reference is, or is on. kept: the folder of versions. keeps: whether it keeps any.
    """

    def __init__(self, context: StageContext, algorithm: Algorithm, temperature: float = 1.0):
        """temperature: of the policy's distributions; rollouts are learned at the temperature they were sampled at."""
        self.context, self.settings = context, context.settings
        self.kept, self.keeps = context.folder / "kept", context.settings.keep_versions
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
        self.reference_prompts = ReferencePrompts(algorithm, theirs.encoder, theirs.model, self.encoder.encoder, where)
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
        self.parts: dict[str, Any] = {}
        self.done: dict[str, Any] = {}
        self._resume()
        self.metrics = context.metrics(int(self.done.get("metrics_bytes", 0)))
        context.activity(f"from '{self.roles.start}', reference '{self.roles.reference_name}'")

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.context.folder / "checkpoints", self.context.reporter.say)
        if checkpoint is None:
            return
        begun = self.algorithm.state  # by `select`: held-out rows are selected as in the first start
        self.learner.restore(checkpoint.tensors, checkpoint.state["learner"])
        self.algorithm.state = begun
        for base, models in self.context.bases().items():
            if base in checkpoint.state["memory"]:
                models.model.memory.restore(checkpoint.state["memory"][base])
        self.done = checkpoint.state
        self._warn_of_changes(checkpoint.state)
        self.context.say(f"continuing after {self.done['position']}")

    def _warn_of_changes(self, state: Mapping[str, Any]) -> None:
        """Report differences from the machine that wrote the checkpoint, if they change the result."""
        for what, now in (("threads", torch.get_num_threads()), ("dtype", self.model.dtype_name)):
            if state[what] != now:
                fact = f"the checkpoint was written with {what} {state[what]}, and this run has {now}"
                self.context.say(f"{fact}: the result may differ")

    def restore(self) -> int:
        """Continue with the checkpoint's summary, which has this start's counts, and with every part's state.

        Returns the number of the checkpoint; 0 if there is none.
        """
        if not self.done:
            return 0
        self.summary.clear()
        self.summary.update(self.done["summary"])
        self.learner.restore_algorithm(self.done["learner"])
        for name, part in self.parts.items():
            part.restore(self.done["parts"][name])
        return int(self.done["number"])

    def checkpoint(self, number: int, position: str) -> None:
        """Write checkpoint `number`. position: `step 3 of 12`."""
        tensors, state = self.learner.state()
        self.done = {
            "learner": state,
            "position": position,
            "threads": torch.get_num_threads(),
            "dtype": self.model.dtype_name,
            "metrics_bytes": self.metrics.sync(),
            "summary": self.summary,
            "memory": {base: models.model.memory.state() for base, models in self.context.bases().items()},
            "number": number,
            "parts": {name: part.state() for name, part in self.parts.items()},
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
                self.context.say(f"a step was skipped, because {self.learner.unfit} was not finite")
            self.summary["skipped_steps"] = self.summary.get("skipped_steps", 0) + skipped
        self.metrics.write(stage=self.context.name, step=step, **metrics)
        self.context.notify("metrics_logged", step=step, metrics=metrics)

    def keep_version(self, number: int) -> None:
        """Save the version `NAME@number`, if the recipe asks for versions or a monitor may go back to one."""
        if self.keeps:
            self.save(self.kept / str(number))

    def save(self, folder: Path | None = None) -> None:
        """Save the current weights in a folder; default: as the stage's result."""
        role, network = self.roles.trained, self.model.passes.copied(self.roles.trained)
        self.context.collectives.on_rank0(lambda: self.model.save(role, folder or self.context.adapter, network))

    def close(self) -> None:
        self.context.reporter.stop()
        self.roles.drop(self.model)
        self.metrics.sync()  # last: on a full disk it raises
