"""The order in which a stage draws its rows: epochs over all of them, or sources by their weights.

Without weights, every row is drawn once per epoch. With weights, an epoch has as many draws as
there are rows, and each source has its share of them, to within a row. Its draws are spread evenly,
so that a source's rows in a batch differ from its share by less than the number of sources. A
source is walked in a shuffled order, epoch after epoch of its own, so that none of its rows is
drawn twice before all of them were drawn once. Draws depend on the seed and their position only, so
that a resumed run draws the same.

A second stream of data (`mix`; InstructGPT's ptx) is drawn in the same way for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from alignkit.data.group import Group, preview, why_not_demonstration
from alignkit.errors import DataError, RunFailed
from alignkit.recipe.sources import Loaded
from alignkit.tokens.encoder import Encoded
from alignkit.training.active_stage import ActiveStage
from alignkit.training.encoding import StageEncoder

if TYPE_CHECKING:
    from numpy.random import Generator


class DataSampler:
    """An endless sequence of row numbers.

    sources: the source of each row. shares: of the sources among the draws; None draws every row
    once per epoch. stream: returns the random generator of a name.
    """

    def __init__(
        self,
        sources: Sequence[int],
        shares: Sequence[float] | None,
        stream: Callable[..., Generator],
    ):
        self.size, self.stream = len(sources), stream
        self.rows: list[list[int]] = []
        self.shares: list[float] = []
        if shares is not None:
            self.rows = [[] for _ in shares]
            for row, source in enumerate(sources):
                self.rows[source].append(row)
            # Only sources that still have rows share a batch.
            present = [
                share if mine else 0.0 for share, mine in zip(shares, self.rows, strict=True)
            ]
            self.shares = [share / sum(present) for share in present]
        self.epoch = lru_cache(maxsize=1)(self._epoch)
        # Each source's current one
        self._lap = lru_cache(maxsize=1 + len(self.rows))(self._shuffled)

    def at(self, position: int) -> int:
        """The row at a position of the whole sequence."""
        epoch, index = divmod(position, self.size)
        return self.epoch(epoch)[index]

    def _epoch(self, number: int) -> list[int]:
        """The rows that an epoch (counted from 0) draws, in order."""
        if not self.shares:
            return self.stream(number).permutation(self.size).tolist()
        # Cumulative counts: an epoch draws their difference, so that rounding does not add up over
        # epochs.
        before, after = (
            apportioned(epochs * self.size, self.shares) for epochs in (number, number + 1)
        )
        # One offset in [0, 1) per source, or every epoch would begin with the same sources.
        starts = self.stream(number).random(len(self.shares))
        # (place in [0, 1), row): a source's draws are evenly spaced over the epoch.
        drawn: list[tuple[float, int]] = []
        for source, (start, end) in enumerate(zip(before, after, strict=True)):
            for position in range(start, end):  # a position in the source's own endless walk
                place = (position - start + starts[source]) / (end - start)
                lap, index = divmod(position, len(self.rows[source]))
                drawn.append((place, self._lap(source, lap)[index]))
        return [row for _, row in sorted(drawn)]

    def _shuffled(self, source: int, lap: int) -> list[int]:
        # Laps, not epochs, name the stream: a walk continues across the ends of epochs.
        return self.stream("source", source, lap).permutation(self.rows[source]).tolist()


def apportioned(draws: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `draws`, in proportion to shares that sum to 1 (the method of
    Webster).

    With more draws, no source has fewer, so that an epoch's counts are differences of these.
    """
    # Webster's method rounds each quota to within half the number of sources; it adds one draw at a
    # time from there.
    counts = [max(0, int(draws * share) - len(shares)) for share in shares]
    for _ in range(draws - sum(counts)):
        present = [source for source, share in enumerate(shares) if share]
        counts[min(present, key=lambda source: (counts[source] + 0.5) / shares[source])] += 1
    return counts


def make_data_sampler(
    stage: ActiveStage, loaded: Loaded, groups: Sequence[Group], name: str
) -> DataSampler:
    """The draws of a data entry from those of its groups that can be used. name: of the random
    streams.
    """
    stream = partial(stage.rng, name)
    if loaded.weights is None:
        if any(source.weight for source in loaded.sources):
            stage.say("'weight' has no effect: the rows have one source")
        return DataSampler([0] * len(groups), None, stream)
    sources = [group.origin.source for group in groups if group.origin is not None]
    if len(sources) < len(groups):
        raise RunFailed(
            f"stage '{stage.name}': 'weight' cannot be applied, because its algorithm makes "
            "groups without an 'origin'\n"
            "help: make them with dataclasses.replace, or remove 'weight'"
        )
    return DataSampler(sources, loaded.weights, stream)


@dataclass
class AuxiliaryLoss:
    """Cross-entropy on separate groups, added to every step's loss.

    weight: factor of the token mean. batch_size: groups per step. draws: the order of the groups.
    """

    groups: list[Encoded]
    weight: float
    batch_size: int
    draws: DataSampler

    def batch(self, step: int) -> list[Encoded]:
        """The groups of a step (counted from 0). They depend only on the step, so that a resumed
        run draws the same.
        """
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.groups[self.draws.at(position)] for position in places]


def auxiliary_loss(stage: ActiveStage, encoder: StageEncoder) -> AuxiliaryLoss | None:
    """The stage's `mix`, if it has one. Raises DataError if its rows do not suit its objective."""
    mix = stage.settings.mix
    if mix is None or mix.weight == 0:
        return None
    loaded = stage.load(mix.data)
    groups = loaded.groups
    for group in groups:
        fault = ""
        if mix.objective == "sft":
            fault = why_not_demonstration(group)
        elif group.prompt:
            fault = "has a prompt, and objective 'text' needs raw text"
        if fault:
            raise DataError(f"{stage.name}.mix: the row {preview(group)} {fault}")
    encoder.count_read(groups)
    # All turns, whichever the algorithm learns of its own data: only a label belongs to the last
    # one.
    encoded = encoder.encode(groups, turns="all")
    if not encoded:
        raise DataError(f"{stage.name}.mix.data has no usable row")
    draws = make_data_sampler(stage, loaded, [e.group for e in encoded], "mix")
    return AuxiliaryLoss(encoded, mix.weight, mix.batch_size or stage.settings.batch_size, draws)
