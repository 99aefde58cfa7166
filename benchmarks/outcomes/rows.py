"""One row: a method with one seed, run in a process of its own, and what its answers scored."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.comparison import answers_of, length
from alignkit.data.group import Group, Response, read_groups
from alignkit.errors import RunFailed
from alignkit.functional.best_of_n import best_of_n_kl
from alignkit.io.atomic import write_json
from alignkit.io.digest import digest, file_digest, folder_digest
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, Stage, fields_of, specs
from alignkit.registry import Component
from alignkit.runs.data import RunData
from alignkit_plugins.refusal import refuses

FOLDER = Path(__file__).resolve().parent
RECIPE = FOLDER / "outcomes.yaml"
RECIPES = FOLDER.parents[1] / "recipes"
# A gold model judges the prompts of its kind; the recipe's own reward model for them has the kind's name.
JUDGED = {"gold_helpful": "helpful", "gold_safety": "safety"}
GOLD = tuple(JUDGED)
OWN = "llama2"  # the recipe's combined reward
SAFE = "xstest"  # prompts that only sound unsafe
KINDS = (*JUDGED.values(), SAFE)  # of prompts
BEFORE = {kind: f"before_{kind}" for kind in KINDS}  # stages with the SFT policy's answers
AFTER = {kind: f"after_{kind}" for kind in KINDS}  # and with the aligned policy's
REPORTS = (*BEFORE.values(), *AFTER.values())
JUDGES = FOLDER / "judges"  # the gold models, by judges.yaml
STORED = FOLDER / "rows"  # those that come with the project


@dataclass(frozen=True)
class Answer:
    """One answer of a policy. scores: by reward; only of those that judge prompts of its kind. length: in tokens."""

    text: str
    scores: dict[str, float]
    length: int
    truncated: bool

    @property
    def refused(self) -> bool:
        return refuses(self.text)


@dataclass(frozen=True)
class Asked:
    """A prompt with the answers of both policies, in the order of the samples.

    best_of: how many answers of SFT each of the aligned policy's was chosen from; 1 if it was trained.
    """

    prompt: str
    kind: str
    answers: dict[str, list[Answer]]
    best_of: int = 1


@dataclass(frozen=True)
class Row:
    """A method with one seed.

    key: see `key_of`. seconds: of the stages that the method needs, by name. gibibytes: the most
    memory that the process used; stages that were reused are not in it. kl: to SFT, nats per response, on helpful and
    safety prompts. accuracy: share of validation pairs that each reward model orders as people did. pairs: number of
    these pairs.
    """

    method: str
    seed: int
    key: str
    overrides: list[str]
    seconds: dict[str, float]
    gibibytes: float
    kl: float | None
    accuracy: dict[str, float]
    pairs: dict[str, int]
    asked: list[Asked]


def methods() -> dict[str, list[str]]:
    """The overrides of outcomes.yaml for each method in methods.yaml."""
    text = (FOLDER / "methods.yaml").read_text(encoding="utf-8")
    named = yaml.safe_load(text.replace("RECIPES", str(RECIPES)))
    learners = {name: _on_pairs(algorithm) for name, algorithm in named["pairs"].items()}
    choosers = {name: _best_of(n) for name, n in named["best_of"].items()}
    return {**named["overrides"], **learners, **choosers}


def _on_pairs(algorithm: Any) -> list[str]:
    """A stage `align` that learns from the pairs of both reward models."""
    pairs = [{"path": f"{RECIPES}/data/{name}.jsonl.gz", "limit": 480} for name in ("helpful", "safety")]
    stage = {"algorithm": algorithm, "from": "sft", "data": pairs, "max_length": 384, "batch_size": 8}
    return ["~stages.align", f"stages.align={json.dumps(stage)}"]


def _best_of(n: int) -> list[str]:
    """No stage `align`, and enough answers of SFT to choose two of N each."""
    removed = [f"~stages.{name}" for name in ("align", *AFTER.values())]
    own = f"stages.{BEFORE[SAFE]}.rewards=[{{{OWN}: {{helpful: helpful, safety: safety}}}}]"
    return [*removed, own, *(f"stages.{name}.samples_per_prompt={2 * n}" for name in BEFORE.values())]


def recipe_of(method: Sequence[str], seed: int, tuning: bool, extra: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe of a method with one seed, and its overrides. Raises RecipeError."""
    overrides = [*method, *(_tuning_prompts(method) if tuning else ()), *extra, f"seed={seed}"]
    return load_recipe(RECIPE, overrides), overrides


