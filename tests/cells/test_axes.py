"""What `--each` may say: axes, values, addresses, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit_plugins.cells.axes import cells_of
from tests.rows import cells

VARIANTS = """\
slow: {stages.align.epochs: 2, seed: 1}
none: [~stages.align]
"""
# The words of `--each`, the addresses, and the overrides of the last cell
MADE = r"""
seed=3..5                        | seed=3 seed=4 seed=5           | seed=5
seed=-1..0                       | seed=-1 seed=0                 | seed=0
seed=3..5,9                      | seed=3 seed=4 seed=5 seed=9    | seed=9
a.b=1e-4,3e-4                    | b=1e-4 b=3e-4                  | a.b=3e-4
a.b=x c.b=y,z                    | a.b=x,c.b=y a.b=x,c.b=z        | a.b=x c.b=z
a=ppo,{ppo:{clip:[1,2]}}         | a=ppo a=ppo-clip-1-2-f86eee    | a={ppo:{clip:[1,2]}}
a="x,y",'z]'                     | a=x-y-a089ee a=z-13d801        | a='z]'
m=v.yaml                         | m=slow m=none                  | ~stages.align
m=v.yaml seed=1..2               | m=slow,seed=1 m=slow,seed=2 m=none,seed=1 m=none,seed=2 | ~stages.align seed=2
"""
REFUSED = r"""
seed                             | expected KEY=VALUE,VALUE
seed=                            | expected KEY=VALUE,VALUE
seed=7..3                        | the range is empty
a=1,,2                           | expected values of YAML
a={x                             | expected values of YAML
a=1,1                            | the value 1 is there twice
a=1 a=2                          | there are two axes of this key
a=ww.yaml                        | no such file: ww.yaml\n.*did you mean 'w.yaml'
seed=3..5,4                      | the value 4 is there twice
a=1..99999999999                 | more than 10,000 cells
a=w.yaml                         | w.yaml: x: expected overrides
a=1..200 b=1..200                | more than 10,000 cells
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.yaml").write_text(VARIANTS)
    Path("w.yaml").write_text("x: 3\n")


@pytest.mark.parametrize(("words", "addresses", "last"), cells(MADE))
def test_axes_cross_and_name_cells(words: str, addresses: str, last: str) -> None:
    made = cells_of(words.split())
    assert [cell.address for cell in made] == addresses.split()
    assert " ".join(made[-1].overrides) == last


@pytest.mark.parametrize(("words", "problem"), cells(REFUSED))
def test_what_makes_no_cells_is_refused(words: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        cells_of(words.split())
