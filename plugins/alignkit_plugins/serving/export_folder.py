"""Writes an export: weights, tokenizer, generation settings, recipe and model card, complete or not
at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from alignkit.contract.report import Report, Table
from alignkit.contract.settings import ModelSpec
from alignkit.errors import RunFailed, refuse
from alignkit.host.plugins import plugins
from alignkit.io.atomic import replace_folder, write_json, write_text
from alignkit.io.digest import cached_snapshot
from alignkit.io.results import RECIPE, RESULTS, read_record
from alignkit.io.text import printable, redacted
from alignkit.models.adapters import ORIGIN, ModelOrigin
from alignkit.models.loading import DTYPES, dtype_of, end_ids, load_tokenizer
from alignkit.models.saved import read_json
from alignkit.models.whole_model import end_with
from alignkit.models.whole_model import export as write_model
from alignkit.recipe.schema import ADAPTER
from alignkit.runs.model_source import locate_model
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.bases.gguf import MANIFEST
from alignkit_plugins.command_line.find import Model, is_result_name
from alignkit_plugins.text.personal import mapped

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Generation settings
SAMPLED_WITH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")  # "/home" may be a word in these


def base_of(model: Model) -> ModelOrigin:
    """Return the base model of a stage's weights, as its adapter names it, which others can load it
    from or not.
    """
    assert model.folder is not None
    spec = model.record["depends_on"]["model"]
    saved = read_json(model.folder / ADAPTER, optional=True) or {"revision": spec["revision"]}
    source = str(saved.get("base_model_name_or_path") or spec["base"])
    return ModelOrigin(spec["base"], source, saved.get("revision"))


def on_hub(base: ModelOrigin) -> bool:
    """Whether others can load a base model by its name."""
    return bool(HUB_ID.fullmatch(base.source)) and not Path(base.source).exists()


def write(model: Model, out: Path, merge: bool, license: str | None) -> list[str]:
    """Write an export; return what its user must know.

    Args:
        model: A stage's.
        out: A new folder.
        merge: Whether to write a whole model instead of an adapter.
        license: For the model card.

    Raises:
        RunFailed: For a model that cannot be exported in this form.
    """
    assert model.run is not None and model.folder is not None
    spec = ModelSpec.model_validate({**model.record["depends_on"]["model"], "chat_template": None})
    as_adapter, base = model.is_adapter and not merge, base_of(model)
    if model.is_adapter and merge:
        base = _found(base, model.name)
    base_folder = _folder_of(base)
    tokenizer = load_tokenizer(model.folder, model.name, trust_remote_code=spec.trust_remote_code)
    weights = base_folder if model.is_adapter else model.folder
    ending = end_ids(str(weights), None) if weights is not None else ()
    ends = Encoder(tokenizer, spec.chat_template_kwargs, ending).end_ids
    base_name = base.source if on_hub(base) else Path(spec.base).name
    with replace_folder(out) as new:
        if as_adapter:
            notes = _write_adapter(model.folder, new, base_name, spec.quantization)
            if not on_hub(base):
                text = (
                    "is not on the hub, so only alignkit finds it; others load what --merge writes"
                )
                notes.append(f"its base {base_name} {text}")
        else:
            dtype = _dtype(spec, base_folder)
            notes = write_model(model.folder, new, base, spec, dtype, tokenizer, ends)
        if not model.is_reward and (as_adapter or not model.is_adapter):
            _write_generation(base_folder if as_adapter else new, new, ends)
        notes += _sampling_notes(new)
        write_text(new / "recipe.yaml", recipe_text(model.run))
        terms = "" if base_folder is None else _copy_terms(base_folder, new)
        text = model_card(model, out.resolve().name, base, as_adapter, license, terms, notes)
        write_text(new / "README.md", redacted(text))
        _forget_names(new)
        around = model.run.resolve(), out.resolve().parent, Path.home(), Path.cwd()
        _check_private(new, (*around, Path(base.source)))
        if out.exists() and any(out.iterdir()):
            refuse(f"{out} appeared while it was being written", "choose another")
    return notes


def _write_adapter(folder: Path, new: Path, base_name: str, quantization: str) -> list[str]:
    """Copy an adapter, with the name of its base that others know."""
    shutil.copytree(folder, new, dirs_exist_ok=True)
    config = read_json(folder / ADAPTER)
    write_json(new / ADAPTER, config | {"base_model_name_or_path": base_name})
    origin = read_json(folder / ORIGIN, optional=True)
    if isinstance(origin.get("base"), dict):
        write_json(new / ORIGIN, origin | {"base": origin["base"] | {"name": base_name}})
    if quantization == "none":
        return []
    return [f"it was trained on the {quantization} base: on any other, log-probabilities differ"]


def _dtype(spec: ModelSpec, base_folder: Path | None) -> torch.dtype:
    """The dtype of merged weights: the recipe's, or else that of the base's files."""
    config: Mapping[str, Any] = {}
    if base_folder is not None:
        config = read_json(base_folder / "config.json", optional=True)
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    if spec.dtype == "auto" and stored in DTYPES:
        return DTYPES[stored]
    return dtype_of(spec, torch.device("cpu"))


def _found(base: ModelOrigin, stage: str) -> ModelOrigin:
    """The base of an adapter where it is now; a model source makes its own again. Raises RunFailed
    if it is gone.
    """
    if Path(base.source).is_dir() or on_hub(base):
        return base
    made = locate_model(base.name)
    if made != base.name:
        return ModelOrigin(base.name, made, base.revision)
    raise RunFailed(
        f"the base model of '{stage}' is not at {base.source} any more\n"
        "help: put it back, or leave --merge out: an adapter is exported without its base"
    )


def _folder_of(base: ModelOrigin) -> Path | None:
    """Where a base's files are; None if they are not on this machine."""
    if Path(base.source).is_dir():
        return Path(base.source)
    return cached_snapshot(base.source, base.revision) if on_hub(base) else None


