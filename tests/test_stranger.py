"""Strangers' plugins: wheels of their own, installed beside alignkit's wheel, found by entry
points, and run.

`make slow` has those that are not `reinforce`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from tests.rows import read_rows

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
# What a recipe improves from its first row of metrics to the mean of its last five: half of what
# one seed gives, which is far outside the noise of one row.
GAINS = yaml.safe_load("""
reinforce/recipe: [reward, 0.12]
trl-methods/nash_md: [reward, 0.15]
bco/recipe: [loss, -0.5]
trl-methods/xpo: [loss, -0.07]
""")
# A command with a package's plugins, and what it then says of one of them
LISTED = yaml.safe_load("""
reinforce: [plugins, reinforce (alignkit-reinforce 0.1.0)]
notes: [--help, "Add a note, from which a recipe can learn."]
lion: [plugins lion, optimizer lion (]
archive: [plugins lab, template lab (]
hardest: [plugins hardest, weight of a prompt's earlier rewards in its mean]
""")


def call(*command: object, cwd: Path | None = None, **environment: str) -> str:
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ALIGNKIT", "PYTHON"))
    }
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(project: Path, out: Path) -> Path:
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, project)
    name = "alignkit" if project == ROOT else module(project.name.removeprefix("alignkit-"))
    (wheel,) = out.glob(f"{name}-*.whl")
    return wheel


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has alignkit's wheel, and borrows torch and the rest
    from this one.
    """
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(folder / "env", with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "env" / "lib" / version / "site-packages"
    # Links rather than this environment's own folder: that one has alignkit's editable install and
    # its entry points.
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for package in Path(torch.__file__).parent.parent.iterdir():
        if "alignkit" not in package.name and package.suffix != ".pth":
            (borrowed / package.name).symlink_to(package)
    (site / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    python = folder / "env" / "bin" / "python"
    install(python, build(ROOT, folder))
    return python


def install(python: Path, wheel: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)


@cache
def add(python: Path, name: str) -> None:
    """Install an example in the environment of `stranger`."""
    folder = python.parents[2]
    install(python, build(folder / "examples" / f"alignkit-{name}", folder))


def module(name: str) -> str:
    return f"alignkit_{name.replace('-', '_')}"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name != "reinforce" else ()) for name in LISTED],
)
def test_it_comes_from_its_wheel_and_is_listed(stranger: Path, tmp_path: Path, name: str) -> None:
    add(stranger, name)
    names = ["alignkit", "alignkit_plugins.algorithms.ppo", module(name)]
    code = (
        "import json, importlib, importlib.metadata as m;"
        f"print(json.dumps([[importlib.import_module(name).__file__ for name in {names}],"
        "{p.name: p.dist.name for p in m.entry_points(group='alignkit')}]))"
    )
    files, owners = json.loads(call(stranger, "-c", code, cwd=tmp_path))
    site = stranger.parent.parent / "lib"
    assert all(Path(file).is_relative_to(site) for file in files), files
    assert owners[module(name)] == f"alignkit-{name}"
    words, said = LISTED[name]
    found = call(stranger.parent / "alignkit", *words.split(), cwd=tmp_path)
    assert said in " ".join(found.split())


@pytest.mark.slow  # the next test has a short run of all that is installed
@pytest.mark.parametrize("name", GAINS)
def test_a_recipe_is_valid_and_runs(stranger: Path, tmp_path: Path, name: str) -> None:
    package, _, file = name.partition("/")
    add(stranger, package)
    example, elsewhere = EXAMPLES / f"alignkit-{package}", tmp_path / "elsewhere"
    for given in (*example.glob("*.yaml"), *example.glob("*.jsonl"), *example.glob("letters.py")):
        shutil.copy(given, tmp_path)
    alignkit, recipe = stranger.parent / "alignkit", tmp_path / f"{file}.yaml"
    elsewhere.mkdir()
    assert ": stages " in call(alignkit, "check", recipe, cwd=elsewhere)
    call(alignkit, "run", recipe, "--out", "run", cwd=elsewhere)
    rows = read_rows(elsewhere / "run" / "align" / "metrics.jsonl")
    metric, gain = GAINS[name]
    values = [row[metric] for row in rows]
    change = sum(values[-5:]) / 5 - values[0]
    assert abs(change) > abs(gain) and change * gain > 0
    assert rows[0].get("kl", 0.0) == pytest.approx(0.0, abs=1e-4) and rows[-1].get("kl", 9.0) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(path.name.removeprefix("alignkit-") for path in EXAMPLES.glob("alignkit-*"))
)
def test_its_own_tests_pass_with_its_wheel(stranger: Path, tmp_path: Path, name: str) -> None:
    """The kit and a run of the recipe, in a copy of the example without the modules that the wheel
    has.
    """
    example = EXAMPLES / f"alignkit-{name}"
    project = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))
    for needed in map(Requirement, project["project"]["dependencies"]):
        if importlib.util.find_spec(needed.name) is None:
            pytest.skip(f"needs {needed}")
    add(stranger, name)
    copy = tmp_path / "docs" / "examples" / example.name
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    # Also a module that the wheel lacks
    ignored = shutil.ignore_patterns("__pycache__", "alignkit_*", *packed)
    shutil.copytree(example, copy, ignore=ignored)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")  # whose data some recipes name
    done = call(stranger, "-m", "pytest", "-q", cwd=copy, ALIGNKIT_CACHE=str(tmp_path / "cache"))
    assert " passed" in done and "skipped" not in done


def test_a_shipped_recipe_can_name_it(stranger: Path, tmp_path: Path) -> None:
    """What the README says: the stranger's algorithm in the place of PPO, by one override."""
    add(stranger, "reinforce")
    words = ["check", "quickstart", "stages.align.algorithm=reinforce"]
    assert "align" in call(stranger.parent / "alignkit", *words, cwd=tmp_path)
