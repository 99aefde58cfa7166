"""Plugins are found, broken ones are isolated with a reason, and a name resolves to one
implementation or an error.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignkit.errors import PluginError, RecipeError
from alignkit.host import plugins as module
from alignkit.host.plugins import Plugins, load_plugins, reader_of
from alignkit.host.registry import Registration, Registry
from alignkit.recipe.sources import content_digest

GOOD = """
from alignkit import Algorithm, hookimpl

class Mine(Algorithm):
    def loss(self, batch, out): ...

@hookimpl
def register(add):
    add("algorithm", "{name}", Mine, "it")
"""

MakeDistribution = Callable[..., Path]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_current", None)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeDistribution:
    """Makes an installed distribution with one plugin module."""

    def make(
        name: str, source: str, point: str = "", version: str = "1.2", requires: str = ""
    ) -> Path:
        folder = tmp_path / name
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        code = f"fake_{name.replace('-', '_')}"
        (folder / f"{code}.py").write_text(textwrap.dedent(source))
        extra = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}"
        )
        (info / "entry_points.txt").write_text(f"[alignkit]\n{point or name} = {code}\n")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return make


def reason(loaded: Plugins, plugin: str) -> str:
    """Why a plugin is broken; exactly one record."""
    (broken,) = [broken for broken in loaded.broken if broken.plugin == plugin]
    return str(broken)


def test_a_good_plugin_is_found(distribution: MakeDistribution) -> None:
    folder = distribution("x-good", GOOD.format(name="mine"))
    registration = load_plugins().get("algorithm", "mine")
    facts = (registration.name, registration.summary, registration.plugin, registration.origin)
    assert facts == ("mine", "it", "x-good", "x-good 1.2")
    assert registration.source_path == folder / "fake_x_good.py"
    assert registration.implementation.__name__ == "Mine"


def adding(words: str, imported: str = "Step") -> str:
    return (
        f"from alignkit import {imported}, hookimpl\n"
        "@hookimpl\n"
        "def register(add):\n"
        f"    add({words})\n"
    )


HOOK = "from alignkit import hookimpl\n@hookimpl\ndef {}: ..."
BROKEN = {
    "import": ("import no_such_module", "No module named 'no_such_module' (fake_x_import.py:1)"),
    "moved": (
        "import alignkit_plugins.environments.turns",
        "(fake_x_moved.py:1); import alignkit.tokens.turns or alignkit_plugins.formats.turns instead",
    ),
    "remote": (
        "from alignkit_plugins.ai_feedback.remote import Remote",
        "; import alignkit_plugins.servers.remote instead",
    ),
    "folder": (
        "from alignkit_plugins.evaluate.select_best import SelectBest",
        "; import alignkit_plugins.evals.select_best instead",
    ),
    "module": (
        "from alignkit_plugins.policies import talk",
        "; import alignkit_plugins.serving.talk instead",
    ),
    "contract": (
        "from alignkit.reward import Reward",
        "(fake_x_contract.py:1); import alignkit.contract.reward instead",
    ),
    "joined": (
        "from alignkit.sampling import SamplingOptions",
        "(fake_x_joined.py:1); import alignkit.contract.settings instead",
    ),
    "left": (
        "from alignkit.contract.commands import refuse",
        "(fake_x_left.py:1); import refuse from alignkit.errors instead",
    ),
    "syntax": ("def (", "SyntaxError"),
    "exit": ("import sys\nsys.exit(3)", "SystemExit: 3 (fake_x_exit.py:2)"),
    "line": ("\n\n1 / 0", "ZeroDivisionError: division by zero (fake_x_line.py:3)"),
    "argument": (HOOK.format("register(add, nope)"), "hook 'register'"),
    "misspelled": (HOOK.format("stage_strated(run)"), "unknown hook 'stage_strated'"),
    "gone": (HOOK.format("results_shown(run)"), "write add('results', ...) instead"),
    "renamed": ("from alignkit import Observation", "write MonitorReport instead"),
    "raises": (
        GOOD.format(name="half") + "    raise RuntimeError('boom')\n",
        "RuntimeError: boom (fake_x_raises.py:10)",
    ),
    "kind": (adding("'rewards', 'a', Step"), "did you mean 'reward'?"),
    "wrong-base": (adding("'reward', 'a', dict"), "must be a subclass of alignkit.Reward"),
    "instance": (adding("'step', 'a', Step(None)"), "must be a subclass of alignkit.Step"),
    "not-callable": (adding("'model', 'a', 3"), "must be a function, not 3"),
    "not-jinja": (adding("'template', 'a', Step"), "must be Jinja code"),
    "options": (
        adding("'step', 'a', type('S', (Step,), {'Options': int})"),
        "a subclass of alignkit.Options",
    ),
    "default": (adding("'step', 'a', Step, default=True"), "launcher, model can be a default"),
    "name": (GOOD.format(name="a:b"), "algorithm 'a:b': a name has letters"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_breaks_only_itself(distribution: MakeDistribution, kind: str) -> None:
    source, message = BROKEN[kind]
    distribution(f"x-{kind}", source)
    distribution("x-good", GOOD.format(name="mine"))
    loaded = load_plugins()
    text = reason(loaded, f"x-{kind}")
    assert text.startswith(f"plugin 'x-{kind}' (x-{kind} 1.2) failed to load: ")
    assert message in text
    assert not loaded.manager.has_plugin(f"plugin 'x-{kind}' (x-{kind} 1.2)")
    assert not loaded.has("algorithm", "half")
    assert loaded.get("algorithm", "mine").distribution == "x-good"
    assert not [broken for broken in loaded.broken if broken.plugin == "x-good"]


def test_an_address_is_imported_when_it_is_asked_for(distribution: MakeDistribution) -> None:
    folder = distribution("x-late", adding("'step', 'late', 'fake_late:Late', 'later'"))
    registry = load_plugins()
    (folder / "fake_late.py").write_text(
        "from alignkit import Step\nclass Late(Step): ...\n", encoding="utf-8"
    )
    assert "fake_late" not in sys.modules
    late = registry.get("step", "late")
    assert late.implementation.__name__ == "Late" and late.source_path == folder / "fake_late.py"
    distribution("x-bad", adding("'step', 'bad', 'fake_x_bad:nothing'"))
    loaded = load_plugins()
    assert [one.name for one in loaded.registrations("step") if one.distribution == "x-bad"] == [
        "bad"
    ]
    with pytest.raises(
        PluginError,
        match=r"^plugin 'x-bad' \(x-bad 1.2\) failed to load: step 'bad' is fake_x_bad:nothing: Attr",
    ):
        loaded.get("step", "bad")
    assert "bad" not in loaded.usable("step")


def test_a_keyboard_interrupt_is_not_swallowed(distribution: MakeDistribution) -> None:
    distribution("x-interrupt", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_a_name_of_two_plugins_names_both_and_how_to_choose(distribution: MakeDistribution) -> None:
    distribution("x-one", GOOD.format(name="same"))
    distribution("x-two", GOOD.format(name="same"))
    registry = load_plugins()
    with pytest.raises(PluginError) as caught:
        registry.get("algorithm", "same")
    assert str(caught.value) == (
        "algorithm 'same' is provided by x-one 1.2 and x-two 1.2\n"
        "  write 'x-one:same' or 'x-two:same', or disable one with --no-plugin"
    )
    assert registry.get("algorithm", "x-two:same").distribution == "x-two"


def test_of_two_launchers_one_must_be_disabled(distribution: MakeDistribution) -> None:
    distribution("x-cluster", adding("'launcher', 'mine', Launcher, default=True", "Launcher"))
    with pytest.raises(
        PluginError, match=r"(?s)2 plugins provide the default launcher.*'mine' \(x-cluster 1"
    ):
        load_plugins().only("launcher")
    loaded = load_plugins(disabled=["alignkit_distributed"])
    assert loaded.only("launcher").distribution == "x-cluster"


def test_disabling(distribution: MakeDistribution) -> None:
    """By the name of the plugin, or of its distribution where two have it."""
    for name, point in (("one", "alignkit_one"), ("two", "same"), ("three", "same")):
        distribution(f"x-{name}", GOOD.format(name=name), point=point)
    assert all(
        load_plugins().has("algorithm", name) for name in ("alignkit_one:one", "two", "three")
    )
    loaded = load_plugins(disabled=["alignkit_one", "x-two:same"])
    assert [loaded.has("algorithm", name) for name in ("one", "two", "three")] == [0, 0, 1]
    with pytest.raises(RecipeError, match="did you mean 'alignkit_one'"):
        load_plugins(disabled=["alignkit_oen"])


def test_files_as_plugins(tmp_path: Path) -> None:
    good, bad = tmp_path / "json.py", tmp_path / "bad.py"
    good.write_text(GOOD.format(name="filed"))
    bad.write_text("import no_such_module_at_all")
    loaded = load_plugins([good, bad, tmp_path / "missing.py"])
    registration = loaded.get("algorithm", "filed")
    assert (registration.distribution, registration.source_path) == ("json.py", good)
    assert "no_such_module_at_all" in reason(loaded, "bad.py")
    assert "No such file" in reason(loaded, "missing.py")
    assert f"{tmp_path} is no .py file" in reason(load_plugins([tmp_path]), tmp_path.name)
    import json

    assert json.dumps(1) == "1"  # not hidden by the plugin file


def test_unknown_names() -> None:
    registry = Registry()
    registry.add(Registration("dpo", object, kind="algorithm"))
    registry.add(Registration("ppo", object, kind="algorithm"))
    with pytest.raises(PluginError, match=r"no algorithm 'pppo'\n  did you mean 'ppo'\?$"):
        registry.get("algorithm", "pppo")
    assert PluginError.exit_code == 3


def test_plugins_are_loaded_once(distribution: MakeDistribution) -> None:
    distribution("x-good", GOOD.format(name="mine"))
    assert module.plugins() is module.plugins()
    replaced = load_plugins(disabled=["x-good"])
    assert module.plugins() is replaced


OBSERVER = """
from alignkit import hookimpl
seen = []
@hookimpl(wrapper=True)
def stage_started(stage):
    yield seen.append(stage)
