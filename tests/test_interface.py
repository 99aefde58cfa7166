"""A package for another alignkit is refused on one line that says what has changed, without importing it."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

import alignkit
from alignkit import interface
from alignkit.commands import add_commands
from alignkit.errors import PluginError, RecipeError
from alignkit.plugins import load_plugins
from alignkit_apps.catalog.listing import described
from tests.test_plugins import GOOD, MakeDistribution, distribution, fresh, reason
from tests.test_public_names import MINOR, SNAPSHOT

__all__ = ["distribution", "fresh"]  # fixtures
ROOT = Path(__file__).parent.parent
BEFORE = """# alignkit
Alarm: check(self, groups) raised
Group: pairs prompt
per_kit(values)
per_pair(values, coefficient)

# alignkit.functional
gae(rewards, values)

# hooks
register_alarms(register)

# what recipes can name
format text
reward refusal: scale
"""
AFTER = """# alignkit
Group: best prompt
Monitor: check(self, groups)
per_pair(values, weight)

# alignkit.functional
gae(rewards, values)
whiten(x)

# hooks
register_monitors(register)

# what recipes can name
format text
format notes: user
reward refusal: phrases
"""
LATER = AFTER.replace("\n# what", "run_started(run)\n\n# what").replace("whiten(x)\n", "")


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docs/interface_changes.py` in a repository that has come to 0.3, whose `interface.json` alignkit reads."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    module = importlib.import_module("interface_changes")
    shipped = tmp_path / "interface.json"
    renamed = {"Alarm": "Monitor", "register_alarms": "register_monitors"}
    shipped.write_text(json.dumps({"0.2": {"renamed": renamed}}), encoding="utf-8")
    for version, text in (("0.1", BEFORE), ("0.2", AFTER), ("0.3", LATER)):
        (tmp_path / f"public_names-{version}.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "SNAPSHOTS", tmp_path)
    monkeypatch.setattr(module, "SHIPPED", shipped)
    shipped.write_text(module.shipped_text(), encoding="utf-8")
    monkeypatch.setattr(interface, "CHANGES", shipped)
    monkeypatch.setattr(interface, "__version__", "0.3.1")
    return module


def test_what_a_version_changed(changes: ModuleType) -> None:
    renamed = {"Alarm": "Monitor", "register_alarms": "register_monitors"}
    assert json.loads(changes.SHIPPED.read_text(encoding="utf-8")) == {
        "0.2": {
            "renamed": renamed,
            "removed": ["Group.pairs", "per_kit"],  # and not Alarm.check, which went with its class
            "changed": ["per_pair"],
            "added": ["Group.best", "functional.whiten"],
        },
        "0.3": {"removed": ["functional.whiten"], "added": ["run_started"]},
    }
    page = changes.page()
    assert page.index("## 0.3") < page.index("## 0.2") < page.index("## 0.1")
    assert "| plugins | renamed | `Alarm` to `Monitor`, `register_alarms` to `register_monitors` |" in page
    assert (
        "| recipes | removed | `reward refusal: scale` |\n| recipes | added | `format notes`, `reward refusal: phrases`"
        in page
    )


@pytest.mark.parametrize("renamed", [{"Group.pairs": "Group.better"}, {"Group": "Group.best"}])
def test_only_what_changed_was_renamed(changes: ModuleType, renamed: dict[str, str]) -> None:
    changes.SHIPPED.write_text(json.dumps({"0.2": {"renamed": renamed}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"interface\.json: '.*' was not renamed to '.*'"):
        changes.page()


TWO = (
    "alignkit 0.2 renamed Alarm to Monitor, register_alarms to register_monitors; removed per_kit, Group.pairs; "
    "changed per_pair; added Group.best, functional.whiten; "
)
THREE = "alignkit 0.3 removed functional.whiten; added run_started"


@pytest.mark.parametrize(
    ("requires", "wanted", "changed"),
    [
        ("alignkit>=0.1,<0.2", "alignkit>=0.1,<0.2", f", and {TWO}{THREE}"),
        ("alignkit[serve] ~= 0.1.4", "alignkit~=0.1.4", f", and {TWO}{THREE}"),
        ("alignkit==0.2.*", "alignkit==0.2.*", f", and {THREE}"),
        ("alignkit<=0.2.5", "alignkit<=0.2.5", f", and {THREE}"),
        ("Alignkit>=0.4,<0.5", "alignkit>=0.4,<0.5", ""),  # what a newer one will change, nobody can say
    ],
)
def test_another_range_is_refused_on_one_line(
    changes: ModuleType, distribution: MakeDistribution, requires: str, wanted: str, changed: str
) -> None:
    """Names that the module uses come first."""
    distribution("x-pack", "from alignkit import per_kit, Alarm\nraise SystemExit('imported')\n", requires=requires)
    assert reason(load_plugins(lazy=True), "x-pack") == (
        f"plugin 'x-pack' (x-pack 1.2) failed to load: it was written for {wanted}, but this is alignkit 0.3.1"
        f"{changed}; install {wanted}, or another version of x-pack"
    )
    assert "fake_x_pack" not in sys.modules


@pytest.mark.parametrize(
    "requires", ["alignkit>=0.1", "alignkit", "alignkit-other<0.1", 'alignkit<0.1; extra == "old"', ""]
)
def test_other_ranges_are_loaded(changes: ModuleType, distribution: MakeDistribution, requires: str) -> None:
    distribution("x-fits", GOOD.format(name="fits"), requires=requires)
    assert load_plugins(lazy=True).registry.has("algorithm", "fits")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("from alignkit import Alarm", "alignkit 0.2 renamed Alarm to Monitor"),
        ("import alignkit as ak\nclass Mine(ak.Alarm): ...", "alignkit 0.2 renamed Alarm to Monitor"),
        (
            "from alignkit.functional import whiten_all, whiten",
            "it may have been written for another one",  # Python names the first only, which never was there
        ),
        ("import alignkit.nothing", "it may have been written for another one"),
    ],
)
def test_a_name_that_is_gone_is_explained(
    changes: ModuleType, distribution: MakeDistribution, source: str, why: str
) -> None:
    distribution("x-pack", source, requires="alignkit>=0.1")
    text = reason(load_plugins(lazy=True), "x-pack")
    assert text.endswith(f"; this alignkit is 0.3.1, and its package asks for alignkit>=0.1: {why}")


def test_commands_have_the_same_range(
    changes: ModuleType, distribution: MakeDistribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = distribution("x-pack", "raise SystemExit(7)", requires="alignkit>=0.1,<0.2")
    points = folder / "x_pack-1.2.dist-info" / "entry_points.txt"
    points.write_text("[alignkit.commands]\nmine = fake_x_pack\n", encoding="utf-8")
    said: list[str] = []
    monkeypatch.setattr("alignkit.commands.print", lambda text, file: said.append(text), raising=False)
    add_commands(typer.Typer())
    (line,) = said
    assert (
        "no commands of x-pack" in line
        and f"written for alignkit>=0.1,<0.2, but this is alignkit 0.3.1, and {TWO[:12]}" in line
    )


@pytest.mark.parametrize("name", ["oldie", "alignkit-oldie"])
def test_a_plugin_that_its_range_leaves_out_is_explained(distribution: MakeDistribution, name: str) -> None:
    distribution("alignkit-oldie", GOOD.format(name="oldie"), requires="alignkit<0.0.1")
    with pytest.raises(RecipeError, match=r"'(alignkit-)?oldie' cannot be used: .* written for alignkit<0.0.1"):
        described(name, load_plugins().registry)


def test_the_packages_around_a_module_are_not_imported_either(distribution: MakeDistribution) -> None:
    """`find_spec` imports them, and `sys.exit` in one ended every command."""
    folder = distribution("x-deep", "", requires="alignkit<0.0.1")
    (folder / "fake_deep" / "inner").mkdir(parents=True)
    (folder / "fake_deep" / "__init__.py").write_text("import sys\nsys.exit(7)\n", encoding="utf-8")
    (folder / "fake_deep" / "inner" / "__init__.py").write_text("", encoding="utf-8")
    points = folder / "x_deep-1.2.dist-info" / "entry_points.txt"
    points.write_text("[alignkit]\nx-deep = fake_deep.inner\n", encoding="utf-8")
    loaded = load_plugins(lazy=True)
    assert "written for alignkit<0.0.1" in reason(loaded, "x-deep")
    assert loaded.broken[-1].source_path == folder / "fake_deep" / "inner" / "__init__.py"


def test_each_minor_version_has_its_snapshot() -> None:
    """That of this version is written by `python tests/test_public_names.py`; those before it stay."""
    kept = {path.name for path in SNAPSHOT.parent.glob("public_names*")}
    assert kept == {f"public_names-0.{minor}.txt" for minor in range(1, int(MINOR.partition(".")[2]) + 1)}
    assert alignkit.__version__.startswith("0."), "what this test counts"


@pytest.mark.parametrize("version", ["0.2.0.dev1", "0.2.0rc1"])
def test_a_version_before_a_release_has_its_interface(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "__version__", version)
    interface.check_range(["alignkit>=0.2,<0.3"], "theirs")
    with pytest.raises(PluginError, match=r"written for alignkit>=0\.1,<0\.2"):
        interface.check_range(["alignkit>=0.1,<0.2"], "theirs")
