"""Writes an export: weights, tokenizer, generation settings, recipe and model card, complete or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alignkit.errors import Problem, RecipeError, RunFailed
from alignkit.io.atomic import replace_folder, write_json, write_text
from alignkit.io.credentials import redacted
from alignkit.models.adapter_base import ORIGIN, Base
from alignkit.models.export import end_with, whole_model
from alignkit.models.files_check import read_json
from alignkit.models.hub import cached_snapshot
from alignkit.models.loading import DTYPES, dtype_of, end_ids, quantization_options
from alignkit.models.padding import saved_unread
from alignkit.runs.bases import base_source
from alignkit.tokens.chat_template import ChatOptions
from alignkit.tokens.encoding import Encoder
from alignkit.tokens.tokenizer_check import loaded_tokenizer
from alignkit_apps.export import provenance
from alignkit_apps.export.card import Card
from alignkit_apps.export.gguf_file import KINDS, check_architecture, write_gguf
from alignkit_apps.export.request import GGUF_ONLY, Request
from alignkit_apps.export.usage import ANSWERED, ASKED, Loading
from alignkit_apps.policies.source import Source

NOT_COPIED = ("README.md", ".gitattributes")
UNREADABLE = (".safetensors", ".gguf")
SAMPLED_WITH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # of generation settings
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")  # of which "/home" may be a word


@dataclass(frozen=True)
class Written:
    """An export on disk. loading: as this machine can load it. notes: what its user must know."""

    folder: Path
    loading: Loading
    notes: Sequence[str]


def write(source: Source, request: Request, say: Callable[[str], None]) -> Written:
    """Write the export. Raises RunFailed for a model that cannot be exported in this form."""
    form = request.form(source)
    needs_base = source.is_adapter and form != "adapter"
    base = _found_base(source) if needs_base else source.base
    base_folder = _folder_of(base)
    if request.gguf:
        config_folder = base_folder if source.is_adapter else source.folder
        check_architecture(read_json((config_folder or source.folder) / "config.json"), source.reference)
    tokenizer = _tokenizer(source)
    encoder = _encoder(source, tokenizer, base_folder)
    name = f"{source.run.resolve().name}-{source.reference.replace('@', '-')}"
    with replace_folder(request.out) as new:
        if form == "adapter":
            gguf, notes = "", _write_adapter(source, new, _public_base(source, request))
            if not source.is_reward:
                _write_generation(base_folder, new, encoder.end_ids)
        else:
            say(f"loading {Path(source.spec.base).name}")
            gguf, notes = _write_whole(source, request, base, tokenizer, encoder, new, name)
        notes += _sampling_notes(new)
        loading = _loading(source, request, gguf, name, new, encoder)
        _write_text(source, request, loading, new, base_folder, notes)
        mine = (source.run.resolve(), request.out.resolve().parent, Path.home(), Path.cwd())
        _check_private(new, [*mine, Path(source.base.source), Path(base.source)])
        if request.out.exists() and any(request.out.iterdir()):
            raise RecipeError([Problem(f"{request.out} appeared while it was being written", help="choose another")])
    here = replace(loading, path=str(request.out), folder=str(request.out))
    if not loading.hub and Path(base.source).is_dir():
        here = replace(here, base=base.source)
    return Written(request.out, here, notes)


# Weights


def _write_adapter(source: Source, new: Path, base_name: str) -> list[str]:
    """Copy an adapter, with the name of its base that others know."""
    for file in source.folder.iterdir():
        if file.is_file() and file.name not in NOT_COPIED:
            shutil.copyfile(file, new / file.name)
    config = read_json(source.folder / "adapter_config.json")
    write_json(new / "adapter_config.json", config | {"base_model_name_or_path": base_name})
    origin = read_json(source.folder / ORIGIN) if (source.folder / ORIGIN).is_file() else {}
    if isinstance(origin.get("base"), dict):
        write_json(new / ORIGIN, origin | {"base": origin["base"] | {"name": base_name}})
    if source.spec.quantization == "none":
        return []
    return [f"it was trained on the {source.spec.quantization} base: on any other, log-probabilities differ"]


def _write_whole(
    source: Source, request: Request, base: Base, tokenizer: Any, encoder: Encoder, new: Path, name: str
) -> tuple[str, list[str]]:
    """Write the whole model, as safetensors or GGUF or both; returns the GGUF file's name and notes."""
    form = request.form(source)
    if form == "whole" and not source.is_adapter and request.dtype is None:
        shutil.copytree(source.folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        if not source.is_reward:
            _write_generation(new, new, encoder.end_ids)
        return "", []
    dtype = request.dtype or _dtype_name(source, base)
    stored = torch.float32 if dtype in GGUF_ONLY else DTYPES[dtype]
    model, notes = whole_model(source.folder, base, source.spec, stored, tokenizer)
    notes += ["stored in blocks of 8 bits (q8_0), so weights are rounded"] if dtype in GGUF_ONLY else []
    if "whole" in form:
        end_with(getattr(model, "generation_config", None), encoder.end_ids)
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    if "gguf" not in form:
        return "", notes
    file = f"{name}-{KINDS[dtype]}.gguf"
    return file, notes + write_gguf(model, tokenizer, encoder.end_of_turn[-1], new / file, dtype, name)


def _dtype_name(source: Source, base: Base) -> str:
    """The dtype of whole weights: the recipe's, or else that of the base's files."""
    if source.spec.dtype != "auto":
        return source.spec.dtype
    folder = _folder_of(base) if source.is_adapter else source.folder
    found = _stored_dtype(folder)
    return found if found in DTYPES else str(dtype_of(source.spec, torch.device("cpu"))).removeprefix("torch.")


def _stored_dtype(folder: Path | None) -> str:
    """The dtype that a model's configuration names; empty if it names none."""
    config = read_json(folder / "config.json") if folder is not None and (folder / "config.json").is_file() else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def _vllm_dtype(source: Source, form: str, new: Path) -> str:
    """The dtype that vLLM needs as an option. By itself it rounds float32 to 16 bits."""
    if form == "adapter":
        return "" if source.spec.dtype == "auto" else source.spec.dtype
    return "float32" if _stored_dtype(new) == "float32" else ""


def _found_base(source: Source) -> Base:
    """The base of an adapter where it is now; a model source makes its own again. Raises RunFailed if it is gone."""
    base = source.base
    if Path(base.source).is_dir() or source.hub_base:
        return base
    if Path(base.source).is_absolute() and (place := base_source(source.spec.base)) != source.spec.base:
        return Base(base.name, place, base.revision)
    raise RunFailed(
        f"the base model of '{source.reference}' is not at {base.source} any more\n"
        "help: put it back, or leave --merge and --gguf out: an adapter is exported without its base"
    )


def _folder_of(base: Base) -> Path | None:
    """Where a base's files are; None if they are not on this machine."""
    from huggingface_hub.errors import HFValidationError

    if Path(base.source).is_dir():
        return Path(base.source)
    try:
        return cached_snapshot(base.source, base.revision)
    except HFValidationError:  # a path that is gone
        return None


# Text


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    trust = source.spec.trust_remote_code
    return loaded_tokenizer(
        lambda: AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust), source.reference
    )


