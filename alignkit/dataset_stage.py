"""A training stage over a data set: epochs, validation, the best version kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alignkit import seeds
from alignkit.algorithm import Phase, SelectContext
from alignkit.batch import Examples, units
from alignkit.data import Group
from alignkit.errors import AlignkitError, DataError
from alignkit.train import schedule
from alignkit.training import Training, wanted

CHECKPOINTS = 10  # of a stage, where the recipe does not say how many


class Dataset(Training):
    """Epochs over a fixed data set; with validation data the checkpoint with the lowest loss is the one kept."""

    def run(self) -> dict[str, Any]:
        loaded = self.run_.load(self.settings.data)
        train = self._examples(loaded.groups)
        validation = self._validation(loaded)
        size, epochs = self.settings.batch_size or 1, self.settings.epochs or 1
        whole = units(train.groups)
        per_epoch = math.ceil(len(whole) / size)
        total = min(per_epoch * epochs, self.settings.max_steps or per_epoch * epochs)
        every = self.settings.checkpoint_every or max(1, math.ceil(total / CHECKPOINTS))
        facts = {"groups": len(train.groups), "steps": total}
        self.summary = facts | self.summary | facts  # first, and true
        best = self.done.get("best", math.inf)
        run = self.run_
        if self.done:
            self.summary = self.done["summary"]
        run.reporter.start(run.name, total, self.learner.steps)
        while self.learner.steps < total:
            step = self.learner.steps
            try:
                run.should_stop()
            except AlignkitError:
                self.checkpoint(step, f"step {step} of {total}", best=best)
                raise
            epoch, at = divmod(step, per_epoch)
            order = seeds.stream(run.seed, run.name, "shuffle", epoch).permutation(len(whole))
            began = time.monotonic()
            part = train.take([i for unit in order[at * size : (at + 1) * size] for i in whole[unit]])
            factor = schedule(self.settings.lr_scheduler_type, step, total, self.settings.warmup_ratio)
            metrics = self.learner.step(part, factor)
            metrics["tokens_per_second"] = sum(e.length for e in part.groups) / (time.monotonic() - began)
            metrics["epoch"] = (step + 1) / per_epoch
            self.log(step + 1, metrics)
            run.reporter.advance(step + 1, metrics)
            if at + 1 == per_epoch or step + 1 == total:
                best = self._end_epoch(epoch + 1, validation, best)
                self.checkpoint(step + 1, f"step {step + 1} of {total}", best=best)
            elif (step + 1) % every == 0:
                self.checkpoint(step + 1, f"step {step + 1} of {total}", best=best)
        return self.finish()

    def _examples(self, groups: Sequence[Group], validation: bool = False) -> Examples:
        rng = seeds.stream(self.run_.seed, self.run_.name, "select")
        context = SelectContext(
            0, self.run_.seed, lambda: [], lambda **m: self.summary.update(m), rng, validation, self._say
        )
        with self._naming_the_stage():
            chosen = self.algorithm.select(groups, context)
        flat: list[Group] = []
        for item in chosen:
            flat += list(item.groups) if isinstance(item, Phase) else [item]
        kept = self._require(self._encode(flat))
        if kept and not validation:
            with self._naming_the_stage():
                self.algorithm.check([e.group for e in kept])
        if not kept:
            name, counts = self.run_.stage.component.name, self.summary.get("encoding", {})
            raise DataError(
                f"stage '{self.run_.name}': none of {len(groups)} rows gives {name} anything to learn from: "
                f"it needs {wanted(self.algorithm)}" + (f" ({counts})" if counts else "")
            )
        examples = Examples(kept)
        if self.algorithm.needs.reference_logprobs:
            found, known = self.engine.fixed_logprobs(self.reference_name, kept)
            examples.token_columns["reference_logprobs"] = found
            if known:
                self.run_.reporter.say(f"{self.run_.name}: the reference has seen these {len(kept)} groups before")
        return examples

    @contextmanager
    def _naming_the_stage(self) -> Iterator[None]:
        """What the algorithm finds wrong with the data is said of this stage."""
        try:
            yield
        except DataError as error:
            raise DataError(f"stage '{self.run_.name}': {error}") from error

    def _validation(self, loaded: Any) -> Examples | None:
        groups = list(loaded.validation)
        if self.settings.validation is not None:
            groups += self.run_.load(self.settings.validation).groups
        return self._examples(groups, validation=True) if groups else None

    def _end_epoch(self, epoch: int, validation: Examples | None, best: float) -> float:
        run = self.run_
        if self.settings.keep_epochs:
            self.policy.save(self.role, run.folder / "kept" / str(epoch))
        if validation is None:
            return best
        found = self.learner.evaluate(validation)
        self.log(self.learner.steps, {f"validation/{name}": value for name, value in found.items()})
        facts = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        run.reporter.say(f"{run.name}: validation after epoch {epoch}: {facts}")
        if not math.isfinite(found["loss"]):
            run.reporter.say(f"{run.name}: the validation loss is not a number, so this epoch is not the best one")
        if found["loss"] < best:
            self.policy.save(self.role, run.adapter)
            self.summary["best_epoch"] = epoch
            self.summary["validation"] = found
            return found["loss"]
        return best

    def finish(self) -> dict[str, Any]:
        if "best_epoch" not in self.summary:
            self.policy.save(self.role, self.run_.adapter)
        return super().finish()
