"""`alignkit migrate CONFIG`: a recipe from a config of TRL, LLaMA-Factory or axolotl, by
`alignkit_migrate.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit import hookimpl
from alignkit.contract.commands import RegisterCommand


def migrate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file of TRL, LLaMA-Factory or axolotl.")
    ],
    recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="Where to.")] = Path(
        "recipe.yaml"
    ),
    trainer: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="sft, dpo, kto, reward, grpo or rloo, if the file does not say it."
        ),
    ] = "",
) -> None:
    """Turn a config of TRL, LLaMA-Factory or axolotl into a recipe.

    What has no counterpart is printed, and stays in the recipe's head.
    """
    import yaml

    from alignkit.errors import refuse

    if not config.is_file():
        refuse(f"no such file: {config}")
    if recipe.exists():
        refuse(f"already exists: {recipe}", f"name another: alignkit migrate {config} RECIPE")
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        refuse(f"{config} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        refuse(
            f"{config} is no config: it is not a mapping of fields",
            "expected fields such as 'learning_rate: 1e-5'",
        )
    written, notes = converted(values, trainer)
    head = [f"# From {config.name}, by alignkit migrate.", *(f"# {note}" for note in notes)]
    recipe.write_text(
        "\n".join([*head, yaml.safe_dump(written, sort_keys=False)]), encoding="utf-8"
    )
    print("\n".join([*notes, f"wrote {recipe}", f"next: alignkit check {recipe}"]))


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(migrate)


def converted(values: Mapping[str, Any], trainer: str = "") -> tuple[dict[str, Any], list[str]]:
    """A recipe as plain data, and notes on what it does not have. Raises RecipeError without a
    trainer or a model.
    """
    import yaml

    from alignkit.errors import refuse

    tables = yaml.safe_load(
        Path(__file__).with_name("alignkit_migrate.yaml").read_text(encoding="utf-8")
    )
    tool = (
        "axolotl"
        if "base_model" in values
        else "llamafactory"
        if "finetuning_type" in values
        else "trl"
    )
    given, notes = _in_words_of_trl(values, tables[tool])
    named = given.pop("trainer", None) or ("sft" if tool == "axolotl" else "")
    trainer = trainer or str(named)
    online = trainer in ("grpo", "rloo")
    if trainer not in ("sft", "reward", "dpo", "kto", "simpo", "orpo", "grpo", "rloo"):
        text = (
            f"nothing here trains with '{trainer}'"
            if trainer
            else "the config does not say which trainer it is for"
        )
        refuse(text, "add --trainer NAME: sft, dpo, kto, reward, grpo or rloo")
    if "model_name_or_path" not in given:
        refuse(
            "the config names no base model",
            "expected model_name_or_path, or base_model in axolotl",
        )
    given = {**tables[tool]["defaults"], **tables[tool].get("of", {}).get(trainer, {}), **given}

    algorithm = {"reward": "reward_model"}.get(trainer, trainer)
    stage: dict[str, Any] = {"algorithm": {algorithm: {}}}
    recipe: dict[str, Any] = {"name": "migrated", "model": {}, "stages": {trainer: stage}}
    _put_special(given, recipe, stage, online, notes)
    keys = {**tables["common"], **(tables["online"] if online else {}), **tables[trainer]}
    optimizer: dict[str, Any] = {}
    for field, value in given.items():
        known = tables["values"].get(field)
        value = value[0] if field == "loss_type" and isinstance(value, list) else value
        if value is None or field in tables["silent"]:
            continue
        if field not in keys or (known is not None and value not in known):
            notes.append(f"no counterpart: {field}")  # without its value, which may be a token
            continue
        _put(keys[field], value if known is None else known[value], recipe, stage, optimizer)
    if optimizer:
        stage["optimizer"] = {stage.get("optimizer", "adamw"): optimizer}
    if not stage["algorithm"][algorithm]:
        stage["algorithm"] = algorithm
    return recipe, notes


def _in_words_of_trl(
    values: Mapping[str, Any], table: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    given: dict[str, Any] = {}
    notes = []
    for field, value in {**values, **values.get("trl", {})}.items():
        known = table.get("values", {}).get(field)
        if field == "trl" or value is None:
            continue
        if known is not None and not isinstance(value, list) and value not in known:
            notes.append(f"no counterpart: {field}: {value}")
            continue
        value = known[value] if known is not None and not isinstance(value, list) else value
        given[table.get("names", {}).get(field, field)] = value
    if values.get("adapter") == "qlora":
        given["load_in_4bit"] = True
    if values.get("rl") == "ipo":
        given["loss_type"] = "ipo"
    return given, notes


def _put(
    key: str, value: Any, recipe: dict[str, Any], stage: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    first, _, rest = key.partition(".")
    place = recipe if first in ("model", "seed") else stage
    if first == "optimizer" and rest:
        place, key = optimizer, rest
    *path, last = key.split(".")
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value


def _put_special(
    given: dict[str, Any],
    recipe: dict[str, Any],
    stage: dict[str, Any],
    online: bool,
    notes: list[str],
) -> None:
    """What follows from several fields, which are taken from `given`."""
    size = int(given.pop("per_device_train_batch_size")) * int(
        given.pop("gradient_accumulation_steps", 1)
    )
    notes.append(f"batch_size: {size} rows per device and step; here it does not grow with devices")
    if online:  # batches count samples there, and prompts here
        samples = int(given["num_generations"])
        stage["batch_size"] = stage["prompts_per_iteration"] = max(1, size // samples)
        given["max_length"] = int(given["max_length"]) + int(given["max_completion_length"])
        passes = given.pop("num_train_epochs")
        if (steps := int(given.pop("max_steps", 0) or 0)) > 0:
            stage["iterations"] = steps
        else:
            notes.append(
                f"write iterations: {passes} x rows / {stage['prompts_per_iteration']}; without "
                "it there are 10"
            )
        rewards = given.pop("reward_funcs", "reward.reward")
        module, _, function = str(rewards[0] if isinstance(rewards, list) else rewards).rpartition(
            "."
        )
        stage["reward"] = {"python": {"function": f"{module or 'rewards'}:{function}"}}
        notes.append(
            "reward: look at it; a model is a folder, several are weighted_sum (docs/rewards.md)"
        )
    else:
        stage["batch_size"] = size
        given["num_train_epochs"] = max(1, math.ceil(float(given["num_train_epochs"])))
        if int(given.get("max_steps", -1)) < 1:
            given.pop("max_steps", None)
    if given.pop("use_peft", False):
        given.setdefault("lora_r", 16)
        given.setdefault("lora_alpha", 2 * int(given["lora_r"]))
    else:
        recipe["model"]["lora"] = "none"
        for field in [
            field for field in given if field.startswith("lora_") or field == "use_rslora"
        ]:
            del given[field]
    quantization = given.pop("bnb_4bit_quant_type", "nf4")
    if given.pop("load_in_4bit", False):
        given["bnb_4bit_quant_type"] = quantization
    elif given.pop("load_in_8bit", False):
        given["bnb_4bit_quant_type"] = "int8"
    warmup = float(given.pop("warmup_steps", 0) or 0)
    if 0 < warmup < 1:
        given["warmup_ratio"] = warmup
    elif warmup:
        notes.append(f"write warmup_ratio: {warmup:g} / all steps")
    betas = [given.pop("adam_beta1", 0.9), given.pop("adam_beta2", 0.999)]
    if betas != [0.9, 0.999]:
        notes.append(f"write optimizer: {{adamw: {{betas: {betas}}}}}")
    stage["prompts" if online else "data"] = _data(given, notes)


def _data(given: dict[str, Any], notes: list[str]) -> Any:
    """The data sets, as sources of a recipe."""
    named = given.pop("dataset_name", None) or "data.jsonl"
    share, split = (
        given.pop("val_set_size", 0) or given.pop("val_size", 0),
        given.pop("dataset_train_split", "train"),
    )
    sources = []
    for one in named if isinstance(named, list) else str(named).split(","):
        path = str(one.get("path") if isinstance(one, dict) else one).strip()
        split_of = one.get("split", split) if isinstance(one, dict) else split
        local = Path(path).suffix in (".json", ".jsonl", ".csv", ".tsv", ".parquet")
        source = {"path": path} if local else {"hub": path, "split": split_of}
        sources.append({**source, "validation": share} if 0 < share < 1 else source)
    notes.append("data: formats are recognized; look at a row: alignkit check RECIPE STAGE")
    return sources if len(sources) > 1 else sources[0]