def _encoder(source: Source, tokenizer: Any, base_folder: Path | None) -> Encoder:
    """What the run rendered and ended responses with."""
    spec = source.spec
    chat = ChatOptions(spec.chat_template_kwargs, spec.reasoning, spec.system_messages, spec.date)
    own = base_folder if source.is_adapter else source.folder
    return Encoder(tokenizer, chat, end_ids(str(own), None) if own is not None else ())


def _write_generation(folder: Path | None, new: Path, ends: frozenset[int]) -> None:
    """Write the base's generation settings, which end responses as the run did."""
    from transformers import GenerationConfig

    has_own = folder is not None and (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig()
    end_with(generation, ends)
    generation.save_pretrained(new)


def _sampling_notes(folder: Path) -> list[str]:
    """How programs sample by themselves with the base's generation settings, which alignkit does not apply."""
    file = folder / "generation_config.json"
    found = read_json(file) if file.is_file() else {}
    given = ", ".join(f"{key} {found[key]}" for key in SAMPLED_WITH if found.get(key) is not None)
    return [f"vLLM and transformers sample with the base's settings ({given}), which the run did not use"] * bool(given)


def _write_text(
    source: Source, request: Request, loading: Loading, new: Path, folder: Path | None, notes: Sequence[str]
) -> None:
    """Write the recipe and the model card, and take names of this machine's folders out of the configuration."""
    recipe = provenance.recipe_of(source.run)
    changed = provenance.differs(source, recipe)
    write_text(new / "recipe.yaml", provenance.recipe_text(source, changed))
    card = Card(
        loading,
        source.reference,
        source.spec,
        provenance.lineage(source, recipe),
        provenance.evaluations(source),
        source.record["versions"],
        notes,
        str(source.record["hash"]),
        request.license or provenance.base_license(folder),
        source.base_digest,
    )
    write_text(new / "README.md", redacted(card.text()))
    for file in ("config.json", "tokenizer_config.json"):
        if (new / file).is_file():
            found = read_json(new / file)
            kept = {key: value for key, value in found.items() if key not in ("_name_or_path", "name_or_path")}
            if kept != found:
                (new / file).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _public_base(source: Source, request: Request) -> str:
    """What others call the base."""
    return request.base or source.hub_base or Path(source.spec.base).name


def _loading(source: Source, request: Request, gguf: str, name: str, new: Path, encoder: Encoder) -> Loading:
    lora, folder = source.spec.lora, request.out.resolve().name
    return Loading(
        request.push or folder,
        folder,
        name,
        request.form(source),
        source.is_reward,
        _public_base(source, request),
        bool(request.base or source.hub_base),
        lora.r if lora is not None else 0,
        gguf,
        (new / "chat_template.jinja").is_file(),
        source.spec.trust_remote_code,
        quantization_options(source.spec),
        _vllm_dtype(source, request.form(source), new),
        source.spec.chat_template_kwargs,
        _scored_text(encoder, new) if source.is_reward and request.form(source) == "whole" else "",
    )


def _scored_text(encoder: Encoder, folder: Path) -> str:
    """A conversation up to the token that is scored, if padding follows: transformers skips it, vLLM scores there."""
    padding = saved_unread(folder)
    token = None if padding is None else encoder.tokenizer.convert_ids_to_tokens(padding)
    text = whole = encoder.chat.whole([ASKED], [ANSWERED])
    while token and text.endswith(token):
        text = text.removesuffix(token)
    return "" if text == whole else text


def _check_private(new: Path, folders: Sequence[Path]) -> None:
    """Raise RunFailed if a text names a folder of this machine, or holds a key."""
    names = {f"{folder}/" for folder in folders if folder.is_absolute() and len(folder.parts) > 1}
    for file in sorted(new.rglob("*")):
        if not file.is_file() or file.suffix in UNREADABLE or file.name in VOCABULARIES:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for what in [name for name in names if name in text] + (["a key"] if redacted(text) != text else []):
            raise RunFailed(f"{file.name} would tell others of {what}\nhelp: take it out of the run's folder or recipe")
