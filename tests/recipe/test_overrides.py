"""Overrides from the command line set and delete values, and a wrong one is named."""

from pathlib import Path

import pytest
import yaml
from documents import data, problems

from tests.rows import cells

TEXT = "model: {base: tiny, lora: {r: 8}}\nlist: [{x: 1}, 2]\nempty:\nalgorithm: ppo\nstages: {a: {s: 1}}\n"
OVERRIDES = """model.lora=none model.quantization=nf4 new.deep.key=1e-5 ~model.base list.0.x=3 list.1=[a,b]
empty.k= text=a=b algorithm.ppo.x=1 algorithm.ppo.y=2 stages.more={step:x} stages.more.y=1 new.3=x"""
CHANGED = """
model: {lora: none, quantization: nf4}
list: [{x: 3}, [a, b]]
empty: {k: null}
new: {deep: {key: 1.0e-5}, "3": x}
text: a=b
algorithm: {ppo: {x: 1, y: 2}}
stages: {a: {s: 1}, more: {"step:x": null, y: 1}}
"""


def test_override_sets_and_deletes(tmp_path: Path) -> None:
    assert data(tmp_path, TEXT, *OVERRIDES.split()) == yaml.safe_load(CHANGED)
    assert data(tmp_path, "algorithm: ppo", "algorithm=dpo") == {"algorithm": "dpo"}


def test_a_number_sign_in_an_override_is_no_comment(tmp_path: Path) -> None:
    for text, found in (
        ("my folder #1/rows.jsonl", "my folder #1/rows.jsonl"),
        ("a #b: c", "a #b: c"),
        ("'a #b'", "a #b"),
        ('"a" # b', "a"),
        ("5 # b", 5),
        ("a#b", "a#b"),
        ("{b: 'a #c'}", {"b": "a #c"}),
    ):
        assert data(tmp_path, "z: 1", f"x.y={text}") == {"z": 1, "x": {"y": found}}
    (tmp_path / "my #1").mkdir()
    (tmp_path / "my #1" / "a.yaml").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "my #1")
        read = data(tmp_path, "z: 1", "x=../my #1/a.yaml")
    assert read["x"].endswith("/my #1/a.yaml")


WRONG = """\
a | must be key.path=value |
=1 | must be key.path=value |
a..b=1 | must be key.path=value |
~stges | no such key: 'stges' | did you mean 'stages'?
a=[1 | not valid YAML |
a={b: 1, b: 2} | duplicate key 'b' |
list.7=1 | no such key: 'list.7' |
list.x.y=1 | no such key: 'list.x' |
extends=x | cannot be overridden |
algorithm.dpo.x=1 | no such key: 'algorithm.dpo' |
stages.algn.s=dpo | no such key: 'stages.algn' | did you mean 'align'?
"""


@pytest.mark.parametrize(("override", "message", "help"), cells(WRONG))
def test_wrong_overrides_are_named(tmp_path: Path, override: str, message: str, help: str) -> None:
    text = "stages: {align: {s: 1}}\nlist: [1]\nalgorithm: ppo\n"
    (problem,) = problems(tmp_path, text, override)
    assert message in problem.message and help in problem.help
    assert str(problem).splitlines()[1] == f"  --> override '{override}'"
