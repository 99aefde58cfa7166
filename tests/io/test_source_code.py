"""Which files count as a plugin's source: its package, and the user's own modules that it imports,
at any depth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alignkit.io.digest import digest, model_digest, source_digests, versions


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(file: Path) -> set[str]:
    return set(source_digests(file) or ())


def changes(file: Path, other: Path) -> bool:
    """Whether a change of the other file changes the digests."""
    before = source_digests(file)
    other.write_text(other.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    return source_digests(file) != before


def test_every_file_of_a_package_counts_even_data(tmp_path: Path) -> None:
    folder = tmp_path / ".plugins" / "two"
    init = write(folder / "__init__.py", "from two import rest\n")
    inner = write(folder / "inner" / "__init__.py", "")
    for other in ("rest.py", "unused.py", "prompts/judge.txt"):
        assert changes(init, write(folder / other, "x = 1\n"))
        assert changes(inner, folder / other)
    for cache in (".cache/x.json", "inner/__pycache__/rest.pyc"):
        write(folder / cache, "")
    files = "__init__.py inner/__init__.py rest.py unused.py prompts/judge.txt"
    assert names(init) == {f"two/{name}" for name in files.split()}


def test_the_files_of_a_model_count(tmp_path: Path) -> None:
    kinds = """additional_chat_templates/tool_use.jinja chat_template.jinja config.json model.safetensors
    modeling.py pytorch_model.bin qwen.tiktoken tokenizer.model vocab.txt"""
    counted = kinds.split()
    for name in [*counted, "README.md", "onnx/model.bin"]:
        write(tmp_path / name, "")
    assert [*model_digest(str(tmp_path))] == counted
    assert {*versions(["trl"])} == {
        "alignkit",
        "torch",
        "transformers",
        "tokenizers",
        "peft",
        "trl",
    }


def test_neighbors_count_if_they_are_imported(tmp_path: Path) -> None:
    file = write(
        tmp_path / "reward.py", "import words\n\ndef late():\n    from deep.er import thing\n"
    )
    used = [
        write(tmp_path / "words.py", "import named\n"),
        write(tmp_path / "named.py", ""),
        write(tmp_path / "deep" / "__init__.py", "from . import beside\n"),
        write(tmp_path / "deep" / "beside.py", "from .er.other import x\n"),
        write(tmp_path / "deep" / "er" / "__init__.py", ""),
        write(tmp_path / "deep" / "er" / "other.py", "from ..above import y\n"),
        write(tmp_path / "deep" / "above.py", "import reward\n"),
    ]
    unused = write(tmp_path / "unused.py", "")
    assert all(changes(file, other) for other in used)
    assert not changes(file, unused)


def test_installed_modules_do_not_count_but_editable_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path / "mine" / "reward.py",
        "import json, alignkit, torch, elsewhere, packaged_one, of_debian\n",
    )
    elsewhere = write(tmp_path / "checkout" / "elsewhere" / "__init__.py", "")
    installed = write(tmp_path / "site-packages" / "packaged_one.py", "")
    write(tmp_path / "dist-packages" / "of_debian.py", "")
    folders = [str(tmp_path / name) for name in ("checkout", "site-packages", "dist-packages")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    assert names(file) == {"reward.py", "elsewhere/__init__.py"}
    assert changes(file, elsewhere) and not changes(file, installed)


def test_a_first_party_plugin_counts_without_the_others() -> None:
    import alignkit_plugins.algorithms.ppo
    import alignkit_plugins.evals.step

    assert names(Path(alignkit_plugins.algorithms.ppo.__file__)) == {"ppo.py"}
    parts = {"evals/__init__.py", "evals/measures.py"}
    found = names(Path(alignkit_plugins.evals.step.__file__))
    assert parts <= found and all(name.startswith("evals/") for name in found)


def test_the_folder_and_the_order_do_not_matter_and_faults_are_left_to_the_import(
    tmp_path: Path,
) -> None:
    for folder in ("a", "b"):
        write(
            tmp_path / folder / "reward.py",
            "import words\nimport missing_module\nimport this is no python\n",
        )
        write(tmp_path / folder / "words.py", "x = 1\n")
    assert source_digests(tmp_path / "a" / "reward.py") == source_digests(
        tmp_path / "b" / "reward.py"
    )
    assert names(tmp_path / "a" / "reward.py") == {"reward.py", "words.py"}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert source_digests(None) is None and source_digests(tmp_path / "no.py") is None
