"""The kit of model sources: `tiny` passes, and each kind of broken source is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_model_source
from alignkit_plugins.models.tiny import source as tiny

EXCEPTIONS = {
    "smollm2-135m-instruct": "downloads 93 MB; tests/models/test_plugin_models.py, marked slow"
}


def test_every_first_party_source_is_checked_or_excepted() -> None:
    found = [one for one in plugins().registrations("model") if one.distribution == "alignkit"]
    assert {one.name for one in found} == {"tiny", *EXCEPTIONS}


def test_first_party_sources_conform(tmp_path: Path) -> None:
    check_model_source(tiny)
    check_model_source(tiny, cache=tmp_path)
    # Besides the file of its lock
    assert [path.name[:5] for path in tmp_path.iterdir() if path.is_dir()] == ["tiny-"]


def number(cache: Path) -> Any:
    return 3


def missing(cache: Path) -> Path:
    return cache / "nothing"


def empty(cache: Path) -> Path:
    (cache / "empty").mkdir(exist_ok=True)
    return cache / "empty"


def cut(cache: Path) -> Path:
    folder = tiny(cache)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def moves(cache: Path) -> Path:
    return tiny(cache / str(len(list(cache.iterdir()))))


def crashes(cache: Path) -> Path:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            number,
            "number: in `number`: return a model's folder, which has a config.json, or a hub id, "
            "not",
        ),
        (missing, "missing: in `missing`: return a model's folder"),
        (empty, "empty: in `empty`: return a model's folder, which has a config.json"),
        (cut, r"cut: .*its weights in safetensors cannot be read"),
        (moves, "moves: a second call returns .* instead of"),
        (crashes, "crashes: in `crashes`: OSError: no network"),
        ("tiny", "'tiny': model .* must be a function, not 'tiny'"),
    ],
)
def test_broken_sources_are_reported(
    source: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    (cache := tmp_path / "cache").mkdir()
    with pytest.raises(ConformanceError, match=message):
        check_model_source(source, cache=cache)
