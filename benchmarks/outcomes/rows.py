"""One row: a method with one seed, run in a process of its own, and what its answers scored."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.data.group import Group, Response, length, read_groups
from alignkit.errors import RunFailed
from alignkit.host.registry import Component
from alignkit.io.atomic import write_json
from alignkit.io.digest import digest, file_digest, folder_digest
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, Stage, specs
from alignkit_plugins.compare.comparison import answers_of

FOLDER = Path(__file__).resolve().parent
RECIPE = FOLDER / "outcomes.yaml"
RECIPES = FOLDER.parents[1] / "recipes"
OWN = "llama2"  # the reward that best of N chooses by
START = "sft"  # the method that only answers: the untouched model and SFT
JUDGES = FOLDER / "judges"  # the gold models, by judges.yaml
STORED = FOLDER / "rows"  # those that come with the project


@dataclass(frozen=True)
class Answer:
    """One answer of a policy. scores: by measure, those of its kind of prompt. length: in
    tokens.
    """

    text: str
    scores: dict[str, float]
    length: int
    truncated: bool


@dataclass(frozen=True)
class Asked:
    """A prompt with the answer of each policy."""

    prompt: str
    kind: str
    answers: dict[str, Answer]


@dataclass(frozen=True)
class Row:
    """A method with one seed.

    key: see `key_of`. seconds: of the stages that were trained, by name, whether they were reused
    or not. gibibytes: the most memory that the process used; stages that were reused are not in it.
    """

    method: str
    seed: int
    key: str
    overrides: list[str]
    seconds: dict[str, float]
    gibibytes: float
    asked: list[Asked]


def methods() -> dict[str, list[str]]:
    """The overrides of outcomes.yaml for each method in methods.yaml."""
    text = (FOLDER / "methods.yaml").read_text(encoding="utf-8")
    named = yaml.safe_load(text.replace("RECIPES", str(RECIPES)))
    learners = {name: _on_pairs(algorithm) for name, algorithm in named["pairs"].items()}
    choosers = {name: _best_of(n) for name, n in named["best_of"].items()}
    return {**named["overrides"], **learners, **choosers}


def _on_pairs(algorithm: Any) -> list[str]:
    """A stage `align` that learns from the pairs of both reward models, which it does not need."""
    pairs = [f"{RECIPES}/data/quickstart/{name}.jsonl" for name in ("helpful", "safety")]
    stage = {
        "algorithm": algorithm,
        "from": "sft",
        "data": pairs,
        "max_length": 80,
        "batch_size": 8,
    }
    return [
        "~stages.helpful",
        "~stages.safety",
        "~stages.align",
        f"stages.align={json.dumps(stage)}",
    ]


def _best_of(n: int) -> list[str]:
    """No stage `align`, and N answers of SFT with their rewards."""
    quickstart = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    own = quickstart["stages"]["align"]["reward"]
    report = {
        "policies": ["sft"],
        "baseline": "sft",
        "samples_per_prompt": n,
        "rewards": [own],
    }
    return [
        "~stages.align",
        *(f"stages.report.{key}={json.dumps(value)}" for key, value in report.items()),
    ]


def recipe_of(
    method: Sequence[str], seed: int, extra: Sequence[str] = ()
) -> tuple[Recipe, list[str]]:
    """The recipe of a method with one seed, and its overrides. Raises RecipeError."""
    overrides = [*method, *extra, f"seed={seed}"]
    return load_recipe(RECIPE, overrides), overrides


def key_of(recipe: Recipe) -> str:
    """A digest of the recipe, of the data that it reads, and of the defaults of its algorithms and
    their rewards.

    Other defaults, code, and versions of packages are not in it, or a row would be lost with every
    commit.
    """
    written = {key: recipe.resolved.get(key) for key in ("model", "engine", "stages", "seed")}
    return digest(
        _contents([written, {name: _in_effect(stage) for name, stage in recipe.stages.items()}])
    )


def _in_effect(stage: Stage) -> dict[str, Any]:
    """What a training stage is set to, by the recipe or by default: its options, how it learns, how
    it samples.
    """
    if stage.settings is None:
        return {}
    algorithm, settings = stage.component, stage.settings
    own = asdict(algorithm.registration.implementation.defaults)
    learning = {name: getattr(settings, name, None) for name in own}
    effective: dict[str, Any] = {}
    for values in (own, dict(algorithm.options), dict(settings.rollout), learning):
        effective |= _plain(values)
    rewards = {reward.name: _plain(dict(reward.options)) for reward in specs(settings, Component)}
    return {**effective, "rewards": rewards}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return (
        all(map(_is_plain, value))
        if isinstance(value, list)
        else isinstance(value, str | int | float)
    )


def _contents(value: Any) -> Any:
    """Plain data with digests in place of the names of files and folders."""
    if isinstance(value, Mapping):
        return {key: _contents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_contents(item) for item in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    path = Path(value)
    return file_digest(path) if path.is_file() else folder_digest(path) if path.is_dir() else value


def stored(method: str, seed: int, key: str, out: Path) -> Row | None:
    """The row that was computed from the same recipe and data, by an earlier command or for the
    project; or None.
    """
    name = _name(method, seed, key)
    files = (out / "rows" / name, STORED / f"{name}.gz")
    return next((_read(file) for file in files if file.is_file()), None)


def shipped() -> list[list[Row]]:
    """The rows that come with the project: a list for each method, in the order of methods.yaml, by
    seed.
    """
    rows = sorted((_read(file) for file in STORED.iterdir()), key=lambda row: row.seed)
    groups = ([row for row in rows if row.method == method] for method in methods())
    return [group for group in groups if group]


def _name(method: str, seed: int, key: str) -> str:
    return f"{method}-{seed}-{key[:12]}.json"


def compute(method: str, seed: int, recipe: Recipe, overrides: Sequence[str], out: Path) -> Row:
    """Run the recipe in a folder of its own, where stages of its neighbors are reused, and store
    the row.

    Raises RunFailed.
    """
    folder = out / f"{method}-{seed}"
    gibibytes = run(overrides, folder, out / f"{method}-{seed}.log")
    row = Row(
        method=method,
        seed=seed,
        key=key_of(recipe),
        # A stored row names no folder
        overrides=[text.replace(f"{RECIPES.parent}/", "") for text in overrides],
        seconds={name: _seconds(folder / name) for name in recipe.stages if name != "report"},
        gibibytes=gibibytes,
        asked=[_asked(group) for group in read_groups(folder / "report" / "samples.jsonl")],
    )
    file = out / "rows" / _name(method, seed, row.key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(row))
    return row


def run(overrides: Sequence[str], folder: Path, log: Path) -> float:
    """Run outcomes.yaml in a process of its own, with one thread, and return its peak memory in GiB.

    Raises RunFailed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "alignkit",
        "run",
        str(RECIPE),
        *overrides,
        "--out",
        str(folder),
    ]
    with log.open("w", encoding="utf-8") as text:
        process = subprocess.Popen(
            command,
            stdout=text,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ALIGNKIT_REUSE": "1", "OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise RunFailed("\n".join([f"the run failed; see {log}", *last]))
    return usage.ru_maxrss / 2**20


def _seconds(stage: Path) -> float:
    record: dict[str, Any] = json.loads((stage / "stage.json").read_text(encoding="utf-8"))
    return float(record["seconds"])


def _asked(group: Group) -> Asked:
    """A prompt and each policy's answer: its only one, or of N the one that the recipe's own reward
    likes best.
    """
    text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in group.prompt)
    sources = dict.fromkeys(response.source for response in group.responses)
    return Asked(
        text, group.meta["kind"], {str(source): _best(group, str(source)) for source in sources}
    )


def _best(group: Group, source: str) -> Answer:
    best = max(answers_of(group, source), key=_own_reward)
    scores = {name: value for name, value in best.scores.items() if value is not None}
    return Answer(best.text, scores, length(best), best.truncated)


def _own_reward(response: Response) -> float:
    """The recipe's own reward; an answer without a score is the last choice."""
    reward = response.scores.get(OWN)
    return -math.inf if reward is None else reward


def _read(file: Path) -> Row:
    data = file.read_bytes()
    raw = json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)
    asked = [
        Asked(**{**item, "answers": _stored_answers(item["answers"])}) for item in raw.pop("asked")
    ]
    return Row(**raw, asked=asked)


def _stored_answers(raw: Mapping[str, Any]) -> dict[str, Answer]:
    return {policy: Answer(**answer) for policy, answer in raw.items()}
