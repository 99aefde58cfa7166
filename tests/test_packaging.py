"""What is installed is what is in the repository: entry points, plugins, recipes, types."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
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
HELPERS = {"columns", "fields", "layouts", "phrases", "turns"}
RECIPES = "alignkit_recipes/"


def test_every_plugin_file_is_in_the_table_and_back() -> None:
    named: set[str] = set()

    def add(kind: str, name: str, address: str, summary: str = "", default: bool = False) -> None:
        named.add(address.partition(":")[0])

    table.register(add)
    named |= set(DECLARED.values())  # what others may disable has an entry point of its own
    assert [name for name in named if find_spec(name) is None] == []
    held = {tuple(name.split(".")[1:3]) for name in named if name.count(".") > 1}
    folders = [ROOT / "plugins" / "alignkit_plugins" / need for need in OWN]
    files = {(folder.name, path.stem) for folder in folders for path in folder.glob("[a-z]*")}
    files.remove(("rewards", "text"))  # what several rewards share
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
    """Of what is installed, and not of the checkout, whose folders would otherwise be importable."""
    code = (
        "import sys, importlib.metadata as m; [p.load() for p in m.entry_points(group='alignkit') "
        "if p.dist.name == 'alignkit']; print({'torch', 'transformers', 'peft', 'trl', "
        "'datasets'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True, cwd="/").stdout == b"set()\n"


def names_of(texts: Iterable[str]) -> set[str]:
    """The packages of requirements."""
    return {canonicalize_name(Requirement(text).name) for text in texts}


def declared(*without: str) -> set[str]:
    """The packages that alignkit depends on, with those of its extras."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [text for name in extras if name not in without for text in extras[name]]
    return names_of([*PROJECT["project"]["dependencies"], *texts])


def test_constraints_are_pins_of_all_dependencies() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and line[0] != "#")
    assert not [version for version in pins.values() if {*"@/+ "} & {*version}]
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert declared() <= pinned.keys()
    # And back: a pin of what nobody needs is never noticed to be wrong.
    needed, waiting = set(), {"alignkit", *declared(), "pip", "setuptools", "wheel"}
    while waiting:
        needed.add(name := waiting.pop())
        with suppress(PackageNotFoundError):
            if name in declared() and version(name).split("+")[0] != pinned[name]:
                pytest.skip(f"other versions need other packages: not the pinned {name}")
            for item in map(Requirement, distribution(name).requires or []):
                extras = ({"extra": extra} for extra in ("", "test", "http2"))
                if item.marker is None or any(map(item.marker.evaluate, extras)):
                    waiting |= {canonicalize_name(item.name)} - needed
    assert pinned.keys() <= needed


def imported() -> Iterator[tuple[str, Path]]:
    """The modules outside the standard library that the package and its plugins import, with a file
    that does.
    """
    own = {"alignkit", *(path.name for path in (ROOT / "plugins").iterdir())}
    for file in [*(ROOT / "alignkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            for name in names:
                if (top := name.split(".")[0]) not in own | sys.stdlib_module_names:
                    yield top, file


def test_everything_imported_is_declared() -> None:
    """Not only required by a package that alignkit requires: its next version may do without."""
    found = dict(imported())
    assert {"scipy", "pyarrow"} <= found.keys()
    # pydantic pins the version of its core
    packages = {**packages_distributions(), "pydantic_core": ["pydantic"]}
    for name, file in found.items():
        assert declared("test") & {*map(canonicalize_name, packages.get(name, [name]))}, file


@pytest.mark.slow
def test_wheel_carries_everything_and_nothing_else(tmp_path: Path) -> None:
    """That it works where the checkout is not is a test of strangers' plugins."""
    words = ["--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", "build", *words], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"alignkit-{alignkit.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"alignkit-{alignkit.__version__}.dist-info"
    expected = {f"{info}/licenses/LICENSE", "alignkit/py.typed"}
    for folder, start in (("plugins", ""), ("alignkit", "alignkit/"), ("recipes", RECIPES)):
        for path in (ROOT / folder).rglob("*.*"):
            if path.is_file() and path.suffix != ".pyc":
                expected.add(f"{start}{path.relative_to(ROOT / folder).as_posix()}")
    assert expected <= names
    packages = {path.name for path in (ROOT / "plugins").iterdir()}
    assert {name.split("/")[0] for name in names} == {
        "alignkit",
        "alignkit_recipes",
        *packages,
        info,
    }
    assert not [name for name in names if "__pycache__" in name]
