"""The only training loop: every algorithm's groups, signal and loss pass through here.

A step takes a global batch of groups, cuts it into packed micro-batches by token budget, and averages each loss term
over the whole global batch, so results do not depend on how it was cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignkit.algorithm import REWARD, Algorithm
from alignkit.batch import Batch, Outputs
from alignkit.errors import RunFailed
from alignkit.kernels.memory import TrimOnGrowth
from alignkit.loss import Per
from alignkit.models.budget import within_memory
from alignkit.models.encoding import Encoded
from alignkit.models.examples import Examples, join, join_outputs
from alignkit.models.packing import micro_batches, pack, spread
from alignkit.models.shared_model import SharedModel
from alignkit.training.averages import Averages, _count, _weighted

if TYPE_CHECKING:
    from alignkit.settings import Settings

NON_FINITE_IN_A_ROW = 5
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass
class Mix:
    """A second stream of data mixed into every step (InstructGPT's ptx): next(n) gives n encoded groups."""

    next: Callable[[int], list[Encoded]]
    weight: float
    batch_size: int


@dataclass
class Learner:
    """What a stage trains and how: the policy (or reward) role, a value role if needed, one optimiser for both."""

    policy: SharedModel
    algorithm: Algorithm
    settings: Settings
    role: str
    value_role: str | None = None
    temperature: float = 1.0
    mix: Mix | None = None
    steps: int = 0
    skipped: int = 0
    returned: TrimOnGrowth = field(init=False, default_factory=TrimOnGrowth)
    optimizer: torch.optim.AdamW = field(init=False)
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {f"{self.role}:{k}": p for k, p in self.policy.make_trainable(self.role).items()}
        if self.value_role is not None:
            values = self.policy.make_trainable(self.value_role)
            self.parameters |= {f"{self.value_role}:{k}": p for k, p in values.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=self.settings.learning_rate,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            eps=self.settings.adam_epsilon,
            weight_decay=self.settings.weight_decay,
        )

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch: policy and a value role of its own keep their activations side by side."""
        networks = 1 if self.value_role is None or self._shares_trunk else 2
        return self.policy.token_budget // networks

    @property
    def _shares_trunk(self) -> bool:
        return self.value_role is not None and self.policy.roles[self.value_role].trunk == self.role

    # One optimiser step

    def step(self, examples: Examples, lr_factor: float) -> dict[str, float]:
        """Learn from one global batch; gives the metrics. Raises RunFailed after too many non-finite steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * lr_factor
        metrics = within_memory(self.policy, lambda: self._gradients(examples)) | self._clip()
        self.steps += 1
        metrics["learning_rate"] = self.settings.learning_rate * lr_factor
        if all(math.isfinite(metrics[name]) for name in metrics if name.endswith("grad_norm") or name == "loss"):
            self.optimizer.step()
            self.skipped = 0
        else:
            self._skip(examples)
            metrics["skipped"] = 1.0
        self.returned.now()
        return metrics

    def _gradients(self, examples: Examples) -> dict[str, float]:
        """Gradients of one global batch from nothing; gives the metrics."""
        self.optimizer.zero_grad(set_to_none=True)
        before = self.policy.recomputed
        metrics = self._accumulate(examples)
        if self.mix is not None:
            metrics["mix/nll"] = self._accumulate_mix(self.mix)
        if self.policy.halvings:
            metrics["token_budget"] = float(self.token_budget)
        if recomputed := self.policy.recomputed - before:
            metrics["recomputed"] = float(recomputed)
        return metrics

    def _clip(self) -> dict[str, float]:
        """Clip each role's gradient on its own, so that a surprised value role does not slow the policy down."""
        norms = {}
        for name, role in (("grad_norm", self.role), ("value_grad_norm", self.value_role)):
            own = [p for key, p in self.parameters.items() if role is not None and key.startswith(f"{role}:")]
            if own:
                norms[name] = float(torch.nn.utils.clip_grad_norm_(own, self.settings.max_grad_norm))
        return norms

    def _skip(self, examples: Examples) -> None:
        self.skipped += 1
        if self.skipped >= NON_FINITE_IN_A_ROW:
            ids = ", ".join(encoded.group.id for encoded in examples.groups)
            raise RunFailed(
                f"{self.skipped} steps in a row had a loss or gradient that is not finite; the last batch was {ids}"
            )

    def _accumulate(self, examples: Examples) -> dict[str, float]:
        """Gradients of the global batch; gives loss terms and the algorithm's own metrics."""
        if not examples.groups:  # none of its rows could be used
            return {}
        parts = [examples.take(i) for i in micro_batches(examples.groups, self.token_budget)]
        batches = [part.batch(self.policy.device) for part in parts]
        self._before_step(parts, batches)
        totals = self._denominators(batches)
        sums: dict[str, float] = {}
        metrics = Averages(unknown=True)
        needs = self.algorithm.needs
        for part, batch in zip(parts, batches, strict=True):
            out = self._forward(part)
            terms = self.algorithm.loss(batch, out)
            weights = self.algorithm.term_weights(batch)
            loss = torch.zeros((), device=self.policy.device)
            for name, term in terms.items():
                if term.coefficient and needs.entropy == "reported" and not term.values.requires_grad:
                    raise RunFailed(
                        f"'{name}' in the loss of {type(self.algorithm).__name__} has no gradient: to learn from an "
                        "entropy, `needs.entropy` must be True"
                    )
                value = _weighted(term, batch, weights.get(name)) / totals[name if name in weights else term.per]
                loss = loss + term.coefficient * value
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            sums["loss"] = sums.get("loss", 0.0) + float(loss.detach())
            if not loss.requires_grad:
                raise RunFailed(f"the loss of {type(self.algorithm).__name__} depends on nothing that is trained")
            loss.backward()
            with torch.no_grad():
                metrics.add(self.algorithm.report_metrics(batch, out), batch)
        return {**sums, **metrics.means()}

    def _before_step(self, parts: Sequence[Examples], batches: Sequence[Batch]) -> None:
        if type(self.algorithm).before_step is Algorithm.before_step:
            return
        with torch.no_grad():
            whole = join(parts)
            outs = [self._forward(part) for part in parts]
            state = self.algorithm.before_step(whole.batch(self.policy.device), join_outputs(outs, batches))
        self.algorithm.state |= dict(state)

    def _denominators(self, batches: Sequence[Batch]) -> dict[str | Per, float]:
        totals: dict[str | Per, float] = {}
        for batch in batches:
            for per in Per:
                totals[per] = totals.get(per, 0.0) + float(_count(per, batch).sum())
            for name, weights in self.algorithm.term_weights(batch).items():
                totals[name] = totals.get(name, 0.0) + float(weights.sum())
        # A batch without a counted token, pair or group has loss 0 and no gradient.
        return {key: total or 1.0 for key, total in totals.items()}

    def _accumulate_mix(self, mix: Mix) -> float:
        """Gradients of the second stream's token-mean cross-entropy, times its weight."""
        groups = mix.next(mix.batch_size)
        total = sum(sum(row.mask) for encoded in groups for row in encoded.rows) or 1
        nll = 0.0
        for indices in micro_batches(groups, self.policy.token_budget):
            row = pack([groups[i] for i in indices])
            if not len(row.targets):
                continue
            hidden = self.policy.hidden(self.role, row.layout, row.tokens)
            logprobs, _ = self.policy.logprobs(self.role, hidden[row.before], row.targets)
            loss = -logprobs.sum() / total
            (mix.weight * loss).backward()
            nll += float(loss.detach())
        return nll

    def _forward(self, examples: Examples) -> Outputs:
        """What the loss needs from the trained roles, [R, T] or [R], with gradients."""
        row = pack(examples.groups)
        rows = [r for encoded in examples.groups for r in encoded.rows]
        shape = (len(rows), max((len(r.tokens) for r in rows), default=0))
        needs = self.algorithm.needs
        hidden = self.policy.hidden(self.role, row.layout, row.tokens)
        if self.algorithm.trains is REWARD:
            return Outputs(scores=self.policy.scalars(self.role, hidden[row.last]))
        logprobs, entropy = self.policy.logprobs(
            self.role, hidden[row.before], row.targets, temperature=self.temperature, entropy=needs.entropy
        )
        out = Outputs(logprobs=spread(logprobs, row, shape))
        if entropy is not None:
            out.entropy = spread(entropy, row, shape)
        if self.value_role is not None:
            if not self._shares_trunk:
                hidden = self.policy.hidden(self.value_role, row.layout, row.tokens)
            out.values = spread(self.policy.scalars(self.value_role, hidden[row.before]), row, shape)
        return out

    # Without gradients

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """Loss terms and metrics over examples, as averages over all of them."""
        trained = dict(self.algorithm.state)
        try:
            return within_memory(self.policy, lambda: self._evaluate(examples, trained))
        finally:
            self.algorithm.state = trained

    @torch.no_grad()
    def _evaluate(self, examples: Examples, trained: Mapping[str, Any]) -> dict[str, float]:
        parts = [examples.take(i) for i in micro_batches(examples.groups, 4 * self.policy.token_budget)]
        self.algorithm.state = dict(trained)  # as it was, also where memory ran out halfway
        self._before_step(parts, [part.batch(self.policy.device) for part in parts])
        losses, averages = Averages(), Averages(unknown=True)
        coefficients: dict[str, float] = {}
        for part in parts:
            batch = part.batch(self.policy.device)
            out = self._forward(part)
            terms = self.algorithm.loss(batch, out)
            coefficients = {name: term.coefficient for name, term in terms.items()}
            losses.add(terms, batch, self.algorithm.term_weights(batch))
            averages.add(self.algorithm.report_metrics(batch, out), batch)
        means = losses.means()
        loss = sum(coefficient * means.get(name, 0.0) for name, coefficient in coefficients.items())
        return {**means, **averages.means(), "loss": loss}

    # State

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain state that a resumed run needs."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        with_state = [name for name, parameter in self.parameters.items() if parameter in self.optimizer.state]
        plain = {"steps": self.steps, "skipped": self.skipped, "algorithm": self.algorithm.state}
        plain["halvings"], plain["activation_bytes"] = self.policy.halvings, self.policy.activation_bytes
        return tensors, {**plain, "with_optimizer_state": with_state}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`. Raises RunFailed when a part is missing."""
        for name, parameter in self.parameters.items():
            if f"weight/{name}" not in tensors:
                raise RunFailed(f"the checkpoint has no weights for {name}; delete the stage's folder to start afresh")
            parameter.data.copy_(tensors[f"weight/{name}"])
            keys = [key for key in tensors if key.startswith("optimizer/") and key.endswith(f"/{name}")]
            kept = {key.split("/")[1]: tensors[key].clone() for key in keys}
            if kept.keys() == ADAM_STATE:
                # Adam keeps its step count on the CPU and its moments beside the weights.
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()
                }
            elif kept or name in state["with_optimizer_state"]:
                lacking = ", ".join(sorted(ADAM_STATE - kept.keys()))
                raise RunFailed(f"the checkpoint has no optimiser state for {name} ({lacking})")
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.policy.halvings = max(self.policy.halvings, state["halvings"])
        if (known := state.get("activation_bytes")) is not None:
            self.policy.activation_bytes = known
        self.algorithm.state = dict(state["algorithm"])


# Measuring without gradients
