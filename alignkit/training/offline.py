"""A training stage over a data set: epochs, validation, and the best version as its result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from alignkit.contract.algorithm import Algorithm
from alignkit.data.group import Group, previews, resolved_pairs
from alignkit.errors import AlignkitError, DataError, located_at
from alignkit.evaluation.held_out import HeldOut, compared, values_of
from alignkit.evaluation.split import loose_key, opening
from alignkit.host.calls import call
from alignkit.models.packing import Examples, flat, indivisible
from alignkit.recipe.sources import Loaded
from alignkit.tokens.counts import counted
from alignkit.tokens.encoder import Encoded
from alignkit.training.active_stage import ActiveStage
from alignkit.training.data_sampler import make_data_sampler
from alignkit.training.encoding import has_gradient
from alignkit.training.learner import minibatch, schedule
from alignkit.training.trainer import Trainer

CHANCE = 0.5  # accuracy where all pairs are ties
CHECKPOINTS = 10  # in a stage whose recipe does not set checkpoint_every


class DatasetTrainer(Trainer):
    """Epochs over a fixed data set. With validation data, the epoch with the lowest loss is the
    result.

    encoded: the selected data in tokens. units: indices of groups that stay in one batch. draws:
    the order of the units. per_epoch, total: steps. every: steps between checkpoints.
    """

    def __init__(self, stage: ActiveStage, algorithm: Algorithm):
        loaded = stage.load(stage.settings.data)
        chosen = stage.select(loaded.groups)  # before the algorithm has the state of a checkpoint
        super().__init__(stage, algorithm)
        self.encoded = self._examples(chosen)
        groups = [encoded.group for encoded in self.encoded.groups]
        call(self.algorithm, "check_data", groups)
        self.validation = self._validation(loaded)
        self.parts["held_out"] = self.held_out = HeldOut()
        self.units = indivisible([group.bundle for group in groups])
        self.per_epoch = math.ceil(len(self.units) / self.settings.batch_size)
        steps = self.per_epoch * self.settings.epochs
        self.total = min(steps, self.settings.max_steps or steps)
        self.every = self.settings.checkpoint_every or max(1, math.ceil(self.total / CHECKPOINTS))
        # A bundle counts for the source of its first group.
        firsts = [groups[unit[0]] for unit in self.units]
        self.draws = make_data_sampler(stage, loaded, firsts, "shuffle")
        # At the end: no algorithm overwrites them
        self.summary |= {"groups": len(groups), "steps": self.total}

    def run(self) -> dict[str, Any]:
        stage = self.stage
        self.restore()
        # A stop may have come between the measurement and the first step.
        if self.validation is not None and not (self.learner.steps or self.held_out.start):
            self.held_out.start = self._measure(self.validation)[1]
        stage.reporter.start(stage.name, self.total, self.learner.steps)
        while self.learner.steps < self.total:
            try:
                stage.should_stop()
            except AlignkitError:
                self._checkpoint()  # a stop between checkpoints loses no step
                raise
            with located_at(f"in step {self.learner.steps + 1} of {self.total}"):
                self._after(self._step())
        # Without validation, or if no epoch had a finite loss, the last weights are the result.
        if "best_epoch" not in self.summary or not stage.collectives.on_main_process(
            stage.adapter.exists
        ):
            self.save()
        return self.summary

    # Data

    def _examples(self, groups: Sequence[Group]) -> Examples:
        """The groups in tokens, with the measurements that the algorithm needs. Raises DataError if
        none is usable.
        """
        self.encoder.count_read(groups)
        needs = self.algorithm.needs
        part = f"{counted(needs.min_samples, 'response')} with a token that counts"
        if needs.pairs:
            part = "a pair of a better and a worse response"
        usable: list[Encoded] = []
        lost: list[Group] = []
        for e in self.encoder.encode(groups):
            if len(e.responses) >= needs.min_samples and has_gradient(e, needs):
                usable.append(e)
            elif not (needs.pairs and resolved_pairs(e.group)):
                # The encoder has counted the pairs that it left out.
                lost.append(e.group)
        if lost:
            self.summary["without_signal"] = self.summary.get("without_signal", 0) + len(lost)
            self.stage.say(f"left out {counted(len(lost), 'row')} without {part}: {previews(lost)}")
        if not usable:
            raise DataError(
                f"stage '{self.stage.name}': {self.stage.spec.component.name} cannot learn "
                f"from any of {counted(len(groups), 'row')}: each needs {part}"
            )
        examples = Examples(usable)
        if needs.reference_logprobs:
            examples.token_columns["reference_logprobs"] = flat(self.reference_logprobs(usable))
        return examples

    def _validation(self, loaded: Loaded) -> Examples | None:
        groups = list(loaded.validation)
        if self.settings.validation is not None:
            held_out = self.stage.load(self.settings.validation).groups
            groups += held_out
            prompts = set(map(loose_key, loaded.groups))
            if known := sum(loose_key(group) in prompts for group in held_out):
                self.summary["validation_trained_on"] = known
                self.stage.say(
                    f"warning: {known} of {counted(len(held_out), 'row')} of 'validation' have a "
                    "prompt that is trained on, so the lowest validation loss may be the one of "
                    "the epoch that remembers most"
                )
        return self._examples(self.stage.select(groups, validation=True)) if groups else None

    # Steps

    @property
    def tied(self) -> bool:
        """Whether the policy still equals its reference. All pairs are ties then, and rounding must
        not decide which are in the right order.
        """
        needs, same = self.algorithm.needs, self.reference_name == self.start
        return same and needs.pairs and needs.reference_logprobs and not self.learner.steps

    def _step(self) -> dict[str, Any]:
        """One optimizer step; returns its metrics."""
        step, began, tied = self.learner.steps, time.monotonic(), self.tied
        # Only the step decides, so that a resumed run learns from the same batches.
        epoch, index = divmod(step, self.per_epoch)
        batch = minibatch(
            self.encoded, self.units, self.draws.epoch(epoch), self.settings.batch_size, index
        )
        factor = schedule(self.settings, self.learner.peak_rate, step, self.total)
        metrics: dict[str, Any] = self.learner.step(batch, factor)
        if tied and "accuracy" in metrics:
            metrics["accuracy"] = CHANCE
        metrics["tokens_per_second"] = sum(e.length for e in batch.groups) / (
            time.monotonic() - began
        )
        metrics["epoch"] = (step + 1) / self.per_epoch
        return metrics

    def _after(self, metrics: dict[str, Any]) -> None:
        """Log a step, validate at the end of an epoch, and write a checkpoint if one is due."""
        steps = self.learner.steps
        self.log(steps, metrics)
        self.stage.reporter.advance(steps, metrics)
        if steps % self.per_epoch == 0 or steps == self.total:
            epoch = math.ceil(steps / self.per_epoch)
            self.keep_version(epoch)
            if self.validation is not None:
                self._validate(epoch, self.validation)
            # After validating, so that a resumed run knows the best loss and does not measure it
            # again.
            self._checkpoint()
        elif steps % self.every == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        steps = self.learner.steps
        self.checkpoint(steps, f"step {steps} of {self.total}")

    def _measure(self, validation: Examples) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The metrics of the held-out examples, and the value of each."""
        metrics, per_group = self.learner.evaluate(validation)
        values = values_of(self.stage.collectives.gather(per_group))
        if self.tied and "accuracy" in metrics:
            metrics["accuracy"] = CHANCE
            values["accuracy"] = [CHANCE] * len(validation.groups)
        self.log(
            self.learner.steps, {f"validation/{name}": value for name, value in metrics.items()}
        )
        return metrics, values

    def _validate(self, epoch: int, validation: Examples) -> None:
        """Evaluate the epoch; the best epoch becomes the stage's result."""
        metrics, values = self._measure(validation)
        facts = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.stage.say(f"validation after epoch {epoch}: {facts}")
        if not math.isfinite(metrics["loss"]):
            self.stage.say(
                "the validation loss is not finite, so this epoch cannot become the result"
            )
        best = self.summary.get("validation", {"loss": math.inf})
        if metrics["loss"] < best["loss"]:  # false for NaN
            self.save()
            units = [opening(encoded.group) for encoded in validation.groups]
            held_out = compared(self.held_out.start, values, units)
            self.summary |= {"best_epoch": epoch, "validation": metrics, "held_out": held_out}
