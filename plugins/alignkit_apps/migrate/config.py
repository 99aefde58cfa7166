"""A config of another tool: its fields by TRL's names, as a YAML file of TRL, LLaMA-Factory or axolotl has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignkit.arguments import refuse

TRAINERS = ("sft", "dpo", "kto", "reward", "grpo", "rloo")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 reads 1e-6 as text
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz")
_LOOK = "look at a row: alignkit check RECIPE STAGE"


@dataclass(frozen=True)
class Given:
    """A field as the file has it. name: its name there; empty: the line has another field, from which it follows."""

    name: str
    value: Any
    line: int


@dataclass
class Config:
    """What a file says. given: by TRL's names. notes: (line, what differs or is lost). code: its reward functions."""

    file: Path
    tool: str = "trl"
    trainer: str = ""
    given: dict[str, Given] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)
    code: str = ""

    def pop(self, name: str, default: Any = None) -> Any:
        """Read a field that no table carries into the recipe; the default if it is null."""
        given = self.given.pop(name, None)
        return default if given is None or given.value is None else given.value

    def line(self, *names: str) -> int:
        return next((self.given[name].line for name in names if name in self.given), 1)


@cache
def tables() -> Any:
    return yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))


def sections(trainer: str) -> list[dict[str, Any]]:
    """The tables of a trainer, the general ones first."""
    trl = tables()["trl"]
    return [trl["common"], *([trl["online"]] if trainer in ("grpo", "rloo") else []), trl[trainer]]


def headings(section: dict[str, Any]) -> dict[str, str]:
    """Every field of a table, and under which heading it is: carried, computed, lost or ignored."""
    flat = {name: kind for kind in ("carried", "computed") for name in section.get(kind, {})}
    groups = ((kind, group) for kind in ("lost", "ignored") for group in section.get(kind, {}).values())
    return flat | {name: kind for kind, group in groups for name in group}


