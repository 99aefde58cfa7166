"""Writes an export: weights, tokenizer, generation settings, recipe and model card, complete or not
at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alignkit.commands import refuse
from alignkit.errors import RunFailed
from alignkit.io.atomic import replace_folder, write_json, write_text
from alignkit.io.digest import cached_snapshot
from alignkit.io.text import redacted
from alignkit.models.adapters import ORIGIN, Base
from alignkit.models.loading import DTYPES, dtype_of, end_ids, load_tokenizer, read_json
from alignkit.runs.bases import base_source
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.models.whole_model import end_with
from alignkit_plugins.models.whole_model import export as write_model
from alignkit_plugins.policies.card import Use, card, recipe_text
from alignkit_plugins.policies.export_request import Request
from alignkit_plugins.policies.source import Source

# Of generation settings
SAMPLED_WITH = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")  # of which "/home" may be a word


def write(source: Source, request: Request, say: Callable[[str], None]) -> tuple[list[str], str]:
    """Write the export; returns what its user must know, and how this machine can load it.

    Raises RunFailed for a model that cannot be exported in this form.
    """
    is_adapter = source.is_adapter and not request.merge
    base = source.base if is_adapter or not source.is_adapter else _found_base(source)
    base_folder = _folder_of(base)
    tokenizer = _tokenizer(source)
    ends = _ends(source, tokenizer, base_folder)
    public_base = request.base or source.hub_base or Path(source.spec.base).name
    with replace_folder(request.out) as new:
        if is_adapter:
            notes = _write_adapter(source, new, public_base)
        else:
            say(f"loading {Path(source.spec.base).name}")
            notes = write_model(
                source.folder, new, base, source.spec, _dtype(source, base), tokenizer, ends
            )
        if not source.is_reward and (is_adapter or not source.is_adapter):
            _write_generation(base_folder if is_adapter else new, new, ends)
        notes += _sampling_notes(new)
        use = Use(source, is_adapter, new, public_base, bool(request.base or source.hub_base))
        write_text(new / "recipe.yaml", recipe_text(source))
        where = request.push or request.out.resolve().name
        write_text(new / "README.md", redacted(card(source, use, where, request.license, notes)))
        _forget_names(new)
        mine = (source.run.resolve(), request.out.resolve().parent, Path.home(), Path.cwd())
        _check_private(new, [*mine, Path(source.base.source), Path(base.source)])
        if request.out.exists() and any(request.out.iterdir()):
            refuse(f"{request.out} appeared while it was being written", "choose another")
        here = base.source if not use.base_on_hub and Path(base.source).is_dir() else public_base
        commands = use.text(str(request.out), here)
    return notes, commands


def _write_adapter(source: Source, new: Path, base_name: str) -> list[str]:
    """Copy an adapter, with the name of its base that others know."""
    shutil.copytree(source.folder, new, dirs_exist_ok=True)
    config = read_json(source.folder / "adapter_config.json")
    write_json(new / "adapter_config.json", config | {"base_model_name_or_path": base_name})
    origin = read_json(source.folder / ORIGIN, optional=True)
    if isinstance(origin.get("base"), dict):
        write_json(new / ORIGIN, origin | {"base": origin["base"] | {"name": base_name}})
    if source.spec.quantization == "none":
        return []
    return [
        (
            f"it was trained on the {source.spec.quantization} base: on any other, "
            "log-probabilities differ"
        )
    ]


def _dtype(source: Source, base: Base) -> torch.dtype:
    """The dtype of whole weights: the recipe's, or else that of the base's files."""
    stored = stored_dtype(_folder_of(base) if source.is_adapter else source.folder)
    if source.spec.dtype == "auto" and stored in DTYPES:
        return DTYPES[stored]
    return dtype_of(source.spec, torch.device("cpu"))


def stored_dtype(folder: Path | None) -> str:
    """The dtype that a model's configuration names; empty if it names none."""
    config = read_json(folder / "config.json", optional=True) if folder is not None else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def _found_base(source: Source) -> Base:
    """The base of an adapter where it is now; a model source makes its own again. Raises RunFailed
    if it is gone.
    """
    base = source.base
    if Path(base.source).is_dir() or source.hub_base:
        return base
    if (
        Path(base.source).is_absolute()
        and (place := base_source(source.spec.base)) != source.spec.base
    ):
        return Base(base.name, place, base.revision)
    raise RunFailed(
        f"the base model of '{source.reference}' is not at {base.source} any more\n"
        "help: put it back, or leave --merge out: an adapter is exported without its base"
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


def _tokenizer(source: Source) -> Any:
    return load_tokenizer(
        source.folder, source.reference, trust_remote_code=source.spec.trust_remote_code
    )


def _ends(source: Source, tokenizer: Any, base_folder: Path | None) -> frozenset[int]:
    """The tokens that ended responses in the run."""
    spec = source.spec
    own = base_folder if source.is_adapter else source.folder
    return Encoder(
        tokenizer, spec.chat_template_kwargs, end_ids(str(own), None) if own is not None else ()
    ).end_ids


def _write_generation(folder: Path | None, new: Path, ends: frozenset[int]) -> None:
    """Write the base's generation settings, which end responses as the run did."""
    from transformers import GenerationConfig

    has_own = folder is not None and (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig()
    end_with(generation, ends)
    generation.save_pretrained(new)


def _sampling_notes(folder: Path) -> list[str]:
    """How programs sample by themselves with the base's generation settings, which alignkit does
    not apply.
    """
    found = read_json(folder / "generation_config.json", optional=True)
    given = ", ".join(f"{key} {found[key]}" for key in SAMPLED_WITH if found.get(key) is not None)
    return [
        (
            f"vLLM and transformers sample with the base's settings ({given}), which the run did "
            "not use"
        )
    ] * bool(given)


def _forget_names(folder: Path) -> None:
    """Take names of this machine's folders out of the configuration."""
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        found = read_json(file, optional=True)
        kept = {
            key: value
            for key, value in found.items()
            if key not in ("_name_or_path", "name_or_path")
        }
        if kept != found:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_private(new: Path, folders: Sequence[Path]) -> None:
    """Raise RunFailed if a text names a folder of this machine, or holds a key."""
    names = {f"{folder}/" for folder in folders if folder.is_absolute() and len(folder.parts) > 1}
    for file in sorted(new.rglob("*")):
        if not file.is_file() or file.suffix == ".safetensors" or file.name in VOCABULARIES:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for what in [name for name in names if name in text] + (
            ["a key"] if redacted(text) != text else []
        ):
            raise RunFailed(
                f"{file.name} would tell others of {what}\n"
                "help: take it out of the run's folder or recipe"
            )
