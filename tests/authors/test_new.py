"""What `alignkit plugins new` writes works as written: the rules of its kind, its recipe, its types
and its style.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit import __version__, testing
from alignkit.cli import main
from alignkit.host import plugins as plugins_module
from alignkit.host.plugins import load_plugins
from alignkit.host.registry import KINDS
from alignkit_plugins.authors import new
from alignkit_plugins.authors.new import write_package

ROOT = Path(__file__).parents[2]


def package(name: str, kind: str = "reward") -> Path:
    """The folder of a new package in the current folder, which is installed there."""
    folder = write_package(name, load_plugins(), kind)[0].parent
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(
        metadata + f"Requires-Dist: {project['dependencies'][0]}\n", encoding="utf-8"
    )
    ((group, points),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.resolve()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if re.match(r"(alignkit|test)_my_", name)]:
        del sys.modules[name]
    monkeypatch.setattr(plugins_module, "_current", None)


@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_the_rules_and_its_recipe_runs(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package("my_own", kind)
    monkeypatch.syspath_prepend(str(folder))
    loaded = load_plugins()
    assert not loaded.broken and loaded.has(kind, ".my_own" if kind == "reader" else "my_own")
    test = importlib.import_module("test_my_own")
    if hasattr(testing, f"check_{'model_source' if kind == 'model' else kind}"):
        monkeypatch.chdir(folder)
        test.test_it_follows_the_rules()
    test.test_the_recipe_runs(here / "run")
    used = (here / "run" / "recipe.resolved.yaml").read_text(encoding="utf-8")
    assert used.count("my_own") > 1 or kind == "launcher"


def called(*words: str) -> None:
    """Run a module of Python's."""
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_style_does_not_depend_on_the_name() -> None:
    folders = []
    for number, kind in enumerate(KINDS, 10):
        folders += [str(package(f"{name}{number}", kind)) for name in ("my", "my_long_long_name")]
    called("ruff", "check", "--no-cache", *folders)
    called("ruff", "format", "--check", "--no-cache", *folders)


@pytest.mark.slow
def test_the_types_are_right(here: Path) -> None:
    files = [next(package(f"mine_{kind}", kind).glob("alignkit_*.py")) for kind in KINDS]
    words = ["--disallow-untyped-defs", "--cache-dir", str(here / "cache")]
    called("mypy", *words, *map(str, files))


@pytest.mark.parametrize("version", [__version__, "0.2rc1", "0.2.0.dev1"])
def test_it_asks_for_this_minor_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "__version__", version)
    project = tomllib.loads(new._files("calm", "reward")["pyproject.toml"])["project"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    major, minor = re.findall(r"\d+", version)[:2]
    assert project["dependencies"] == [f"alignkit>={major}.{minor},<{major}.{int(minor) + 1}"]
    assert project["requires-python"] == ours["requires-python"]


def test_the_page_and_the_recipe_name_the_plugin() -> None:
    folder = package("my_reward")
    texts = {file.name: file.read_text() for file in folder.rglob("*") if file.is_file()}
    title = "# alignkit-my-reward\n\nA reward for responses that do not shout. A plugin of alignkit"
    assert texts["README.md"].startswith(title)
    assert "    reward:\n      my_reward: {marks: '!?'}\n" in texts["recipe.yaml"]
    assert not re.search(r"\bCalm\b|\bcalm\b|NAME|CLASS|\$\w", "".join(texts.values()))


@pytest.mark.parametrize(
    ("name", "said", "help"),
    [
        ("Loud Reward", "cannot be called 'Loud Reward'", "such as my_reward"),
        ("a" * 21, "cannot be called 'aaa", "such as my_reward"),
        ("class", "cannot be called 'class'", "such as my_reward"),
        ("group", "cannot be called 'group'", "such as my_reward"),  # which is imported there
        ("length", "there is a reward 'length'", "such as my_length"),
    ],
)
def test_names_that_cannot_be(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, said: str, help: str
) -> None:
    assert main(["plugins", "new", name]) == 2
    err = capsys.readouterr().err
    assert said in err and help in err and not list(here.iterdir())


def test_nothing_is_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "calm"]) == 0
    assert "alignkit-calm/alignkit_calm.py\n" in capsys.readouterr().out
    (here / "alignkit-calm" / "alignkit_calm.py").write_text("# mine\n", encoding="utf-8")
    assert main(["plugins", "new", "calm"]) == 2
    assert "alignkit-calm exists already" in capsys.readouterr().err
    assert (here / "alignkit-calm" / "alignkit_calm.py").read_text(encoding="utf-8") == "# mine\n"
    assert main(["plugins", "new", "other", "--kind", "rewards"]) == 2
    assert "no kind 'rewards'\n  help: did you mean 'reward'?" in capsys.readouterr().err
