"""What is installed is what is in the repository: entry points, plugins, recipes, types."""

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    entry_points,
    packages_distributions,
    version,
)
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import alignkit
from alignkit_plugins import table

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED: dict[str, str] = PROJECT["project"]["entry-points"]["alignkit"]
OWN = ("algorithms", "rewards", "formats")  # folders with a module or a package for each plugin
HELPERS = {
    *("columns", "fields", "layouts", "readings", "rows", "shown", "spoken", "text_metrics"),
}
RECIPES = sorted(
    path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*") if path.is_file()
)


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    # Not in the checkout, whose folders would otherwise be importable.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_plugin_file_is_in_the_table_and_back() -> None:
    named: set[str] = set()
    table.register(lambda kind, name, address, summary="": named.add(address.partition(":")[0]))
    named |= set(DECLARED.values())  # what others may disable has an entry point of its own
    assert [name for name in named if find_spec(name) is None] == []
    held = {tuple(name.split(".")[1:3]) for name in named if name.count(".") > 1}
    folders = [ROOT / "plugins" / "alignkit_plugins" / need for need in OWN]
    files = {(folder.name, path.stem) for folder in folders for path in folder.glob("[a-z]*")}
    assert {file for file in files if file[1] not in HELPERS} == {
        name for name in held if name[0] in OWN
    }


def test_entry_points_are_installed() -> None:
    """Fails after a line was added to pyproject.toml until the package is installed again."""
    installed = {
        point.name
        for point in entry_points(group="alignkit")
        if point.dist and point.dist.name == "alignkit"
    }
    assert installed == DECLARED.keys()


def test_plugins_import_without_torch() -> None:
    code = (
        "import json, sys, importlib.metadata as m; [p.load() for p in "
        "m.entry_points(group='alignkit') if p.dist.name == 'alignkit']; print(json.dumps([n for "
        "n in ('torch', 'transformers', 'peft', 'trl', 'datasets') if n in sys.modules]))"
    )
    assert json.loads(run(code)) == []


def pins() -> dict[str, str]:
    """Versions by name, of constraints.txt."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert all(
        line.count("==") == 1 and "@" not in line and "/" not in line and "+" not in line
        for line in lines
    )
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def wanted() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [
        Requirement(text)
        for texts in (PROJECT["project"]["dependencies"], *extras)
        for text in texts
    ]


def installed_version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name).split("+")[0]
    return None


def test_constraints_are_pins_of_all_dependencies() -> None:
    names = {canonicalize_name(item.name) for item in wanted()}
    assert names - pins().keys() == set()
    if other := [
        name for name in sorted(names) if installed_version(name) not in (None, pins()[name])
    ]:
        pytest.skip(f"other versions need other packages: not the pinned {', '.join(other)}")
    # And back: a pin of what nobody needs is never noticed to be wrong.
    needed, waiting = set(), {"alignkit", *names, "pip", "setuptools", "wheel"}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        with suppress(PackageNotFoundError):
            found = [Requirement(text) for text in distribution(name).requires or []]
            waiting |= {
                canonicalize_name(item.name)
                for item in found
                if item.marker is None
                or any(item.marker.evaluate({"extra": extra}) for extra in ("", "test", "http2"))
            } - needed
    assert pins().keys() - needed == set()


IMPORTS_BY_NAME = ("import_module", "__import__")


def imported() -> dict[str, str]:
    """The modules outside the standard library that the package and its plugins import, with a file
    that does.
    """
    found: dict[str, str] = {}
    for file in [*(ROOT / "alignkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func).split(".")[-1] in IMPORTS_BY_NAME
            ):
                names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            found |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    packages = {path.name for path in (ROOT / "plugins").iterdir()}
    own = {"alignkit", *packages, *sys.stdlib_module_names}
    return {name: file for name, file in found.items() if name not in own}


def test_everything_imported_is_declared() -> None:
    """Not only required by a package that alignkit requires: its next version may do without."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [
        *PROJECT["project"]["dependencies"],
        *(text for name in extras if name != "test" for text in extras[name]),
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    packages = packages_distributions() | {"pydantic_core": ["pydantic"]}  # which pins its version
    undeclared = {
        name: file
        for name, file in imported().items()
        if not declared & {canonicalize_name(package) for package in packages.get(name, [name])}
    }
    assert undeclared == {}
    assert {"matplotlib", "pyarrow"} <= imported().keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_carries_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.name == f"alignkit-{alignkit.__version__}-py3-none-any.whl"
    files = [
        path for path in (ROOT / "plugins").rglob("*.*") if path.is_file() and path.suffix != ".pyc"
    ]
    plugins = {path.relative_to(ROOT / "plugins").as_posix() for path in files}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "alignkit").rglob("*.py")}
    data = {"alignkit/py.typed"}
    assert plugins | modules | data <= names
    assert {f"alignkit_recipes/{path.as_posix()}" for path in RECIPES} <= names
    info = f"alignkit-{alignkit.__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    tops = {name.split("/")[0] for name in names}
    packages = {path.name for path in (ROOT / "plugins").iterdir()}
    assert tops == {"alignkit", "alignkit_recipes", *packages, info}
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.slow
def test_wheel_works_where_the_checkout_is_not(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    code = (
        "import json, alignkit, importlib.metadata as m; (d,) = m.distributions(name='alignkit', "
        "path=[__import__('os').environ['PYTHONPATH']]); print(json.dumps([alignkit.__file__] + "
        "[p.load().__file__ for p in d.entry_points if p.group == 'alignkit']))"
    )
    files = json.loads(run(code, PYTHONPATH=str(target)))
    assert len(files) == 1 + len(DECLARED)
    assert all(Path(file).is_relative_to(target) for file in files)
