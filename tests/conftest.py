"""Options of the test run, and what it must not hide."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import gpu
from tests.house_run import house_copy, house_run, whole_run
from tests.pages import Reader
from tests.patience import PATIENCE
from tests.rows import Said

__all__ = ["house_copy", "house_run", "whole_run"]

# How fast examples are made says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile(
    "project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("project")

# Stages look for garbage when they end. Among the million objects of all test modules that takes
# longer than a stage.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_stays() -> Iterator[None]:
    """Also what a module has imported late is no garbage for the next one."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs keep for later ones ends with the tests; a real model that was fetched before is
    taken.
    """
    from alignkit.io.text import cache_folder

    own = tmp_path_factory.mktemp("cache")
    for model in cache_folder().glob("smollm2-*"):
        (own / model.name).symlink_to(model.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_CACHE", str(own))
        yield


@pytest.fixture(scope="session", autouse=True)
def _reports() -> Iterator[None]:
    """Runs of tests write no report, because drawing takes longer than most of them; those of
    reports ask for it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_REPORT", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def _valid_pages() -> Iterator[None]:
    """Every page that a template writes in a test is read as HTML: reports, and those of
    servers.
    """
    import jinja2

    render = jinja2.Template.render

    def checked(template: jinja2.Template, *args: Any, **kwargs: Any) -> str:
        text = render(template, *args, **kwargs)
        if text.lstrip()[:15].lower() == "<!doctype html>":
            Reader(text)
        return text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Template, "render", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_stages() -> Iterator[None]:
    """Runs of tests reuse no stages of others, which they are compared with; tests of that ask for
    it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_REUSE", "0")
        yield


@pytest.fixture(autouse=True)
def _no_plugin_stays_disabled() -> Iterator[None]:
    """What a test disables on a command line is there for the next one."""
    yield
    from alignkit.host import plugin_options, plugins

    plugin_options["--no-plugin"] = []
    if plugins._current is not None and plugins._current.without:
        plugins.load_plugins([], [])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was written to stderr since the last call."""
    return lambda: capsys.readouterr().err


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was written to stdout since the last call."""
    return lambda: capsys.readouterr().out


@pytest.fixture
def combinations() -> Iterator[None]:
    """The package of rare combinations of rewards is loaded."""
    from alignkit.host.plugins import load_plugins

    examples = Path(__file__).parents[1] / "docs" / "examples"
    load_plugins([examples / "alignkit-combinations" / "alignkit_combinations.py"])
    yield
    load_plugins()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A second thread makes tiny models slower, much slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DEVICE = gpu.wanted()


@pytest.fixture(autouse=DEVICE is not None)
def _on_the_gpu() -> Iterator[None]:
    with gpu.everything_on_it():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of what only a CPU does where the suite runs on a GPU."""
    for item in items if DEVICE else ():
        if mark := item.get_closest_marker("cpu_only"):
            item.add_marker(pytest.mark.skip(reason=f"only on a CPU: {mark.args[0]}"))


def pytest_addoption(parser: pytest.Parser) -> None:
    default = Path(__file__).parent / "golden"
    parser.addoption(
        "--golden", type=Path, default=default, metavar="DIR", help="known answers to test against"
    )


@pytest.fixture(scope="module")  # a browser that stays open stops other modules from starting one
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    from tests.chromium import CHROMIUM

    with playwright.sync_playwright() as started:
        playwright.expect.set_options(timeout=PATIENCE * 1000)
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