def _tuning_prompts(method: Sequence[str]) -> list[str]:
    """Overrides that ask the prompts that settings may be chosen on."""
    asked = [(name, kind) for stages in (BEFORE, AFTER) for kind, name in stages.items()]
    return [
        f"stages.{name}.prompts={FOLDER}/data/tuning/{kind}.jsonl"
        for name, kind in asked
        if f"~stages.{name}" not in method
    ]


def key_of(recipe: Recipe) -> str:
    """A digest of the recipe, of the data that it reads, and of the defaults of its algorithms and their rewards.

    Other defaults, code, and versions of packages are not in it, or a row would be lost with every commit.
    """
    written = {key: recipe.resolved.get(key) for key in ("model", "bases", "engine", "stages", "seed")}
    stages = written["stages"] or {}  # `base` only shows one more policy
    written["stages"] = {name: {k: v for k, v in stage.items() if k != "base"} for name, stage in stages.items()}
    return digest(_contents([written, {name: _in_effect(stage) for name, stage in recipe.stages.items()}]))


def _in_effect(stage: Stage) -> dict[str, Any]:
    """What a training stage is set to, by the recipe or by default: its options, how it learns, how it samples."""
    if stage.settings is None:
        return {}
    algorithm, settings = stage.component, stage.settings
    own = asdict(algorithm.registration.implementation.defaults)
    learning = {name: getattr(settings, name, None) for name in own}
    effective: dict[str, Any] = {}
    for values in (own, fields_of(algorithm.options), fields_of(settings.rollout), learning):
        effective |= _plain(values)
    rewards = {reward.name: _plain(fields_of(reward.options)) for reward in specs(settings, Component)}
    return {**effective, "rewards": rewards}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float)


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
    """The row that was computed from the same recipe and data, by an earlier command or for the project; or None."""
    name = _name(method, seed, key)
    files = (out / "rows" / name, STORED / f"{name}.gz")
    return next((_read(file) for file in files if file.is_file()), None)


def shipped() -> list[list[Row]]:
    """The rows that come with the project: a list for each method, in the order of methods.yaml, by seed."""
    rows = sorted((_read(file) for file in STORED.iterdir()), key=lambda row: row.seed)
    groups = ([row for row in rows if row.method == method] for method in methods())
    return [group for group in groups if group]


def _name(method: str, seed: int, key: str) -> str:
    return f"{method}-{seed}-{key[:12]}.json"


def compute(method: str, seed: int, recipe: Recipe, overrides: Sequence[str], out: Path) -> Row:
    """Run the recipe in the seed's folder, whose stages all methods share, and store the row. Raises RunFailed."""
    folder = out / f"seed{seed}"
    gibibytes = run(overrides, folder, out / "run.log")
    trained = "align" in recipe.stages
    asked = [item for kind in KINDS for item in _asked(folder, kind, trained)]
    judges = load_recipe(FOLDER / "judges.yaml")
    needed = _needed(recipe, "align") if trained else {"sft", *JUDGED.values()}
    row = Row(
        method=method,
        seed=seed,
        key=key_of(recipe),
        overrides=[text.replace(f"{RECIPES.parent}/", "") for text in overrides],  # a stored row names no folder
        seconds={name: _record(folder / name)["seconds"] for name in recipe.stages if name in needed},
        gibibytes=gibibytes,
        kl=_kl(folder) if trained else best_of_n_kl(asked[0].best_of),
        accuracy=gold_accuracies() | {name: _accuracy(folder / name) for name in JUDGED.values()},
        pairs={name: _validation_pairs(judges, name) for name in GOLD}
        | {name: _validation_pairs(recipe, name) for name in JUDGED.values()},
        asked=asked,
    )
    file = out / "rows" / _name(method, seed, row.key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(row))
    return row