def read_yaml(path: Path, trainer: str | None) -> Config:
    """Raises RecipeError if the file is no such config, or does not say what it trains."""
    text = path.read_text(encoding="utf-8")
    try:
        values, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        refuse(f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        refuse(f"{path} is no config: it is not a mapping of fields", "expected fields such as 'learning_rate: 1e-5'")
    llama = {"stage", "finetuning_type", "cutoff_len", "lora_rank"} & values.keys()
    config = Config(path, "axolotl" if "base_model" in values else "llamafactory" if llama else "trl")
    table, old = tables()[config.tool], tables()["trl"]["common"]["old"]
    for name, value, line in _fields(values, node):
        to, allowed = table.get("names", {}).get(name, old.get(name, name)), table.get("values", {}).get(name)
        if to in config.given and value is not None:
            config.notes.append((line, f"{name}: line {config.line(to)} says it, too, and counts"))
        elif allowed is None or isinstance(value, list | dict) or ("any" in allowed and value not in allowed):
            config.given[to] = Given(name, value, line)
        elif value in allowed and allowed[value] is not None:
            config.given[to] = Given(name, allowed[value], line)
        elif value not in allowed and to == "trainer":
            refuse(f"{path}:{line}: {name}: {value} has no counterpart", "alignkit plugins algorithm: what there is")
        elif value not in allowed:
            config.notes.append((line, f"{name}: {value} has no counterpart"))
    named = config.pop("trainer")
    config.trainer = trainer or (_trainer(config) if config.tool == "trl" else named or "sft")
    if config.trainer == "dpo" and (loss := config.given.get("loss_type")) and loss.value in ("simpo", "orpo"):
        config.trainer = config.pop("loss_type")  # LLaMA-Factory calls them losses of DPO
    {"trl": _trl_data, "llamafactory": _llamafactory_data, "axolotl": _axolotl_data}[config.tool](config)
    return config


def _fields(values: dict[Any, Any], node: Any) -> Iterator[tuple[str, Any, int]]:
    """Each field with its line, counted from 1; those below axolotl's `trl:` and `model_init_kwargs:`, too."""
    marks = {key.value: (key.start_mark.line + 1, below) for key, below in node.value}
    for name, value in values.items():
        line, below = marks.get(str(name), (1, None))
        if name in ("trl", "model_init_kwargs") and isinstance(value, dict):
            yield from _fields(value, below)
        else:
            yield str(name), float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value, line


def _trainer(config: Config) -> str:
    """TRL's YAML does not say which trainer it is for: only its fields do."""
    have = {one: set().union(*map(headings, sections(one)), {"env"}) for one in TRAINERS}
    may_be = [one for one in TRAINERS if config.given.keys() <= have[one]]
    if len(may_be) != 1:
        which = f"it may be for {', '.join(may_be)}" if may_be else "no trainer has all of its fields"
        refuse(f"{config.file} does not say which trainer of TRL it is for: {which}", "add --trainer NAME, such as sft")
    return may_be[0]


def _trl_data(config: Config) -> None:
    line, path = config.line("datasets", "dataset_name"), config.pop("dataset_name")
    named = {"path": path, "name": config.pop("dataset_config"), "split": config.pop("dataset_train_split", "train")}
    sets = config.pop("datasets", [named] if path else [])
    shares = [{"weight": one["fraction"]} if one.get("fraction") else {} for one in sets]
    keys = ("path", "name", "split", "data_dir", "data_files")
    data = [source({key: one.get(key) for key in keys}) | share for one, share in zip(sets, shares, strict=True)]
    config.given["data"] = Given("", data, line)
    tested = config.pop("dataset_test_split", "test")
    if path and config.pop("eval_strategy", "no") not in ("no", False):
        config.given["validation"] = Given("", [source({**named, "split": tested})], line)


def _llamafactory_data(config: Config) -> None:
    folder, most = Path(config.pop("dataset_dir", "data")), config.pop("max_samples")
    for key, name in (("data", "dataset"), ("validation", "eval_dataset")):
        line, named = config.line(name), [one.strip() for one in str(config.pop(name, "")).split(",") if one.strip()]
        sources = [_described(config, line, folder, one) | ({"limit": most} if most else {}) for one in named]
        config.given[key] = Given("", sources, line)


def _described(config: Config, line: int, folder: Path, name: str) -> dict[str, Any]:
    """A data set of LLaMA-Factory's `dataset_info.json`."""
    file = folder / "dataset_info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError):
        config.notes.append(
            (line, f"dataset: {file} does not say what '{name}' is; write the path of the file yourself")
        )
        return {"path": str(folder / f"{name}.json")}
    named = tables()["llamafactory"]["columns"] | (
        {"prompt": "prompt", "messages": "prompt"} if info.get("ranking") else {}
    )
    columns = {named.get(key, key): column for key, column in info.get("columns", {}).items()}
    for key in sorted(
        info.keys()
        - {
            "file_name",
            "hf_hub_url",
            "columns",
            "ranking",
            "formatting",
            "subset",
            "split",
            "folder",
        }
    ):
        config.notes.append((line, f"dataset: {key} of '{name}' is not migrated; {_LOOK}"))
    path = info.get("hf_hub_url") or str(folder / info.get("file_name", name))
    data = {"path": path, "name": info.get("subset"), "split": info.get("split"), "data_dir": info.get("folder")}
    return source(data, {key: column for key, column in columns.items() if key != column})


def _axolotl_data(config: Config) -> None:
    for key, name in (("data", "datasets"), ("validation", "test_datasets")):
        line = config.line(name)
        config.given[key] = Given("", [_axolotl_source(config, line, one) for one in config.pop(name, [])], line)
    if config.pop("ipo"):
        config.given["loss_type"] = Given("rl", ["ipo"], 1)


def _axolotl_source(config: Config, line: int, one: dict[str, Any]) -> dict[str, Any]:
    fields = one | (one["type"] if isinstance(one.get("type"), dict) else {})
    columns = {key.removeprefix("field_"): value for key, value in fields.items() if key.startswith("field_") and value}
    if config.trainer not in ("sft", "kto") and "messages" in columns:
        columns["prompt"] = columns.pop("messages")
    read = {key: one.get(key) for key in ("path", "name", "split", "data_files", "revision")}
    for key in sorted(key for key in one.keys() - read.keys() - {"ds_type"} if not key.startswith("field_")):
        config.notes.append((line, f"datasets: {key}: {one[key]} is not migrated: formats are recognized; {_LOOK}"))
    path = one.get("ds_type") if isinstance(one.get("data_files"), str) else None
    return source(read | ({"path": path} if path else {}), {key: name for key, name in columns.items() if key != name})


def source(named: dict[str, Any], columns: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `load_dataset` would read, as a recipe's source."""
    path, files = named["path"], named.get("data_files")
    keys = {key: value for key, value in named.items() if value is not None and key != "path"}
    if path in ("json", "csv", "parquet", "text") and isinstance(files, str):
        path = files
    renamed = {"columns": columns} if columns else {}
    if Path(path).suffix in _FILES:  # a file has no splits
        return {"path": path} | {key: keys[key] for key in keys if key not in ("data_files", "split", "name")} | renamed
    hub = f"./{path}" if Path(path).is_dir() and not path.startswith((".", "/")) else path
    return {"hub": hub, "split": "train", **keys, **renamed}
