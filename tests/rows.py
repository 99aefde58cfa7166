"""Rows, files, recipes and runs for tests: small, deterministic, of words that the tiny model
knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit.data.group import group_to_json, read_groups

Said = Callable[[], str]  # the fixtures `said` and `printed`: what was written since the last call
WORDS = ("bread is good", "my old friend", "the people in this house")
TINY = {"base": "tiny", "dtype": "float32"}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def prompts(texts: Sequence[str] = WORDS, **more: Any) -> list[Group]:
    """Prompts without responses. more: further fields of each."""
    return [Group((user(text),), **more) for text in texts]


def demos(texts: Sequence[str] = WORDS, **more: Any) -> list[Group]:
    """Prompts with one response each: their text, backward."""
    return [Group((user(text),), (Response(text=text[::-1]),), **more) for text in texts]


def pairs(
    texts: Sequence[str] = WORDS, chosen: str = "good bread", rejected: str = "no", **more: Any
) -> list[Group]:
    """Prompts with a better and a worse response."""
    both = (Response(text=chosen, rank=0), Response(text=rejected, rank=1))
    return [Group((user(text),), both, **more) for text in texts]


def write_rows(path: Path, rows: Iterable[Group | Mapping[str, Any]]) -> Path:
    """Write groups, or rows of any columns, as JSON lines."""
    lines = [group_to_json(row) if isinstance(row, Group) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Any]:
    """The rows of a file of JSON lines."""
    return json_rows(path.read_text(encoding="utf-8"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def json_rows(text: str) -> list[Any]:
    """The rows of JSON lines."""
    return [json.loads(line) for line in filter(str.strip, text.splitlines())]


def untimed(metrics: Path) -> list[dict[str, Any]]:
    """The rows of a file of metrics, without what depends on the clock."""
    clock = ("seconds", "time", "tokens_per")
    return [
        {name: value for name, value in row.items() if not name.startswith(clock)}
        for row in read_rows(metrics)
    ]


def write_recipe(
    folder: Path,
    stages: Mapping[str, Any] | str,
    model: Mapping[str, Any] | None = None,
    **top: Any,
) -> Path:
    """Write `folder`/recipe.yaml, by default on the tiny model with a LoRA of rank 4, next to
    demos.jsonl, pairs.jsonl and prompts.jsonl where these are not there yet.

    stages: also as text of YAML.
    """
    stages = yaml.safe_load(stages) if isinstance(stages, str) else stages
    for name, rows in {"demos": demos(), "pairs": pairs(), "prompts": prompts()}.items():
        if not (folder / f"{name}.jsonl").exists():
            write_rows(folder / f"{name}.jsonl", rows)
    model = {**TINY, "lora": {"r": 4, "lora_alpha": 8}} if model is None else model
    recipe = {"model": dict(model), "stages": dict(stages), **top}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def run(recipe: Path, *words: str, out: Path | None = None, code: int = 0) -> Path:
    """`alignkit run` in this process, which must exit with `code`; returns the run's folder."""
    out = recipe.parent / "run" if out is None else out
    assert main(["run", str(recipe), "--out", str(out), *words]) == code
    return out


def with_plugin(file: Path, text: str) -> tuple[str, str]:
    """Write a plugin; returns the words that load it."""
    file.write_text(text, encoding="utf-8")
    return "--plugin", str(file)


def rollouts_of(stage: Path) -> list[list[Group]]:
    """The groups of each iteration."""
    return [read_groups(file) for file in sorted((stage / "rollouts").glob("*.jsonl"))]


def cells(text: str) -> list[tuple[str, ...]]:
    """The rows of a table whose cells stand between `|`, one row a line."""
    lines = filter(str.strip, text.splitlines())
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines]
