"""A training stage over a data set: epochs, validation, the best version kept.

A large data set is not turned into tokens before the first step, which for a million rows would take minutes and
gigabytes, but batch by batch. What does not fit then makes its batch smaller, and is told at the end of an epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from alignkit import seeds
from alignkit.algorithm import Phase, SelectContext
from alignkit.data.group import Group
from alignkit.errors import AlignkitError, DataError
from alignkit.models.examples import Examples
from alignkit.models.packing import units
from alignkit.training.schedule import schedule
from alignkit.training.stage import ENCODING_FACTS, StageWork, wanted

CHECKPOINTS = 10  # of a stage, where the recipe does not say how many
AHEAD = 20_000  # rows that may become tokens before the first step


class Dataset(StageWork):
    """Epochs over a fixed data set; with validation data the checkpoint with the lowest loss is the one kept."""

    def run(self) -> dict[str, Any]:
        loaded = self.run_.load(self.settings.data)
        groups = self._chosen(loaded.groups)
        # A reference measures all tokens before the first step, so there is nothing to put off.
        later = len(groups) > AHEAD and not self.algorithm.needs.reference_logprobs
        if later:
            self._say(f"{len(groups)} rows, each of which becomes tokens when its turn comes")
            self._check(groups)
        ready = None if later else self._examples(groups)
        if ready is not None:
            groups = [encoded.group for encoded in ready.groups]
        validation = self._validation(loaded)
        size, epochs = self.settings.batch_size or 1, self.settings.epochs or 1
        whole = units([group.bundle for group in groups])
        per_epoch = math.ceil(len(whole) / size)
        total = min(per_epoch * epochs, self.settings.max_steps or per_epoch * epochs)
        every = self.settings.checkpoint_every or max(1, math.ceil(total / CHECKPOINTS))
        facts = {"groups": len(groups), "steps": total}
        self.summary = facts | self.summary | facts  # first, and true
        best = self.done.get("best", math.inf)
        run = self.run_
        if self.done:
            self.summary = self.done["summary"]
        order: np.ndarray | None = None
        run.reporter.start(run.name, total, self.learner.steps)
        while self.learner.steps < total:
            step = self.learner.steps
            try:
                run.should_stop()
            except AlignkitError:
                self.checkpoint(step, f"step {step} of {total}", best=best)
                raise
            epoch, at = divmod(step, per_epoch)
            if at == 0 or order is None:
                order = seeds.stream(run.seed, run.name, "shuffle", epoch).permutation(len(whole))
            began = time.monotonic()
            indices = [i for unit in order[at * size : (at + 1) * size] for i in whole[unit]]
            part = ready.take(indices) if ready is not None else self._now([groups[i] for i in indices], epoch)
            factor = schedule(self.settings.lr_scheduler_type, step, total, self.settings.warmup_ratio)
            metrics = self.learner.step(part, factor)
            metrics["tokens_per_second"] = sum(e.length for e in part.groups) / (time.monotonic() - began)
            metrics["epoch"] = (step + 1) / per_epoch
            self.log(step + 1, metrics)
            run.reporter.advance(step + 1, metrics)
            if at + 1 == per_epoch or step + 1 == total:
                if later and epoch == 0:
                    self._tell_left_out()
                best = self._end_epoch(epoch + 1, validation, best)
                self.checkpoint(step + 1, f"step {step + 1} of {total}", best=best)
            elif (step + 1) % every == 0:
                self.checkpoint(step + 1, f"step {step + 1} of {total}", best=best)
        return self.finish()

    def _chosen(self, groups: Sequence[Group], validation: bool = False) -> list[Group]:
        """What the algorithm wants of these rows."""
        rng = seeds.stream(self.run_.seed, self.run_.name, "select")
        context = SelectContext(
            0, self.run_.seed, lambda: [], lambda **m: self.summary.update(m), rng, validation, self._say
        )
        with self._naming_the_stage():
            chosen = self.algorithm.select(groups, context)
        flat: list[Group] = []
        for item in chosen:
            flat += list(item.groups) if isinstance(item, Phase) else [item]
        return flat

    def _check(self, groups: Sequence[Group]) -> None:
        with self._naming_the_stage():
            self.algorithm.check_data(groups)

    def _now(self, groups: Sequence[Group], epoch: int) -> Examples:
        """The rows of one batch; those that cannot be used are counted in the first epoch."""
        whole = groups
        try:
            encoded = self._encoded(groups)
        except DataError:
            whole = [group for group in groups if self._encodes(group)]
            encoded = self._encoded(whole)
        kept, lost = self._usable(encoded)
        if epoch == 0:
            counts = {"tried": len(groups), "used": len(kept), "broken": len(groups) - len(whole), "lost": len(lost)}
            self._count_lost(lost)
            self._add_counts("in_turn", counts | self._count_unfit())
        return Examples(kept)

    def _encodes(self, group: Group) -> bool:
        """False, and said, where the chat template cannot take a row: hours into a run it must not end it."""
        try:
            self._encoded([group])
        except DataError as error:
            self._say(f"left out: {error}")
            return False
        return True

    def _tell_left_out(self) -> None:
        """After the first epoch of rows that became tokens in their turn."""
        counts = self.summary["in_turn"]
        if not counts["used"]:
            raise self._nothing_to_learn(counts["tried"])
        named = ENCODING_FACTS | {
            "broken": "left out: the chat template cannot take them",
            "lost": f"left out: without {wanted(self.algorithm)}",
        }
        facts = [f"{counts[name]} {what}" for name, what in named.items() if counts.get(name)]
        if facts:
            self._say(f"of {counts['tried']} rows: " + "; ".join(facts))

    def _examples(self, groups: Sequence[Group], validation: bool = False) -> Examples:
        kept = self._require(self._encode(groups))
        if not kept:
            raise self._nothing_to_learn(len(groups))
        if not validation:
            self._check([encoded.group for encoded in kept])
        examples = Examples(kept)
        if self.algorithm.needs.reference_logprobs:
            found, known = self.engine.reference_logprobs_of(self.reference_name, kept)
            examples.token_columns["reference_logprobs"] = found
            if known:
                self.run_.reporter.say(f"{self.run_.name}: the reference has seen these {len(kept)} groups before")
        return examples

    def _nothing_to_learn(self, rows: int) -> DataError:
        name, counts = self.run_.stage.component.name, self.summary.get("encoding", {})
        return DataError(
            f"stage '{self.run_.name}': none of {rows} rows gives {name} anything to learn from: "
            f"it needs {wanted(self.algorithm)}" + (f" ({counts})" if counts else "")
        )

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
        return self._examples(self._chosen(groups, validation=True), validation=True) if groups else None

    def _end_epoch(self, epoch: int, validation: Examples | None, best: float) -> float:
        run = self.run_
        if self.settings.keep_versions:
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
