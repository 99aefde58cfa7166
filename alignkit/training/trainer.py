"""What both kinds of training stage share: roles, encoder, learner, checkpoints, metrics,
summary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignkit import seeds
from alignkit.contract.algorithm import Algorithm, Needs, Trains
from alignkit.data.group import Group
from alignkit.errors import RunFailed
from alignkit.host.calls import call
from alignkit.io.atomic import replace_folder
from alignkit.io.results import damage_of, manifest, write_record
from alignkit.io.text import Say
from alignkit.models.loading import has_classifier
from alignkit.models.packing import by_response, measure
from alignkit.models.shared_model import HeadKind, SharedModel, Wants
from alignkit.recipe.schema import RewardSpec, specs
from alignkit.tokens.encoder import Encoded
from alignkit.training.active_stage import ActiveStage
from alignkit.training.data_sampler import auxiliary_loss
from alignkit.training.encoding import ReferencePrompts, StageEncoder
from alignkit.training.learner import Learner

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Write `folder/NUMBER`, then remove all but the newest two checkpoints.

    state: everything that the stage's numbers depend on, as JSON with tensors anywhere in it.
    """
    tensors: dict[str, Tensor] = {}

    def name_of(value: Any) -> dict[str, str]:
        if not isinstance(value, Tensor):
            raise RunFailed(
                f"a checkpoint cannot keep a {type(value).__name__}, as an optimizer may have in "
                "its state"
            )
        tensor = value.detach().cpu().contiguous()
        # By address: bitsandbytes has one table of its numbers in 8 bits for all parameters, and a
        # file holds it once.
        name = f"{tensor.data_ptr()} {list(tensor.shape)}"
        tensors[name] = tensor
        return {"tensor": name}

    plain = json.dumps(state, sort_keys=True, default=name_of)
    target = folder / f"{number:09d}"
    with replace_folder(target) as new:
        save_file(tensors, new / FILE, {"state": plain})
        write_record(new, {"files": manifest(new)})
    for old in _checkpoints(folder)[:-2]:  # the new one is durable by now
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, say: Say) -> dict[str, Any]:
    """The state of the newest checkpoint that is not damaged; empty if there is none.

    Damaged ones are reported through `say`, and removed, or newer ones would count as older.
    """
    for path in reversed(_checkpoints(folder)):
        if damage_of(path) is None:
            return _read(path)
        say(
            f"checkpoint {path} is damaged: the stage continues from the one before, or starts over"
        )
        shutil.rmtree(path, ignore_errors=True)  # another process of the run may be faster
    return {}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*"))


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path / FILE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it has no iterator)
        plain = file.metadata()["state"]

    def with_tensors(item: dict[str, Any]) -> Any:
        return tensors[item["tensor"]] if [*item] == ["tensor"] else item

    state: dict[str, Any] = json.loads(plain, object_hook=with_tensors)
    return state


def add_value_role(stage: ActiveStage, needs: Needs, policy_role: str) -> str:
    """Add the value function's role; returns its name.

    As in InstructGPT, it starts from a reward model. That model's head is kept only if its score is
    the reward: a combination has another scale (Llama 2's is whitened), and values on a wrong scale
    are worse than zeros.
    """
    models, reward = stage.models, stage.settings.reward
    name = f"{stage.name}~value"
    if needs.shared_values:
        stage.model.add_head(name, policy_role)
        return name
    reward_models = [spec.name for spec in specs(reward, RewardSpec) if spec.kind == "stage"]
    source = stage.settings.value_from or (reward_models[0] if reward_models else None)
    start = policy_role if source is None else models.role(source)
    role = stage.model.add_role(name, start=start, head="scalar")
    is_the_reward = (
        source is not None
        and reward is not None
        and reward.kind == "stage"
        and reward.name == source
    )
    if needs.centered_values or not is_the_reward:
        assert role.head is not None
        role.head.data.zero_()
    return name


def keeps_group(algorithm: Algorithm, group: Group) -> bool:
    """Whether the algorithm learns from a group."""
    return bool(call(algorithm, "keep_group", group))


