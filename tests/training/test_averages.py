"""Averages of terms over a global batch, and of metrics over steps."""

from __future__ import annotations

import math

import pytest
import torch

from alignkit import per_response, per_token
from alignkit.training.learner import Averages, weighted_sum
from tests.by_hand import batch, micro_batch

# Two responses of two tokens; the second response has one token that counts.
MASK = [[True, True], [True, False]]
VALUES = torch.tensor([[1.0, 2.0], [6.0, math.nan]])


def test_a_response_without_a_counted_token_does_not_count() -> None:
    masked = batch([[True, True], [False, False]])
    assert masked.weights("response").tolist() == [1, 0]
    averages = Averages()
    averages.add({"length": per_response(torch.tensor([4.0, 8.0]))}, micro_batch(masked))
    assert averages.means() == {"length": 4.0}


@pytest.mark.silent_bug(
    "losses: accumulation",
    "Each micro-batch divides by its own tokens, so that short examples weigh more.",
    "All micro-batches of a step share one denominator.",
    "huggingface/transformers#35203",
    "meta-pytorch/torchtune#1875",
)
@pytest.mark.silent_bug(
    "metrics: averages",
    "The evaluation loss is a mean of batch means and depends on the batch size.",
    "It is the mean over all tokens.",
    "huggingface/transformers#39241",
    "huggingface/transformers#41898",
)
def test_micro_batches_share_one_denominator() -> None:
    averages = Averages()
    for _ in range(2):
        averages.add({"nll": per_token(VALUES)}, micro_batch(batch(MASK)))
    assert averages.means() == pytest.approx({"nll": 3.0})


def test_a_nan_is_unknown_in_a_metric_and_visible_in_a_loss() -> None:
    term = {"length": per_response(torch.tensor([4.0, math.nan]))}
    metrics = Averages()
    metrics.add(term, micro_batch(batch(MASK)))
    assert metrics.means() == {"length": 4.0} and math.isnan(
        float(weighted_sum(term["length"].values, batch(MASK).weights("response")))
    )
