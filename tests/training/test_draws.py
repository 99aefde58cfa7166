"""The order of rows: every row before any is repeated, and sources by their weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignkit import Group, RunFailed, seeds
from alignkit.data.group import Origin
from alignkit.models.packing import Examples
from alignkit.recipe.sources import Loaded, SourceFacts
from alignkit.tokens.encoder import Encoded
from alignkit.training.active_stage import ActiveStage
from alignkit.training.data_sampler import (
    AuxiliaryLoss,
    DataSampler,
    apportioned,
    make_data_sampler,
)
from alignkit.training.learner import Learner
from tests.rows import run, write_recipe, write_rows


def draws(sizes: list[int], shares: list[float] | None, seed: int = 0) -> DataSampler:
    sources = [place for place, size in enumerate(sizes) for _ in range(size)]
    return DataSampler(sources, shares, lambda *name: seeds.stream(seed, *name))


@pytest.mark.silent_bug(
    "data: order",
    "Every epoch has the same order.",
    "Each epoch has an order of its own.",
    "huggingface/trl#2337",
)
def test_without_weights_every_row_comes_once_per_epoch() -> None:
    found = draws([3, 4], None)
    assert sorted(found.epoch(0)) == sorted(found.epoch(1)) == list(range(7))
    assert found.epoch(0) != found.epoch(1)
    assert [found.at(place) for place in range(14)] == found.epoch(0) + found.epoch(1)


def test_a_source_is_used_up_before_any_of_its_rows_returns() -> None:
    """300 rows at 0.2 and 700 at 0.8: 200 draws of the first in an epoch of 1000, so that it lasts
    1.5 epochs.
    """
    found = draws([300, 700], [0.2, 0.8])
    epochs = [found.epoch(number) for number in range(6)]
    assert {len(epoch) for epoch in epochs} == {1000}
    assert [sum(row < 300 for row in epoch) for epoch in epochs] == [200] * 6
    for mine in (range(300), range(300, 1000)):
        seen: Counter[int] = Counter()
        for epoch in epochs:
            seen.update(row for row in epoch if row in mine)
            assert len(seen) == min(len(mine), seen.total())
            assert max(seen.values()) - min(seen.values()) <= 1
    first = [row for epoch in epochs for row in epoch if row < 300]
    assert first[:200] != sorted(first[:200])
    assert first[:300] != first[300:600]
    # Where an epoch has which source, and the order of sources of a size, differ
    assert len({tuple(row < 300 for row in epoch) for epoch in epochs}) > 1
    order = draws([50, 50], [0.5, 0.5]).epoch(0)
    assert [row for row in order if row < 50] != [row - 50 for row in order if row >= 50]


@pytest.mark.silent_bug(
    "resume: data",
    "A streamed data set starts again from its first row.",
    "A row is drawn by its position.",
    "modelscope/ms-swift#4505",
)
def test_draws_depend_on_seed_and_place_only() -> None:
    shares, sizes = [0.5, 0.3, 0.2], [7, 5, 31]
    one, other = draws(sizes, shares), draws(sizes, shares)
    whole = [one.at(place) for place in range(150)]
    assert [other.at(place) for place in reversed(range(150))] == whole[::-1]
    assert [draws(sizes, shares, seed=1).at(place) for place in range(150)] != whole
    stages: Any = [SimpleNamespace(seed=0, name=name) for name in "ab"]
    first, second = (ActiveStage.rng(stage, "shuffle").random() for stage in stages)
    assert first != second  # each stage has an order of its own


@pytest.mark.silent_bug(
    "data: weights",
    "Weights of mixed sources hold on average, and single batches are far off.",
    "Every batch has the share of each source, up to as many rows as there are sources.",
)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(2, 40), st.integers(0, 5))
@example([8, 2, 1, 1], 27, 4)
@settings(max_examples=25)
def test_every_batch_has_about_the_share_of_each_source(
    weights: list[int], batch: int, seed: int
) -> None:
    """By chance, half of 12 prompts varies by 1.7 (standard deviation); an iteration had 9 of a
    kind, and 3.

    A stretch of an epoch has an evenly spaced source's draws to within one. A batch ends where all
    draws add up to it, so that the others' deviations move its end. Whole numbers of draws differ
    from the shares by less than one.
    """
    shares = [weight / sum(weights) for weight in weights]
    sizes = [100] * len(weights)
    order = draws(sizes, shares, seed).epoch(seed)
    assert len(order) == sum(sizes)
    for start in range(0, len(order) - batch + 1, batch):
        found = Counter(row // 100 for row in order[start : start + batch])
        for source, share in enumerate(shares):
            bound = (1 - share) + share * (len(shares) - 1) + batch / len(order)
            assert abs(found[source] - batch * share) < bound <= len(shares)


def test_draws_are_apportioned_by_webster() -> None:
    assert apportioned(3, [0.7, 0.2, 0.1]) == [2, 1, 0]  # d'Hondt gives all to the first


def test_a_source_whose_rows_are_all_left_out_leaves_its_share_to_the_others() -> None:
    found = DataSampler([0, 0, 2, 2], [0.25, 0.5, 0.25], lambda *name: seeds.stream(0, *name))
    assert sorted(found.epoch(0)) == [0, 1, 2, 3]


def test_the_weight_of_an_only_source_is_told_to_have_no_effect() -> None:
    context = Mock(rng=lambda *name: seeds.stream(0, *name))
    for weight in (None, 2.0):
        source = SourceFacts("a", "f", False, 1, weight=weight)
        found = make_data_sampler(
            context, Loaded([], [], [], (source,)), [Group(())] * 3, "shuffle"
        )
        assert sorted(found.epoch(0)) == [0, 1, 2] and context.say.called == (weight is not None)


def test_groups_without_an_origin_cannot_be_weighted() -> None:
    facts = tuple(SourceFacts(name, "f", False, 1, weight=0.5) for name in "ab")
    known = Group((), origin=Origin("a", 1))
    context = Mock(spec=ActiveStage)
    context.name = "sft"
    with pytest.raises(RunFailed, match="stage 'sft': 'weight' cannot be applied"):
        make_data_sampler(context, Loaded([], [], [], facts), [known, Group(())], "shuffle")


def test_weights_of_data_and_of_a_mix_repeat_and_drop_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of 16 rows: 3/4 of them of one source; and of 24 mixed rows 3/4 of another."""
    drawn: Counter[str] = Counter()
    step, batch = Learner.step, AuxiliaryLoss.batch

    def noted(groups: list[Encoded]) -> list[Encoded]:
        drawn.update(encoded.group.prompt[0]["content"] for encoded in groups)
        return groups

    def watched(self: Learner, examples: Examples, factor: float) -> dict[str, float]:
        noted(examples.groups)
        return step(self, examples, factor)

    monkeypatch.setattr(Learner, "step", watched)
    monkeypatch.setattr(AuxiliaryLoss, "batch", lambda self, step: noted(batch(self, step)))
    for name, count in {"few": 4, "many": 12, "a": 6, "b": 2}.items():
        rows = [{"prompt": f"{name} {n}", "completion": "yes"} for n in range(count)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    stages = """
    only:
      algorithm: sft
      data: [{path: few.jsonl, weight: 3}, {path: many.jsonl, weight: 1}]
      batch_size: 4
      epochs: 3
      mix:
        data: [{path: a.jsonl, weight: 1}, {path: b.jsonl, weight: 3}]
        objective: sft
        weight: 0.1
        batch_size: 2
    """
    run(write_recipe(tmp_path, stages))
    each = {"few": (4, 9), "many": (12, 1), "a": (6, 1), "b": (2, 9)}
    assert drawn == {f"{name} {k}": n for name, (size, n) in each.items() for k in range(size)}