def run(overrides: Sequence[str], folder: Path, log: Path) -> float:
    """Run outcomes.yaml in a process of its own and return its peak memory in GiB. Raises RunFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "alignkit", "run", str(RECIPE), *overrides, "--out", str(folder)]
    with log.open("w", encoding="utf-8") as text:
        process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise RunFailed("\n".join([f"the run failed; see {log}", *last]))
    return usage.ru_maxrss / 2**20


def gold_accuracies() -> dict[str, float]:
    """The accuracy of the gold models on pairs of people that they have not seen."""
    return {name: _accuracy(JUDGES / name) for name in GOLD}


def _accuracy(stage: Path) -> float:
    """Of a reward model on its validation pairs."""
    accuracy: float = _record(stage)["summary"]["validation"]["accuracy"]
    return accuracy


def _validation_pairs(recipe: Recipe, stage: str) -> int:
    validation = getattr(recipe.stages[stage].settings, "validation", None)
    data = RunData(lambda name: recipe.folder / name, recipe.seed)
    return len(data.load(validation).groups) if validation else 0


def _needed(recipe: Recipe, stage: str) -> set[str]:
    """The stage, and those that it needs."""
    return {stage}.union(*(_needed(recipe, name) for name in recipe.stages[stage].upstream))


def _record(stage: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((stage / "stage.json").read_text(encoding="utf-8"))
    return record


def _kl(folder: Path) -> float | None:
    """The aligned policy's KL to SFT; None if no response could be measured."""
    files = [folder / AFTER[kind] / "evaluation.json" for kind in JUDGED.values()]
    measured = [json.loads(file.read_text(encoding="utf-8"))["policies"]["align"]["kl"] for file in files]
    known = [(kl["mean"], kl["n"]) for kl in measured if kl["mean"] is not None]
    return sum(mean * n for mean, n in known) / sum(n for _, n in known) if known else None


def _asked(folder: Path, kind: str, trained: bool) -> list[Asked]:
    """The prompts of a kind, in order. Raises RunFailed if the policies were not asked the same."""
    before = read_groups(folder / BEFORE[kind] / "samples.jsonl")
    if not trained:
        return [_best(group, kind) for group in before]
    after = read_groups(folder / AFTER[kind] / "samples.jsonl")
    if [group.prompt for group in before] != [group.prompt for group in after]:
        raise RunFailed(f"the policies did not answer the same prompts in {BEFORE[kind]} and {AFTER[kind]}")
    return [
        Asked(_text(ours), kind, {"sft": _answers(theirs, "sft"), "align": _answers(ours, "align")})
        for theirs, ours in zip(before, after, strict=True)
    ]


def _best(group: Group, kind: str) -> Asked:
    """Of each half of SFT's answers, the first as SFT's and the best by the recipe's own reward as the policy's."""
    answers = _answers(group, "sft")
    n = len(answers) // 2
    halves = answers[:n], answers[n:]
    best = [max(half, key=lambda answer: answer.scores[OWN]) for half in halves]
    return Asked(_text(group), kind, {"sft": [half[0] for half in halves], "align": best}, best_of=n)


def _text(group: Group) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in group.prompt)


def _answers(group: Group, policy: str) -> list[Answer]:
    return [_answer(response) for response in answers_of(group, policy)]


def _answer(response: Response) -> Answer:
    return Answer(response.text, _scores(response), length(response), response.truncated)


def _scores(response: Response) -> dict[str, float]:
    """The rewards. Raises RunFailed if one is missing, because reward models score every answer."""
    if missing := sorted(name for name, value in response.scores.items() if value is None):
        raise RunFailed(f"no score by {', '.join(missing)}: {response.text[:60]!r}")
    return {name: value for name, value in response.scores.items() if value is not None}


def _read(file: Path) -> Row:
    data = file.read_bytes()
    raw = json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)
    asked = [Asked(**{**item, "answers": _stored_answers(item["answers"])}) for item in raw.pop("asked")]
    return Row(**raw, asked=asked)


def _stored_answers(raw: Mapping[str, Any]) -> dict[str, list[Answer]]:
    return {policy: [Answer(**answer) for answer in answers] for policy, answers in raw.items()}