class Trainer:
    """Base class of what trains a stage, from its last checkpoint if it has one.

    start, reference_name: as the recipe names them. role: of the policy or reward model that
    learns. value_role: of the value function, if the algorithm needs one. reference_role: on the
    reference's own model. reference_models: those on the model that the reference is, or is on.
    saved: the checkpoint's state, until it is restored. parts: what a checkpoint keeps in addition
    to weights and optimizer, objects with `state()` and `restore(state)` by name. summary: for
    stage.json. kept: the folder of versions. keeps: whether it keeps any.
    """

    def __init__(self, stage: ActiveStage, algorithm: Algorithm, temperature: float = 1.0):
        """temperature: of the policy's distributions; rollouts are learned at the temperature they
        were sampled at.
        """
        self.stage, self.settings, self.algorithm = stage, stage.settings, algorithm
        self.kept, self.keeps = stage.folder / "kept", self.settings.keep_versions
        self.model, self.summary = stage.model, stage.summary
        self.encoder = StageEncoder(stage, algorithm)
        self.model.seed = seeds.number(stage.seed, stage.name, "init")
        self.start = self.settings.from_ or stage.models.name
        self.role = f"{stage.name}~new"
        where = f"stage '{stage.name}': "
        head: HeadKind = "scalar" if algorithm.trains is Trains.REWARD else "language"
        if (
            head == "scalar"
            and self.model.adapters is None
            and not has_classifier(self.model.model.config)
        ):
            raise RunFailed(
                f"{where}a reward model of all weights is saved as a classifier, and transformers "
                f"has none for {self.model.model.config.model_type}\n"
                "help: train an adapter instead, by options of 'model.lora'"
            )
        self.model.add_role(self.role, start=stage.models.role(self.start), head=head)
        self.reference_name = self.settings.reference or self.start
        theirs = self.reference_models = stage.models_of(self.reference_name)
        self.reference_role = theirs.role(self.reference_name)
        self.value_role: str | None = None
        if algorithm.needs.values:
            self.value_role = add_value_role(stage, algorithm.needs, self.role)
        self.reference_prompts = ReferencePrompts(
            algorithm, theirs.encoder, theirs.model, self.encoder.encoder, where
        )
        self.learner = Learner(
            self.model,
            algorithm,
            self.settings,
            self.role,
            self.value_role,
            temperature,
            auxiliary_loss(stage, self.encoder),
            stage.collectives,
        )
        self.parts: dict[str, Any] = {}
        self.saved = load_checkpoint(stage.folder / "checkpoints", stage.reporter.say)
        for name, state in self.saved.get("memory", {}).items():
            stage.loaded_models()[name].model.memory.restore(state)
        self.metrics = stage.metrics(self.saved.get("metrics_bytes", 0))
        stage.say(f"from '{self.start}', reference '{self.reference_name}'")

    def run(self) -> dict[str, Any]:
        """Train to the end; the summary is for stage.json."""
        raise NotImplementedError

    def restore(self) -> int:
        """Continue from the checkpoint, with its summary, which has this start's counts, and every
        part's state.

        Returns the number of the checkpoint; 0 if there is none.
        """
        saved, self.saved = self.saved, {}
        if not saved:
            return 0
        self.learner.restore(saved["learner"])
        self.summary.clear()
        self.summary.update(saved["summary"])
        for name, part in self.parts.items():
            part.restore(saved["parts"][name])
        self.stage.say(f"continuing after {saved['position']}")
        return int(saved["number"])

    def checkpoint(self, number: int, position: str) -> None:
        """Write checkpoint `number`. position: `step 3 of 12`."""
        state = {
            "learner": self.learner.state(),
            "position": position,
            "metrics_bytes": self.metrics.sync(),
            "summary": self.summary,
            "memory": {
                name: loaded.model.memory.state()
                for name, loaded in self.stage.loaded_models().items()
            },
            "number": number,
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        folder = self.stage.folder / "checkpoints"
        path = self.stage.collectives.on_main_process(
            lambda: save_checkpoint(folder, number, state)
        )
        self.stage.notify("checkpoint_saved", path=str(path))

    def reference_logprobs(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """The reference's log-probabilities, of the prompts that it reads."""
        read = self.reference_prompts.encoded(encoded)
        return self.logprobs(self.reference_role, read, self.reference_models.model)

    def logprobs(
        self, role: str, encoded: Sequence[Encoded], model: SharedModel | None = None
    ) -> list[Tensor]:
        """The log-probabilities of each response in order, float32 [tokens], in nats. model: the
        one with the role; default: the stage's.
        """
        return [found["logprobs"] for found in self.measured(role, encoded, model)]

    def measured(
        self,
        role: str,
        encoded: Sequence[Encoded],
        model: SharedModel | None = None,
        values: str | None = None,
    ) -> list[dict[str, Tensor]]:
        """`logprobs` of each response in order, float32 [tokens], and `values` at the same tokens
        if a role has any.

        Each process does its share.
        """
        wants = Wants(values=values, temperature=self.learner.temperature)

        def work(own: Sequence[int]) -> list[dict[str, Tensor]]:
            groups = [encoded[index] for index in own]
            with self.stage.reporter.progress("measuring", len(groups)) as done:
                return by_response(measure(model or self.model, role, groups, wants, done))

        sizes = [len(group.responses) for group in encoded]
        return self.stage.collectives.map_sharded(sizes, work)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write metrics."""
        if skipped := int(metrics.get("skipped", 0)):
            if "skipped_steps" not in self.summary:
                self.stage.say("a step was skipped, because its loss or gradient was not finite")
            self.summary["skipped_steps"] = self.summary.get("skipped_steps", 0) + skipped
        self.metrics.write(step, **metrics)

    def keep_version(self, number: int) -> None:
        """Save the version `NAME@number`, if the recipe asks for versions or a monitor may go back
        to one.
        """
        if self.keeps:
            self.save(self.kept / str(number))

    def save(self, folder: Path | None = None) -> None:
        """Save the current weights in a folder; default: as the stage's result."""
        role, network = self.role, self.model.passes.copied(self.role)
        self.stage.collectives.on_main_process(
            lambda: self.model.save(role, folder or self.stage.adapter, network)
        )

    def close(self) -> None:
        self.stage.reporter.stop()
        for role in (self.role, self.value_role):
            if role is not None:
                self.model.drop_role(role)
        self.metrics.sync()  # last: on a full disk it raises
