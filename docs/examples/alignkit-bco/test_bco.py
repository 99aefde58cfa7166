"""The loss and the reward shift against the paper's formulas in plain torch, the conformance kit,
and a short run.
"""

import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_bco
import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from alignkit import Batch, DataError, Group, Loss, Outputs, Pair, Pairs, Response, SelectContext
from alignkit.cli import main
from alignkit.testing import check_algorithm

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_bco" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_bco.py")]
NONE = torch.zeros(0)
NO_PAIRS = Pairs(NONE, NONE, NONE, NONE, NONE)


def bco(beta: float = 0.1) -> alignkit_bco.BCO:
    return alignkit_bco.BCO(alignkit_bco.BCO.Options(beta=beta))


def inputs(log_ratios: list[float], labels: list[bool]) -> tuple[Batch, Outputs]:
    """Responses of two tokens with these log pi/pi_ref in nats, and a third token that does not
    count.
    """
    count = len(labels)
    mask = torch.tensor([[True, True, False]]).repeat(count, 1)
    logprobs = torch.tensor([[-1.0, x - 2.0, 7.0] for x in log_ratios], requires_grad=True)
    batch = Batch(
        groups=[Group((), (Response(label=label),)) for label in labels],
        tokens=torch.zeros(count, 3, dtype=torch.int64),
        mask=mask,
        group_index=torch.arange(count),
        pairs=NO_PAIRS,
        truncated=torch.zeros(count, dtype=torch.bool),
        reference_logprobs=torch.tensor([[-1.5, -1.5, -9.0]]).repeat(count, 1),
    )
    return batch, Outputs(logprobs=logprobs)


def step(algorithm: alignkit_bco.BCO, batch: Batch, out: Outputs) -> torch.Tensor:
    """The loss of a global batch, reduced as in training: each term by its own weights."""
    algorithm.state |= algorithm.before_step(batch, out.replace(logprobs=out.logprobs.detach()))
    terms: Loss = algorithm.loss(batch, out)
    weights = algorithm.term_weights(batch)
    parts = [
        (term.values * weights[name]).sum() / weights[name].sum() for name, term in terms.items()
    ]
    return torch.stack(parts).sum()


def test_the_loss_is_the_papers() -> None:
    """E+[-log sigma(r - delta)] + E-[-log sigma(-(r - delta))], delta = (E+[r] + E-[r]) / 2, no
    gradient in delta.
    """
    ratios, labels = [3.0, -1.0, 0.5, 2.0, -4.0], [True, False, True, True, False]
    x, good = torch.tensor(ratios, dtype=torch.float64, requires_grad=True), torch.tensor(labels)
    r = 0.3 * x
    delta = ((r[good].mean() + r[~good].mean()) / 2).detach()
    expected = -logsigmoid(r[good] - delta).mean() - logsigmoid(-(r[~good] - delta)).mean()
    expected.backward()
    batch, out = inputs(ratios, labels)
    loss = step(bco(0.3), batch, out)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert out.logprobs.grad is not None and x.grad is not None
    assert torch.allclose(
        out.logprobs.grad[:, :2].double(), x.grad[:, None].expand(-1, 2), atol=1e-7
    )
    assert not out.logprobs.grad[:, 2].any()


def test_the_shift_is_the_mean_over_all_batches_of_each_kind() -> None:
    algorithm = bco(0.5)
    step(algorithm, *inputs([4.0, 2.0, -2.0], [True, True, False]))
    assert algorithm.state == pytest.approx(
        {"desirable": 1.5, "desirable_seen": 2, "undesirable": -1.0, "undesirable_seen": 1}
    )
    with torch.no_grad():
        # A batch without undesirable responses
        algorithm.state |= algorithm.before_step(*inputs([8.0], [True]))
    assert algorithm.state["desirable"] == pytest.approx((2.0 + 1.0 + 4.0) / 3)
    assert algorithm.state["undesirable"] == -1.0
    # A row of three times the weight is a row that comes three times
    other = bco(0.5)
    batch, out = inputs([4.0, 2.0, -2.0], [True, True, False])
    first, *others = batch.groups
    rows = [replace(first, weight=3.0), *others]
    assert other.before_step(batch.replace(groups=rows), out)["desirable"] == pytest.approx(7 / 4)
    batch, out = inputs([8.0, -2.0], [True, False])
    assert float(algorithm.report_metrics(batch, out)["delta"].values[0]) == pytest.approx(
        (7 / 3 - 1) / 2
    )


def test_with_balanced_labels_it_is_twice_the_loss_of_trls_trainer() -> None:
    """TRL averages -logsigmoid(r - d) and -logsigmoid(-(r - d)) together; d is the running mean of
    all rewards.
    """
    algorithm, seen = bco(0.1), []
    for ratios in ([12.0, 3.0, -6.0, 1.0], [20.0, 9.0, 4.0, -8.0]):
        rewards = [0.1 * x for x in ratios]
        seen += rewards
        delta = sum(seen) / len(seen)
        trl = np.mean(
            [
                np.log1p(np.exp(-s * (r - delta)))
                for r, s in zip(rewards, (1, 1, -1, -1), strict=True)
            ]
        )
        loss = step(algorithm, *inputs(ratios, [True, True, False, False]))
        assert loss.item() == pytest.approx(2 * trl, rel=1e-6)


def context(logged: dict[str, float]) -> SelectContext:
    return SelectContext(
        0, 0, lambda: [], lambda **metrics: logged.update(metrics), np.random.default_rng(0)
    )


def test_pairs_are_labels_and_rows_without_one_are_counted() -> None:
    pair = Group((), (Response("a"), Response("b")), pairs=(Pair(1, 0),))
    bare = Group((), (Response("c"),))
    logged: dict[str, float] = {}
    (kept,) = bco().select([pair, bare], context(logged))
    assert [response.label for response in kept.responses] == [False, True]
    assert logged == {"without_label": 1}


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([], "no row has one"),
        ([True], "all labels are desirable"),
        ([False, False], "all labels are undesirable"),
    ],
)
def test_one_kind_of_label_teaches_nothing(labels: list[bool], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        bco().check_data([Group((), (Response(label=label),)) for label in labels])


def test_it_conforms() -> None:
    check_algorithm(alignkit_bco.BCO, {"beta": 0.2})


def test_a_run(tmp_path: Path) -> None:
    assert (
        main(
            [
                "run",
                str(HERE / "recipe.yaml"),
                "stages.align.epochs=3",
                "--out",
                str(tmp_path),
                *PLUGIN,
            ]
        )
        == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    # The policy starts as the reference
    assert rows[0]["loss"] == pytest.approx(2 * np.log(2), abs=1e-4)
    assert (
        rows[-1]["loss"] < rows[0]["loss"]
        and rows[-1]["rewards/chosen"] > rows[-1]["rewards/rejected"]
    )
    assert rows[-1]["delta"] != 0
