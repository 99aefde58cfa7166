"""Overrides from the command line set and delete values, and a wrong one is named."""

from pathlib import Path

import pytest
from documents import data, problems


def test_override_sets_and_deletes(tmp_path: Path) -> None:
    text = "model: {base: tiny, lora: {r: 8}}\nlist: [{x: 1}, 2]\nempty:\n"
    got = data(
        tmp_path, text, "model.lora=none", (
            "model.quantization=nf4"
        ), "new.deep.key=1e-5", "~model.base", "list.0.x=3",
        "list.1=[a, b]", "empty.k=", "text=a=b",
    )  # fmt: skip
    assert got == {
        "model": {"lora": "none", "quantization": "nf4"},
        "list": [{"x": 3}, ["a", "b"]],
        "empty": {"k": None},
        "new": {"deep": {"key": 1e-5}},
        "text": "a=b",
    }


def test_override_into_a_scalar_component(tmp_path: Path) -> None:
    text = "algorithm: ppo\n"
    assert data(tmp_path, text, "algorithm.ppo.x=1", "algorithm.ppo.y=2") == {
        "algorithm": {"ppo": {"x": 1, "y": 2}}
    }
    assert data(tmp_path, text, "algorithm=dpo") == {"algorithm": "dpo"}
    (problem,) = problems(tmp_path, text, "algorithm.dpo.x=1")
    assert problem.message == "no such key: 'algorithm.dpo'"
    assert problem.file == "override 'algorithm.dpo.x=1'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "must be key.path=value"),
        ("=1", "must be key.path=value"),
        ("a..b=1", "must be key.path=value"),
        ("~stges", "no such key: 'stges'"),
        ("a=[1", "not valid YAML"),
        ("a={b: 1, b: 2}", "duplicate key 'b'"),
        ("list.7=1", "no such key: 'list.7'"),
        ("list.x.y=1", "no such key: 'list.x'"),
        ("extends=x", "cannot be overridden"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str) -> None:
    (problem,) = problems(tmp_path, "stages: 1\nlist: [1]\n", override)
    assert message in problem.message
    assert str(problem).splitlines()[1] == f"  --> override '{override}'"


def test_an_override_of_a_misspelled_stage_does_not_add_it(tmp_path: Path) -> None:
    text = "stages:\n  align: {algorithm: ppo}\n"
    (problem,) = problems(tmp_path, text, "stages.algn.algorithm=dpo")
    assert (
        problem.message == "no such key: 'stages.algn'" and problem.help == "did you mean 'align'?"
    )
    assert data(tmp_path, text, "stages.more={step: x}", "stages.more.y=1")["stages"]["more"] == {
        "step": "x",
        "y": 1,
    }


def test_a_wrong_delete_suggests(tmp_path: Path) -> None:
    assert problems(tmp_path, "stages: 1\n", "~stges")[0].help == "did you mean 'stages'?"