def _copy_terms(folder: Path, new: Path) -> str:
    """Copy what a base model's license wants next to its weights, and to what is made from them;
    return the license that its model source states, or an empty text.
    """
    for file in [*folder.glob("NOTICE*"), *folder.glob("LICENSE*")]:
        if file.is_file():
            shutil.copy(file, new)
    return str(read_json(folder / MANIFEST, optional=True).get("license") or "")


def _write_generation(folder: Path | None, new: Path, ends: frozenset[int]) -> None:
    """Write the base's generation settings, which end responses as the run did."""
    from transformers import GenerationConfig

    is_there = folder is not None and (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if is_there else GenerationConfig()
    end_with(generation, ends)
    generation.save_pretrained(new)


def _sampling_notes(folder: Path) -> list[str]:
    """How programs sample by themselves with the base's generation settings, which alignkit does
    not apply.
    """
    saved = read_json(folder / "generation_config.json", optional=True)
    settings = [f"{key} {saved[key]}" for key in SAMPLED_WITH if saved.get(key) is not None]
    if not settings:
        return []
    what = f"sample with the base's settings ({', '.join(settings)}), which the run did not use"
    return [f"vLLM and transformers {what}"]


def _forget_names(folder: Path) -> None:
    """Take names of this machine's folders out of the configuration."""
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        config = read_json(file, optional=True)
        if config.pop("_name_or_path", None) or config.pop("name_or_path", None):
            text = json.dumps(config, indent=2, ensure_ascii=False)
            file.write_text(f"{text}\n", "utf-8")


def _check_private(new: Path, folders: Sequence[Path]) -> None:
    """Raise RunFailed if a text names a folder of this machine, or holds a key."""
    names = {f"{folder}/" for folder in folders if folder.is_absolute() and len(folder.parts) > 1}
    for file in sorted(new.rglob("*")):
        if not file.is_file() or file.suffix == ".safetensors" or file.name in VOCABULARIES:
            continue
        text = file.read_text("utf-8", "replace")
        secrets = [name for name in names if name in text] or ["a key"] * (redacted(text) != text)
        if secrets:
            text = f"{file.name} would tell others of {secrets[0]}"
            raise RunFailed(f"{text}\nhelp: take it out of the run's folder or recipe")


# The model card, from the records of the stages behind the model

TEMPLATE = Path(__file__).with_name("card.md.j2")
# A path of at least two parts, or a whole text that is one; http://host/a is none.
_PATH = re.compile(r"(?<![\w:/.~<])~?/(?:[^\s'\"/]+/)+([^\s'\"/]*)")

Record = Mapping[str, Any]


def model_card(
    model: Model,
    name: str,
    base: ModelOrigin,
    is_adapter: bool,
    license: str | None,
    terms: str,
    notes: Sequence[str],
) -> str:
    """Return the file README.md with the header that the hub reads.

    Args:
        model: What is exported.
        name: What others load it by.
        base: Its base model.
        is_adapter: Whether it is exported as an adapter.
        license: An id of a license.
        terms: The base model's license, if it is known.
        notes: What its user must know.
    """
    from huggingface_hub import ModelCard, ModelCardData

    assert model.run is not None
    records = behind(model.run, model.name, model.record)
    methods, hubs = dict[str, None](), dict[str, None]()
    for record in records.values():
        parts = record["depends_on"]
        hubs |= dict.fromkeys(_hubs([parts["settings"], parts["component"]]))
        if parts["settings"]:
            methods[record["plugin"]] = None
    tags = ["alignkit", model.record["plugin"].replace("_", "-")]
    if model.is_reward:
        tags.append("reward-model")
    base_id = base.source if on_hub(base) else None
    data = ModelCardData(
        base_model=base_id,
        license=license,
        datasets=list(hubs) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if model.is_reward else "text-generation",
        tags=tags,
    )
    made = ModelCard.from_template(
        data,
        str(TEMPLATE),
        base=base_id or Path(base.name).name,
        base_on_hub=base_id is not None,
        base_made=plugins().source_of(base.name)[0],
        is_adapter=is_adapter,
        license=license,
        terms=terms,
        model=model,
        name=name,
        methods=methods,
        notes=notes,
        licenses=_licenses(records.values()),
        arguments=model.keys.get("chat_template_kwargs", {}),
        evaluations="\n\n".join(evaluations(model)),
    )
    return printable(str(made))


def behind(run: Path, name: str, record: Record) -> dict[str, Record]:
    """Return the records of all stages that a result comes from, also by its rewards and data, the
    first one first.
    """
    records: dict[str, Record] = {}

    def visit(name: str, record: Record) -> None:
        if not record or name in records:
            return
        for word in record["depends_on"].get("upstream", {}):
            stage = word.partition("@")[0]
            visit(stage, read_record(run / stage))
        records[name] = record

    visit(name.partition("@")[0], record)
    return records


def _licenses(records: Iterable[Record]) -> list[str]:
    """The licenses that rows state, by source."""
    lines = dict[str, None]()
    for record in records:
        for data in record.get("data", ()):
            licenses = (data.get("card") or {}).get("licenses", {})
            texts = [f"{name or 'not stated'} ({rows} rows)" for name, rows in licenses.items()]
            if licenses.keys() - {""}:
                lines[f"`{portable(data['name'])}`: {', '.join(texts)}"] = None
    return list(lines)


def _hubs(settings: Any) -> Iterator[str]:
    """The data sets of the hub that settings name."""
    if isinstance(settings, Mapping):
        hub = settings.get("hub")
        if isinstance(hub, str) and not Path(hub).exists():
            yield hub
        settings = [*settings.values()]
    if isinstance(settings, list):
        for value in settings:
            yield from _hubs(value)


def evaluations(model: Model) -> list[str]:
    """Return the steps that evaluated this very result, each with the tables of its report as
    Markdown.
    """
    assert model.run is not None
    results = model.run / RESULTS if is_result_name(model.name) else model.run
    texts = []
    for folder in sorted(results.glob("[!.]*")):
        record = read_record(folder)
        read = record.get("depends_on", {}).get("upstream", {}).values()
        if record.get("complete") and record.get("report") and model.record["hash"] in read:
            blocks = Report.restored(record["report"]).blocks
            tables = Report([block for block in blocks if isinstance(block, Table | str)])
            texts.append(f"### {record['name']}\n\n{tables.markdown().strip()}")
    return texts


def portable(value: Any) -> Any:
    """Return plain data with only the last part of every absolute path, so that it tells nothing of
    this machine.
    """

    def change(text: str, name: str) -> str:
        if text.startswith(("/", "~/")) and "\n" not in text and len(text) < 4096:
            return Path(text).name
        return _PATH.sub(r"\1", text)

    return mapped(value, change)


def recipe_text(run: Path) -> str:
    """Return the recipe of a run as a file that can be shared: files are named without their
    folders.
    """
    plain = redacted(portable(yaml.safe_load((run / RECIPE).read_text("utf-8"))))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    head = "# The recipe of the run. Put its files, which have no folders here, next to it."
    return f"{head}\n{text}"
