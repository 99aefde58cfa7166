"""One step by hand, the schedule's values, mistakes before the first stage, and a stop with the
same bytes.
"""

import shutil
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from alignkit_lion import Lion, cooldown

from alignkit import RecipeError
from alignkit.cli import main

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_lion" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_lion.py")]
STOP = """
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, step):
    if step == 7:
        run.request_stop("a test")
"""


def test_two_steps_are_the_papers() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = Lion([weight], lr=0.1, b1=0.5, b2=0.75, weight_decay=0.5)
    for gradient in ([[4.0, -2.0]], [[-1.0, -2.0]]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    # c1 = 0.5 g, so signs +, -; m1 = 0.25 g = [1, -0.5]; c2 = 0.5 m1 + 0.5 g = [0, -1.25]; m2 =
    # 0.75 m1 + 0.25 g
    first = [0.95 * 1 - 0.1, 0.95 * -2 + 0.1]
    torch.testing.assert_close(
        weight.detach(), torch.tensor([[0.95 * first[0], 0.95 * first[1] + 0.1]])
    )
    torch.testing.assert_close(optimizer.state[weight]["moment"], torch.tensor([[0.5, -0.875]]))


def test_the_rate_is_constant_and_cools_down() -> None:
    assert [cooldown(step, 10, 0.4) for step in range(10)] == pytest.approx(
        [1] * 7 + [0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]
    )


def test_moments_that_never_fade_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Lion([torch.nn.Parameter(torch.zeros(1))], b2=1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sft.optimizer.lion.b3=0.5", "unknown key 'b3'"),
        ("stages.sft.optimizer=lyon", "did you mean 'lion'?"),
        ("stages.sft.lr_scheduler_type={cooldwn: {}}", "did you mean 'cooldown'?"),
    ],
)
def test_mistakes_are_told_before_the_first_stage(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(HERE / "recipe.yaml"), override, *PLUGIN]) == RecipeError.exit_code
    assert message in capsys.readouterr().err


def test_a_stopped_run_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = tmp_path / "stop.py"
    stop.write_text(STOP, encoding="utf-8")
    shutil.copy(HERE / "recipe.yaml", tmp_path)
    shutil.copy(HERE / "answers.jsonl", tmp_path)
    words = ["run", str(tmp_path / "recipe.yaml"), *PLUGIN, "--out"]
    assert main([*words, str(tmp_path / "a" / "whole")]) == 0
    assert main([*words, str(tmp_path / "stopped"), "--plugin", str(stop)]) == 75
    assert main([*words, str(tmp_path / "stopped")]) == 0
    assert "sft: continuing after step 7 of 20" in capsys.readouterr().err
    file = "sft/adapter/adapter_model.safetensors"
    assert (tmp_path / "stopped" / file).read_bytes() == (
        tmp_path / "a" / "whole" / file
    ).read_bytes()
