"""An algorithm as the training loop calls it: each method in one place, and what it returns checked.

A check says what is wrong with a result, and what to write instead; it is empty if all is well. See `calls.call`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from alignkit.algorithm import ADVANTAGES, Algorithm, Phase, SelectContext, Skip, Source, wrong_selection
from alignkit.batch import Batch, Outputs
from alignkit.calls import blame, call, mistake
from alignkit.data.group import Group, Message, preview
from alignkit.loss import Per, Term
from alignkit.models.packing import BATCH_COLUMNS

AXES = {
    Per.TOKEN: "[responses, tokens]",
    Per.RESPONSE: "[responses]",
    Per.PAIR: "[pairs]",
    Per.GROUP: "[groups]",
}


class CheckedAlgorithm:
    """Calls an algorithm's methods. Raises PluginError for a mistake in them."""

    def __init__(self, algorithm: Algorithm):
        self.algorithm = algorithm
        with blame(algorithm, "needs"):
            self.needs = algorithm.needs
        if self.needs.old_logprobs and algorithm.source is Source.DATASET:
            text = "old_logprobs exist only for rollouts: declare `source = Source.ROLLOUTS`"
            raise mistake(algorithm, "needs", text)

    # Groups

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
        """The phases to learn from; groups without a phase form one phase."""
        chosen = call(self.algorithm, "select", groups, context, returns=wrong_selection)
        phases = [item for item in chosen if isinstance(item, Phase)]
        return phases or [Phase([item for item in chosen if isinstance(item, Group)])]

    def keep_group(self, group: Group) -> bool:
        return bool(call(self.algorithm, "keep_group", group))

    def check_data(self, groups: Sequence[Group]) -> None:
        call(self.algorithm, "check_data", groups)

    def trained_turns(self) -> str:
        turns: str = call(self.algorithm, "trained_turns")
        return turns

    @property
    def reads_its_own_prompt(self) -> bool:
        """Whether the reference reads every response behind the policy's prompt."""
        return type(self.algorithm).reference_prompt is Algorithm.reference_prompt

    def reference_prompt(self, group: Group) -> tuple[Message, ...]:
        """The messages behind which the reference reads a group's responses."""

        def wrong(messages: Any) -> str:
            if not isinstance(messages, Sequence) or not all(map(_is_message, messages)):
                return f"return messages such as {{'role': 'user', 'content': 'Hi'}}, not {messages!r:.200}"
            if bool(messages) == bool(group.prompt):
                return ""
            text = "a prompt needs at least one message" if group.prompt else "a raw text has no prompt: return ()"
            return f"{text} (group: {preview(group)})"

        return tuple(call(self.algorithm, "reference_prompt", group, returns=wrong))

    # Signal

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """The signals, each [responses, tokens] or [responses]; or why the iteration teaches nothing."""

        def wrong(signals: Any) -> str:
            for name, value in self.algorithm.metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    return f"metrics['{name}'] must be a number, not {_kind(value)}; use float(...)"
            return "" if isinstance(signals, Skip) else self._wrong_signals(signals, rollouts)

        signals: Mapping[str, Tensor] | Skip = call(self.algorithm, "signal", rollouts, returns=wrong)
        return signals

    def _wrong_signals(self, signals: Any, rollouts: Batch) -> str:
        if not isinstance(signals, Mapping):
            return f'return a dict of tensors or Skip("reason"), not {_kind(signals)}'
        shapes = [_wanted(Per.TOKEN, rollouts), _wanted(Per.RESPONSE, rollouts)]
        for name, values in signals.items():
            if name in BATCH_COLUMNS:
                return f"'{name}' is a field of the batch; rename the signal"
            if not isinstance(values, Tensor) or tuple(values.shape) not in [shape for shape, _ in shapes]:
                return f"signal '{name}' must be {' or '.join(text for _, text in shapes)}, not {_kind(values)}"
            if not values.is_floating_point():
                return f"signal '{name}' must be floating point, not {values.dtype}; use .float()"
        if self.needs.advantages is not None and ADVANTAGES not in signals:
            return f"return '{ADVANTAGES}', or leave `advantages` out of `needs`"
        if self.needs.advantages == "sequence" and signals[ADVANTAGES].dim() == 2:
            return f"'{ADVANTAGES}' are of tokens: declare `Needs(advantages=\"token\")`"
        return ""

    # Loss

    def before_step(self, batch: Batch, out: Outputs) -> None:
        """Let the algorithm gather statistics of the global batch in its `state`."""
        self.algorithm.state |= dict(call(self.algorithm, "before_step", batch, out, returns=_wrong_statistics))

    def loss(self, batch: Batch, out: Outputs) -> tuple[Mapping[str, Term], Mapping[str, Tensor]]:
        """The terms of the loss, and the weights of those that have weights."""
        terms = call(self.algorithm, "loss", batch, out, returns=lambda loss: _wrong_terms(loss, batch, "loss term"))
        return terms, self.term_weights(batch, terms)

    def term_weights(self, batch: Batch, terms: Mapping[str, Term] | None = None) -> Mapping[str, Tensor]:
        """Weights by the name of their term, in its shape."""

        def wrong(weights: Any) -> str:
            if not isinstance(weights, Mapping) or not all(isinstance(values, Tensor) for values in weights.values()):
                return f"return a dict of tensors, not {_kind(weights)}"
            for name in weights.keys() & (terms or {}).keys():
                shape = terms[name].values.shape if terms else ()
                if weights[name].shape != shape:
                    text = f"the weights of '{name}' must be {_dimensions(shape)}, like the term"
                    return f"{text}, not {_kind(weights[name])}"
            return ""

        weights: Mapping[str, Tensor] = call(self.algorithm, "term_weights", batch, returns=wrong)
        return weights

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Metrics as unreduced terms."""
        terms: Mapping[str, Term] = call(
            self.algorithm, "report_metrics", batch, out, returns=lambda terms: _wrong_terms(terms, batch, "metric")
        )
        return terms

    def check_gradient(self, terms: Mapping[str, Term]) -> None:
        """Raise if the loss has no gradient: otherwise the run would appear to work."""
        without = [name for name, term in terms.items() if not term.values.requires_grad]
        learned = [name for name in without if terms[name].coefficient]
        if self.needs.entropy == "reported" and learned:
            text = f"loss term '{learned[0]}' has no gradient; to learn from the entropy, declare `Needs(entropy=True)`"
            raise mistake(self.algorithm, "loss", text)
        if len(without) == len(terms):
            names = ", ".join(f"'{name}'" for name in terms) or "none"
            text = f"the loss has no gradient (terms: {names}): compute it from `out`, without detach() or no_grad()"
            raise mistake(self.algorithm, "loss", text)

    # State

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint. Raises PluginError if it is not JSON."""
        for name, value in self.algorithm.state.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                text = f"state['{name}'] must be JSON; use float(...) ({error})"
                raise mistake(self.algorithm, "before_step", text) from error
        return self.algorithm.state


def _wrong_statistics(state: Any) -> str:
    return "" if isinstance(state, Mapping) else f"return a dict of numbers, not {_kind(state)}"


def _wrong_terms(terms: Any, batch: Batch, what: str) -> str:
    """What is wrong with the unreduced terms of a loss, or of metrics."""
    if not isinstance(terms, Mapping):
        wanted = "Loss(name=per_token(...))" if what == "loss term" else "a dict of terms such as per_token(...)"
        return f"return {wanted}, not {_kind(terms)}"
    for name, term in terms.items():
        if not isinstance(term, Term):
            return f"{what} '{name}' must be a term such as per_token(...), not {_kind(term)}"
        shape, wanted = _wanted(term.per, batch)
        actual = tuple(term.values.shape) if isinstance(term.values, Tensor) else None
        if actual != shape:
            advice = " or ".join(f"per_{per.value}(...)" for per in Per if _wanted(per, batch)[0] == actual)
            hint = f"write {advice}" if advice else "return unreduced values; alignkit averages them"
            return f"{what} '{name}' is per_{term.per.value} and must be {wanted}, not {_kind(term.values)}; {hint}"
    return ""


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