@hookimpl
def stage_finished(stage):
    raise ValueError("disk on fire")
@hookimpl
def run_finished(error):
    raise ValueError("too late")
def lines(folder, records, width):
    return records or 1 / 0
@hookimpl
def register(add):
    add("results", "lines", lines)
    add("results", "mute", lambda folder, records, width: None)
"""


class Ended(SimpleNamespace):
    """What events take for a run, which their plugins may refer to weakly."""

    __hash__ = object.__hash__


def test_observers(distribution: MakeDistribution, tmp_path: Path) -> None:
    distribution("x-watch", OBSERVER)
    loaded = load_plugins()
    loaded.notify("stage_started", run=None, stage="sft")
    assert sys.modules["fake_x_watch"].seen == ["sft"]
    with pytest.raises(
        PluginError, match=r"plugin 'x-watch' .*, in `stage_finished`: ValueError: disk on fire"
    ):
        loaded.notify("stage_finished", run=None, stage="sft", reused=False)
    ended = Ended(folder=tmp_path, say=print, reused=[], peak_memory="1 GiB")
    with pytest.raises(
        PluginError, match=r"plugin 'x-watch' .*, in `run_finished`: ValueError: too late"
    ):
        loaded.notify("run_finished", run=ended, error=None)
    loaded = load_plugins(disabled=["alignkit_plugins"])
    assert [*loaded.ask("results", tmp_path, ["done"], 80)] == [["done"]]
    with pytest.raises(
        PluginError, match=r"plugin 'x-watch' .*, in `lines`: ZeroDivisionError.*py:14"
    ):
        next(loaded.ask("results", tmp_path, [], 80))


@pytest.mark.parametrize("text", ["", "def register(add):\n    add('reward', 'r', int)\n"])
def test_a_file_that_registers_nothing_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "quiet.py").write_text(text, encoding="utf-8")
    (broken,) = load_plugins([tmp_path / "quiet.py"]).broken
    assert "it registers nothing: no function is marked with @hookimpl" in str(broken)


def test_a_file_that_is_named_twice_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from alignkit import hookimpl\n@hookimpl\ndef stage_started(run): ...\n", encoding="utf-8"
    )
    assert load_plugins([file, file]).broken == []


READER = """
from alignkit import Reader, hookimpl

class Notes(Reader):
    def rows(self, path):
        yield 1, {"prompt": "a"}

    def digest(self, path):
        return "what it says"

@hookimpl
def register(add):
    add("reader", ".notes", Notes)
"""


def test_two_readers_of_a_suffix_matter_only_where_it_is_read(
    distribution: MakeDistribution, tmp_path: Path
) -> None:
    distribution("x-one", READER)
    load_plugins()
    found = reader_of(tmp_path / "a.notes")
    assert found is not None and list(found.rows(tmp_path)) == [(1, {"prompt": "a"})]
    assert content_digest(tmp_path / "a.notes") == "what it says"
    distribution("x-two", READER)
    load_plugins()
    assert reader_of(tmp_path / "a.feedback") is not None
    with pytest.raises(
        PluginError, match=r"reader '\.notes' is provided by x-one 1\.2 and x-two 1\.2"
    ):
        reader_of(tmp_path / "a.notes")


@pytest.mark.parametrize("suffix", ["notes", ".", ".a b"])
def test_a_reader_needs_a_suffix_of_its_own(distribution: MakeDistribution, suffix: str) -> None:
    distribution("x-one", READER.replace(".notes", suffix))
    assert "only a reader's begins with '.'" in reason(load_plugins(), "x-one")
