"""Wraps an algorithm for the training loop: checks its results and attributes mistakes to its plugin.

A plugin author sees which plugin, stage and method are wrong, what was expected, and what to write instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alignkit.algorithm import ADVANTAGES, Algorithm, Phase, SelectContext, Skip, Source
from alignkit.batch import Batch, Outputs
from alignkit.data.group import Group, Message, preview
from alignkit.loss import Per, Term
from alignkit.models.packing import BATCH_COLUMNS
from alignkit.plugin_errors import Author, AuthorError, calling

AXES = {
    Per.TOKEN: "[responses, tokens]",
    Per.RESPONSE: "[responses]",
    Per.PAIR: "[pairs]",
    Per.GROUP: "[groups]",
}


class CheckedAlgorithm:
    """Calls an algorithm's methods and checks what they return. Raises PluginError for an author's mistake."""

    def __init__(self, algorithm: Algorithm, author: Author | None = None):
        self.algorithm = algorithm
        self.author = author or Author(f"algorithm {type(algorithm).__name__}")
        with self._calling("needs"):
            self.needs = algorithm.needs
        if self.needs.old_logprobs and algorithm.source is Source.DATASET:
            raise self._error("needs", "old_logprobs exist only for rollouts: declare `source = Source.ROLLOUTS`")

    def _calling(self, method: str, groups: Sequence[Group] = ()) -> Any:
        return calling(self.author, method, self.algorithm, groups)

    def _error(self, method: str, text: str) -> AuthorError:
        return self.author.error(f"{type(self.algorithm).__name__}.{method}", text)

    # Groups

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
        """The phases to learn from; groups without a phase form one phase."""
        with self._calling("select", groups):
            chosen = self.algorithm.select(groups, context)
        if not isinstance(chosen, Sequence) or not all(isinstance(item, Group | Phase) for item in chosen):
            raise self._error("select", f"return a list of groups or of phases, not {_kind(chosen)}")
        phases = [item for item in chosen if isinstance(item, Phase)]
        if phases and len(phases) < len(chosen):
            raise self._error("select", "got both groups and phases: put every group into a Phase")
        return phases or [Phase([item for item in chosen if isinstance(item, Group)])]

    def keep_group(self, group: Group) -> bool:
        with self._calling("keep_group"):
            return bool(self.algorithm.keep_group(group))

    def check_data(self, groups: Sequence[Group]) -> None:
        with self._calling("check_data"):
            self.algorithm.check_data(groups)

    def trained_turns(self) -> str:
        with self._calling("trained_turns"):
            return self.algorithm.trained_turns()

    @property
    def reads_its_own_prompt(self) -> bool:
        """Whether the reference reads every response behind the policy's prompt."""
        return type(self.algorithm).reference_prompt is Algorithm.reference_prompt

    def reference_prompt(self, group: Group) -> tuple[Message, ...]:
        """The messages behind which the reference reads a group's responses."""
        with self._calling("reference_prompt"):
            messages = self.algorithm.reference_prompt(group)
        if not isinstance(messages, Sequence) or not all(map(_is_message, messages)):
            raise self._error(
                "reference_prompt",
                f"return messages such as {{'role': 'user', 'content': 'Hi'}}, not {messages!r:.200}",
            )
        if bool(messages) != bool(group.prompt):
            problem = "a prompt needs at least one message" if group.prompt else "a raw text has no prompt: return ()"
            raise self._error("reference_prompt", f"{problem} (group: {preview(group)})")
        return tuple(messages)

    # Signal

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """The signals, each [responses, tokens] or [responses]; or why the iteration teaches nothing."""
        with self._calling("signal"):
            signals = self.algorithm.signal(rollouts)
        for name, value in self.algorithm.metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._error("signal", f"metrics['{name}'] must be a number, not {_kind(value)}; use float(...)")
        if isinstance(signals, Skip):
            return signals
        if not isinstance(signals, Mapping):
            raise self._error("signal", f'return a dict of tensors or Skip("reason"), not {_kind(signals)}')
        for name, values in signals.items():
            self._check_signal(name, values, rollouts)
        if self.needs.advantages is not None and ADVANTAGES not in signals:
            raise self._error("signal", f"return '{ADVANTAGES}', or leave `advantages` out of `needs`")
        if self.needs.advantages == "sequence" and signals[ADVANTAGES].dim() == 2:
            raise self._error("signal", f"'{ADVANTAGES}' are of tokens: declare `Needs(advantages=\"token\")`")
        return signals

    def _check_signal(self, name: str, values: Any, rollouts: Batch) -> None:
        if name in BATCH_COLUMNS:
            raise self._error("signal", f"'{name}' is a field of the batch; rename the signal")
        shapes = [_wanted(Per.TOKEN, rollouts), _wanted(Per.RESPONSE, rollouts)]
        if not isinstance(values, Tensor) or tuple(values.shape) not in [shape for shape, _ in shapes]:
            wanted = " or ".join(text for _, text in shapes)
            raise self._error("signal", f"signal '{name}' must be {wanted}, not {_kind(values)}")
        if not values.is_floating_point():
            raise self._error("signal", f"signal '{name}' must be floating point, not {values.dtype}; use .float()")

    # Loss

    def before_step(self, batch: Batch, out: Outputs) -> None:
        """Let the algorithm gather statistics of the global batch in its `state`."""
        with self._calling("before_step"):
            state = self.algorithm.before_step(batch, out)
        if not isinstance(state, Mapping):
            raise self._error("before_step", f"return a dict of numbers, not {_kind(state)}")
        self.algorithm.state |= dict(state)

    def loss(self, batch: Batch, out: Outputs) -> tuple[Mapping[str, Term], Mapping[str, Tensor]]:
        """The terms of the loss, and the weights of those that have weights."""
        with self._calling("loss"):
            terms = self.algorithm.loss(batch, out)
        self._check_terms("loss", terms, batch)
        weights = self.term_weights(batch)
        for name, values in weights.items():
            if name in terms and values.shape != terms[name].values.shape:
                wanted = _dimensions(terms[name].values.shape)
                raise self._error(
                    "term_weights", f"the weights of '{name}' must be {wanted}, like the term, not {_kind(values)}"
                )
        return terms, weights

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights by the name of their term."""
        with self._calling("term_weights"):
            weights = self.algorithm.term_weights(batch)
        if not isinstance(weights, Mapping) or not all(isinstance(values, Tensor) for values in weights.values()):
            raise self._error("term_weights", f"return a dict of tensors, not {_kind(weights)}")
        return weights

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Metrics as unreduced terms."""
        with self._calling("report_metrics"):
            terms = self.algorithm.report_metrics(batch, out)
        self._check_terms("report_metrics", terms, batch)
        return terms

    def check_gradient(self, terms: Mapping[str, Term]) -> None:
        """Raise if the loss has no gradient: otherwise the run would appear to work."""
        if self.needs.entropy == "reported":
            for name, term in terms.items():
                if term.coefficient and not term.values.requires_grad:
                    raise self._error(
                        "loss",
                        f"loss term '{name}' has no gradient; to learn from the entropy, declare `Needs(entropy=True)`",
                    )
        if not any(term.values.requires_grad for term in terms.values()):
            names = ", ".join(f"'{name}'" for name in terms) or "none"
            raise self._error(
                "loss",
                f"the loss has no gradient (terms: {names}): compute it from `out`, without detach() or no_grad()",
            )

    def _check_terms(self, method: str, terms: Any, batch: Batch) -> None:
        if not isinstance(terms, Mapping):
            wanted = "Loss(name=per_token(...))" if method == "loss" else "a dict of terms such as per_token(...)"
            raise self._error(method, f"return {wanted}, not {_kind(terms)}")
        for name, term in terms.items():
            self._check_term(method, name, term, batch)

    def _check_term(self, method: str, name: str, term: Any, batch: Batch) -> None:
        what = f"loss term '{name}'" if method == "loss" else f"metric '{name}'"
        if not isinstance(term, Term):
            raise self._error(method, f"{what} must be a term such as per_token(...), not {_kind(term)}")
        shape, wanted = _wanted(term.per, batch)
        if isinstance(term.values, Tensor) and tuple(term.values.shape) == shape:
            return
        others = [per for per in Per if isinstance(term.values, Tensor) and _wanted(per, batch)[0] == term.values.shape]
        advice = " or ".join(f"per_{per.value}(...)" for per in others)
        hint = f"write {advice}" if advice else "return unreduced values; alignkit averages them"
        raise self._error(
            method, f"{what} is per_{term.per.value} and must be {wanted}, not {_kind(term.values)}; {hint}"
        )

    # State

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint. Raises PluginError if it is not JSON."""
        for name, value in self.algorithm.state.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise self._error("before_step", f"state['{name}'] must be JSON; use float(...) ({error})") from error
        return self.algorithm.state


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _wanted(per: Per, batch: Batch) -> tuple[tuple[int, ...], str]:
    """The shape of a term, and the same in words: `[responses, tokens] = [12, 165]`."""
    sizes = {Per.RESPONSE: len(batch.mask), Per.PAIR: len(batch.pairs), Per.GROUP: len(batch.groups)}
    shape = tuple(batch.mask.shape) if per is Per.TOKEN else (sizes[per],)
    return shape, f"{AXES[per]} = {_dimensions(shape)}"


def _dimensions(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _kind(value: Any) -> str:
    """A tensor's shape, or the type of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return _dimensions(value.shape) if value.dim() else "a scalar tensor"
