"""`alignkit migrate CONFIG`: a recipe from a config of TRL, LLaMA-Factory or axolotl, by
`alignkit_migrate.yaml`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import hookimpl
from alignkit.contract.commands import RegisterCommand
from alignkit.errors import AlignkitError, refuse

_TURNS = ("message_property_mappings", "roles")
TRAINERS = "sft, dpo, kto, reward, simpo, orpo, grpo and rloo"
PAIRS = ("dpo", "simpo", "orpo", "reward_model")
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


def migrate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file of TRL, LLaMA-Factory or axolotl.")
    ],
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="Where to.")] = Path(
        "recipe.yaml"
    ),
    trainer: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"One of {TRAINERS}, if the file does not say it."),
    ] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out what has no counterpart.")
    ] = False,
) -> None:
    """Turn a config of TRL, LLaMA-Factory or axolotl into a recipe, and check it.

    What has no counterpart is an error if training depends on it. With --partial, it is printed,
    and stays in the recipe's head.
    """
    from alignkit.recipe.load import load_named
    from alignkit.recipe.yaml import dump, plain_data, rewritten
    from alignkit_plugins.recipe_tools.check import checked

    if not config.is_file():
        refuse(f"no such file: {config}")
    if recipe.exists():
        refuse(f"already exists: {recipe}", f"name another: alignkit migrate {config} RECIPE")
    text = config.read_text(encoding="utf-8", errors="replace")
    found = converted(plain_data(text, str(config)), trainer, str(config))
    if found.lost and not partial:
        refuse(
            f"{config}: training depends on what has no counterpart: {', '.join(found.lost)}",
            "change it there, or add --partial to leave it out",
        )
    notes = found.notes + [f"no counterpart: {each}" for each in found.lost]
    head = [f"From {config.name}, by alignkit migrate.", *notes]
    text = "".join(f"# {line}\n" for line in head)
    paths = rewritten(found.recipe, lambda text, _: found.moved(text, recipe.parent))
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text + dump(paths), encoding="utf-8")
    print("\n".join([*notes, f"wrote {recipe}; alignkit check {recipe} says:"]), flush=True)
    checked(load_named(str(recipe), [])).show()


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(migrate)


def converted(values: Any, trainer: str, config: str) -> Migration:
    """A config as a recipe. Raises RecipeError for a config that is none."""
    nested = isinstance(values, dict) and (values.get("trl") or {})  # of axolotl, in TRL's words
    if not isinstance(nested, dict):
        refuse(
            f"{config} is no config: it is not a mapping of fields",
            "expected fields such as 'learning_rate: 1e-5'; of a script, write its arguments so",
        )
    if "actor_rollout_ref" in values:
        refuse(f"{config} is verl's, but only configs of TRL, LLaMA-Factory and axolotl are read")
    tool = "axolotl" if "base_model" in values else "trl"
    if values.keys() & {"finetuning_type", "stage"}:
        tool = "llamafactory"
    found = Migration(tool, config)
    found.read({**values, **nested})
    named = found.given.pop("trainer", "sft" if tool == "axolotl" else "")
    found.trainer = {"reward": "reward_model"}.get(trainer, trainer or str(named))
    if found.trainer not in found.tables["fields"]:
        problem = f"no trainer here is called '{found.trainer}'"
        refuse(
            f"{config}: {problem if found.trainer else 'it does not say the trainer'}",
            f"add one of {TRAINERS}: alignkit migrate {config} --trainer sft",
        )
    for name in ("model_name_or_path", "dataset_name"):
        if not found.given.get(name):
            refuse(f"{config} has no {name}", "axolotl calls them base_model and datasets")
    found.write()
    return found


class Migration:
    """A config on its way to a recipe.

    Attributes:
        given: The fields that are still to be carried over, in TRL's words.
        words: TRL's word for a field -> the config's.
        notes: What differs, for people.
        lost: Fields and values without a counterpart, on which training depends. An unknown field
            is without its value, which may be a token.
    """

    trainer: str
    dataset_dir: str
    rows: int  # of all files for training; 0 if unknown
    lora: Any

    def __init__(self, tool: str, config: str):
        import yaml

        text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
        self.tables, self.tool, self.config = yaml.safe_load(text), tool, config
        self.given, self.words, self.recipe, self.stage = {}, {}, {"name": Path(config).stem}, {}
        self.notes, self.lost, self.first_rows = list[str](), list[str](), list[Any]()

    def read(self, values: Mapping[str, Any]) -> None:
        """Take the fields over, in TRL's words. A value that stands for several fields wins."""
        table, several = self.tables[self.tool], dict[str, Any]()
        for word, value in values.items():
            name = table["names"].get(word, word)
            if isinstance(value, str | int):
                value = table["values"].get(word, {}).get(value, value)
                if isinstance(value, dict):
                    several |= value
                    continue
            if name in self.words:
                self.lose(word)
            if not value and name in self.tables["unset"]:
                self.notes.append(f"{word} {json.dumps(value)}: {self.tables['unset'][name]}")
            elif value is not None and word != "trl":
                self.given[name], self.words[name] = value, word
        self.given |= several

    def write(self) -> None:
        """Carry everything over."""
        given, options = self.given, {}
        online = self.trainer in ("grpo", "rloo")
        for key in (f"{self.tool} {self.trainer}", self.trainer, self.tool, "all"):
            self.given |= self.tables["defaults"].get(key, {}) | given
        given.setdefault("lora_alpha", 2 * self.count("lora_r"))
        model = self.recipe["model"] = {}
        self.lora = lora = given.pop("use_peft", False)
        if lora not in (True, False):
            self.lose("use_peft", lora)
        self.data(online)
        self.recipe["stages"] = {self.trainer: self.stage}
        self.stage["algorithm"] = {self.trainer: options}
        self.batches(online)
        if online:
            self.rewards()
        if self.trainer == "dpo":
            self.losses(options)
        if given.get("loss_type") == "dr_grpo":
            options["max_tokens"] = given["max_completion_length"]
        if given.pop("use_bnb_nested_quant", False) and given.get("load_in_4bit") is True:
            given["load_in_4bit"] = "double"
        if modules := self.many("lora_target_modules"):
            given["lora_target_modules"] = "all-linear" if "all-linear" in modules else modules
        self.trackers()
        self.fields(online)
        if not lora:
            model["lora"] = "none"
            if self.stage.pop("engine", None):
                self.differ("use_vllm")
            if model.get("dtype") == "bfloat16":
                del model["dtype"]
                model["mixed_precision"] = "bf16"
        if not options:
            self.stage["algorithm"] = self.trainer
        applies = {
            "batch_size": "per_device_train_batch_size" in self.words,
            "lora_target_modules": lora and not modules,
            "validation": "'validation':" in f"{self.stage}",
            "prompt, completion, chosen": self.tool == "trl"
            and self.trainer != "lm"
            and self.has("prompt", "completion", "chosen", kind=str),
            "data": "'hub':" in f"{self.stage}",
        }
        for name in filter(applies.get, applies):
            self.differ(name)

    def lose(self, name: str, value: Any = None) -> None:
        word = self.words.get(name, name)
        instead = f" ({self.tables['instead'][word]})" if word in self.tables["instead"] else ""
        self.lost.append(
            (word if value is None else " ".join(f"{word}: {value}".split())) + instead
        )

    def has(self, *names: str, kind: type) -> bool:
        """Whether a data set may have one of these columns with such content."""
        return any(
            row is None or isinstance(row.get(name), kind)
            for row in self.first_rows
            for name in names
        )

    def differ(self, name: str) -> None:
        self.notes.append(f"{name}: {self.tables['differs'][name]}")

    def number(self, name: str, default: float = 0) -> float:
        """A field that is a number, which is taken out."""
        value = self.given.pop(name, default)
        try:
            return float(Fraction(str(value)))  # neither NaN nor infinite
        except (ValueError, ArithmeticError):
            refuse(f"{self.config}: {self.words[name]}: expected a number, not {value!r:.40}")

    def count(self, name: str) -> int:
        """A field that is a whole number, which stays."""
        self.given[name] = max(1, int(self.number(name, 1)))
        return self.given[name]

    def many(self, name: str) -> list[Any]:
        """A field that is a list, or a text with commas, which is taken out."""
        value = self.given.pop(name, None) or []
        if isinstance(value, str):
            value = re.split(r",\s*", value)
        return value if isinstance(value, list) else [value]

    def weighted(self, name: str, weights: str) -> list[tuple[str, float]]:
        """The values of a list and their weights, 1 by default."""
        values, numbers = self.many(name), self.many(weights)
        numbers = numbers or [1.0] * len(values)
        try:
            return [(str(a), float(b)) for a, b in zip(values, numbers, strict=True)]
        except (TypeError, ValueError):
            refuse(f"{self.config}: {weights}: expected a number for each of {name}")

    def trackers(self) -> None:
        wanted, used = dict.fromkeys(map(str, self.many("report_to"))), []
        if project := self.given.pop("wandb_project", None):
            wanted["wandb"] = {"project": project}
        for name, options in wanted.items():
            if name in self.tables["trackers"]:
                used.append({name: options} if options else name)
            elif name != "none":
                self.lose("report_to", name)
        if used:
            self.recipe["trackers"] = used

    def data(self, online: bool) -> None:
        """The data sets and what is held out."""
        given, share = self.given, self.number("test_split_size")
        self.dataset_dir = str(given.pop("dataset_dir", "data"))
        more = {
            key: given.pop(name) for name, key in self.tables["sources"].items() if name in given
        }
        test = {"split": given.pop("dataset_test_split", "test")}
        sources = [self.source(each, more) for each in self.many("dataset_name")]
        counts_matter = share >= 1 or "warmup_steps" in given
        counts = [counts_matter and self.count_rows(each) for each in sources]
        self.rows = sum(counts) if all(counts) else 0
        tests = [self.source(each, more) for each in self.many("eval_dataset")]
        if 1 <= share < self.rows:
            word = self.words["test_split_size"]
            self.notes.append(f"{word}: {share:g} of {self.rows} rows, as their share")
            share = round(share / self.rows, 6)
        if share >= 1:
            self.lose("test_split_size", f"{share:g} (write its share of the rows, such as 0.05)")
        elif share:
            held_out = {"part": [share, 1]} if online else {"validation": share}
            sources = [each | held_out for each in sources]
        self.rows = max(0, math.ceil(self.rows * (1 - share)))
        strategy = given.pop("eval_strategy", "no")
        evaluated = strategy not in (False, "no")
        if online and (evaluated or tests):
            self.notes.append("eval_strategy: add a step evaluate (docs/evaluate.md)")
        elif evaluated and not share and not tests:
            tests = [each | test for each in sources if "hub" in each]
            if not tests:
                self.lose("eval_strategy", f"{strategy} (no test split)")
        sources, tests = (
            [{"template": e} if "messages" in e else e for e in each] for each in (sources, tests)
        )
        self.stage["prompts" if online else "data"] = sources if sources[1:] else sources[0]
        if tests and not online:
            self.stage["validation"] = tests if tests[1:] else tests[0]

    def count_rows(self, source: Mapping[str, Any]) -> int:
        """The rows of a source; 0 if it is no file that can be read."""
        from alignkit_plugins.command_line.words import reader_of

        with suppress(AlignkitError, OSError, KeyError, TypeError):
            reader = reader_of(str(self.file(source["path"])), "alignkit migrate")
            rows = sum(1 for _ in reader.stored_rows())
            return min(rows, source.get("limit", rows))
        return 0

    def source(self, one: Any, more: Mapping[str, Any]) -> dict[str, Any]:
        """A data set as source of a recipe."""
        entry = {**more, **(one if isinstance(one, dict) else {"path": one})}
        entry = self.registered(entry)
        path, kind = entry.pop("path", None), entry.pop("type", "default")
        if path in ("json", "csv", "parquet", "text"):
            path = entry.pop("data_files", None)
        if not isinstance(path, str):
            refuse(f"{self.config}: a data set has no path: {one!r:.60}", "write {path: NAME}")
        if isinstance(kind, dict):
            entry, kind = entry | kind, "default"
        source = {"path": path}
        split = str(entry.pop("split", "train"))
        if Path(path).suffix not in FILES:
            source = {"hub": path, "split": split}
        if "[" in split:
            self.lose("split", split)
        columns = self.columns(str(kind), entry)
        turns = self.turns(entry)
        if turns and self.trainer == "sft":
            source["messages"] = f"{{{{ {columns.pop('messages', 'messages')} | {turns} }}}}"
            for name in columns:
                self.lose(f"datasets: field_{name}")
            columns = {}
        elif turns:
            self.lose("datasets: message_property_mappings")
        self.first_rows.append(_first_row(self.file(path)) if "path" in source else None)
        for key, value in entry.items():
            words = set(re.findall(r"\w+", str(value)))
            if key in ("name", "revision", "data_files", "limit"):
                source[key] = value
            elif value and not words <= set(self.tables["entries"].get(key, ())):
                self.lose(f"datasets: {key}")
        return source | ({"columns": columns} if columns else {})

    def registered(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What LLaMA-Factory's dataset_info.json says of a name, in axolotl's words."""
        name, tables = str(entry.get("path")), self.tables["dataset_info"]
        named = "/" not in name and Path(name).suffix not in FILES
        if self.tool != "llamafactory" or self.dataset_dir == "ONLINE" or not named:
            return entry
        file = self.file(self.dataset_dir) / "dataset_info.json"
        known: Any = {}
        with suppress(OSError, ValueError):
            known = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not isinstance(known.get(name), dict):
            refuse(
                f"{self.config}: dataset: {file} says nothing of '{name}'",
                "write the file itself, such as dataset: data/identity.json, or the folder of "
                "dataset_info.json as dataset_dir",
            )
        info = known[name]
        for key in ("columns", "tags"):
            if not isinstance(info.get(key, {}), dict):
                refuse(f"{file}: {name}: {key}: expected a mapping")
        if info.pop("formatting", "alpaca") != "alpaca":
            info.setdefault("columns", {"messages": "conversations"})
        compared = "compared" if info.pop("ranking", False) else self.trainer
        names = tables["columns"].get(compared, {})
        for word, column in info.pop("columns", {}).items():
            if word in names:
                info[f"field_{names[word]}"] = column
            else:
                self.lose(f"dataset_info.json: {name}: {word}")
        for word, value in info.pop("tags", {}).items():
            place, key = tables["tags"].get(word, ("tags", word))
            info.setdefault(place, {})[key] = value
        local = info.pop("file_name", None)
        info["path"] = info.pop("hf_hub_url", local and str(file.with_name(local)))
        return entry | {tables["keys"].get(word, word): info[word] for word in info}

    def file(self, path: str) -> Path:
        """A file, which starts where the tool runs, or else at the config's folder."""
        from alignkit.io.text import exists

        near = Path(self.config).parent / path
        return near if exists(near) and not exists(Path(path)) else Path(path)

    def moved(self, text: str, folder: Path) -> str:
        """A text of the recipe in a folder, at which its paths start."""
        from alignkit.io.text import exists

        found = self.file(text)
        is_path = "." in text or "/" in text
        if not is_path or found.is_absolute() or not exists(found):
            return text
        start = Path(os.path.relpath(found, folder))
        return text if start == Path(text) else start.as_posix()

    def columns(self, kind: str, entry: dict[str, Any]) -> dict[str, str]:
        """The columns of a type of axolotl that have other names here. Takes them out."""
        types = self.tables["types"]
        if kind not in types:
            self.lose("datasets: type", kind)
        columns = dict(types.get(kind, {}))
        if template := columns.pop("template", None):
            self.recipe["model"]["chat_template"] = template
        for key in [each for each in entry if each.startswith("field")]:
            columns[key.removeprefix("field").lstrip("_") or "text"] = entry.pop(key)
        if "messages" in columns and self.trainer in PAIRS:
            columns["prompt"] = columns.pop("messages")
        if "text" in columns:
            self.trainer = "lm"
            self.given.pop("assistant_only_loss", None)
        return {key: columns[key] for key in columns if key != columns[key]}

    def turns(self, entry: dict[str, Any]) -> str:
        """What reads the turns of a data set of axolotl that have other keys or speakers; empty if
        alignkit reads them anyway. Takes out the fields.
        """
        from alignkit_plugins.formats.turns import SPEAKERS

        keys = {name: entry.pop(f"message_field_{name}", name) for name in ("role", "content")}
        mappings, roles = (entry.pop(name, None) or {} for name in _TURNS)
        if not isinstance(mappings, dict) or not isinstance(roles, dict):
            refuse(f"{self.config}: {' and '.join(_TURNS)} of a data set must be mappings")
        keys |= mappings
        for name in keys.keys() - {"role", "content"}:
            if keys[name] != name:
                self.lose(f"datasets: message_property_mappings: {name}")
        others = dict[str, list[str]]()
        for role, speakers in roles.items():
            for each in [speakers] if isinstance(speakers, str) else speakers:
                if SPEAKERS.get(str(each).lower()) != role:
                    others.setdefault(role, []).append(str(each))
        who, says = keys["role"], keys["content"]
        if not others and who in ("role", "from") and says in ("content", "value", "text"):
            return ""
        words = [json.dumps(who), json.dumps(says)]
        words += [f"{role}={json.dumps(each)}" for role, each in others.items()]
        return f"turns({', '.join(words)})"

    def batches(self, online: bool) -> None:
        """Batches and steps."""
        given, size = self.given, self.number("per_device_train_batch_size")
        size *= self.number("gradient_accumulation_steps", 1)
        steps, epochs = max(0, self.number("max_steps")), self.number("num_train_epochs")
        if online:  # batches count samples there, and prompts here
            size = max(1, size // self.count("num_generations"))
            longest = self.number("max_prompt_length", self.number("max_length"))
            given["max_length"] = int(longest) + self.count("max_completion_length")
            steps = math.ceil(steps / self.count("num_iterations"))
            self.stage |= {"prompts_per_iteration": int(size), "iterations": steps or 10}
        else:
            given["num_train_epochs"] = math.ceil(steps or epochs)
            given |= {"max_steps": int(steps)} if steps else {}
        self.stage["batch_size"] = int(size)
        if not steps and (online or epochs % 1):
            self.lose("num_train_epochs", f"{epochs:g} (set max_steps)")
        if "warmup_steps" in given and "warmup_ratio" not in self.words:
            given["warmup_ratio"] = 0.0  # also of 0, which is not axolotl's default
        warmup = self.number("warmup_steps")
        if not steps and not online:
            steps = math.ceil(self.rows / max(1, size)) * epochs
        if warmup >= 1 and not steps:
            share = f"{warmup * size / (epochs or 1):g} / the number of rows"
            self.lose("warmup_steps", f"{warmup:g} (write warmup_ratio: {share})")
        elif warmup >= 1:  # rounded down, because alignkit rounds the steps up
            given["warmup_ratio"] = min(1, math.floor(1e6 * warmup / steps) / 1e6)
        elif warmup:
            given["warmup_ratio"] = warmup

    def losses(self, options: dict[str, Any]) -> None:
        """The losses of DPO and their weights."""
        known, mixed = self.tables["fields"]["dpo"]["loss_type"]["values"], {}
        for name, weight in self.weighted("loss_type", "loss_weights"):
            if name == "sft":
                self.given["nll_coefficient"] = weight
            elif name in known:
                mixed[known[name]] = mixed.get(known[name], 0) + weight
            else:
                self.lose("loss_type", name)
        if mixed:
            options["loss"] = next(iter(mixed)) if [*mixed.values()] == [1] else mixed

    def rewards(self) -> None:
        """Every reward, with its weight."""
        rewards, weights = {}, {}
        for name, weight in self.weighted("reward_funcs", "reward_weights"):
            module, _, function = self.tables["rewards"].get(name, name).rpartition(".")
            file = self.file(f"{module.replace('.', '/')}.py")
            part = {"python": _python(file, module, function)}
            if self.file(name).is_dir():
                part = {"folder": name}
            elif not module or "/" in name:
                self.lose("reward_funcs", name)
                continue
            key = function if function not in rewards else f"{function}_{len(rewards)}"
            rewards[key], weights[key] = part, weight
        if not rewards:
            self.lose("reward_funcs", "none here")
        self.stage["reward"] = next(iter(rewards.values()), None)
        if [*weights.values()] != [1]:
            self.stage["reward"] = {"weighted_sum": {"rewards": rewards, "weights": weights}}

    def fields(self, online: bool) -> None:
        """All that is left, by the table."""
        tables, unneeded = self.tables["fields"], []
        keys = {**tables["common"], **(tables["online"] if online else {}), **tables[self.trainer]}
        for name, value in self.given.items():
            to = keys.get(name)
            if isinstance(to, dict):
                known = {str(word): here for word, here in to["values"].items()}
                word = str(value).strip("[']")  # also the only one of a list
                if word not in known:
                    self.lose(name, value)
                    continue
                to, value = to.get("to"), known[word]
            if to and value is not None:
                *path, last = to.split(".")
                place = self.recipe if to.startswith(("model.", "seed")) else self.stage
                for key in path:
                    place = place.setdefault(key, {})
                place[last] = value
            elif value and name in self.tables["differs"]:
                without = name.startswith("lora") and not self.lora
                if not without and (
                    name != "assistant_only_loss"
                    or self.has("messages", "conversations", kind=list)
                ):
                    self.differ(name)
            elif not value or any(fnmatchcase(name, each) for each in self.tables["silent"]):
                if name in self.words:  # not a default, or a part of what a word stands for
                    unneeded.append(self.words[name])
            elif name not in keys:
                self.lose(name)
        if unneeded:
            self.notes.append(f"not needed here: {', '.join(unneeded)}")
        optimizer = self.stage["optimizer"]
        if "betas" in optimizer:
            optimizer["betas"] = [0.9, optimizer["betas"]]
        self.stage["optimizer"] = {optimizer.pop("name", "adamw"): optimizer}


def _first_row(path: Path) -> Any:
    """The first row of a file; None if it cannot be read, which `check` says."""
    from alignkit_plugins.command_line.words import first_row

    with suppress(AlignkitError, OSError):
        return first_row(path)
    return None


def _python(file: Path, module: str, function: str) -> dict[str, Any]:
    """A function; of messages, if it is TRL's or its file reads their content."""
    text = module
    reward: dict[str, Any] = {"function": f"{module}:{function}"}
    if file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        reward = {"path": str(file), "function": function}
    if re.search(r".content.[\])]|^trl\.", text):
        reward["conversational"] = True
    return reward
