"""Which base model an adapter is for, written next to it: a path says nothing on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.io.atomic import write_json, write_text
from alignkit.io.digest import digest, file_digest
from alignkit.models.files_check import read_json, weight_files
from alignkit.models.hub import cached_snapshot

CONFIG, ORIGIN = "adapter_config.json", "alignkit.json"

CARD = """\
# LoRA adapter

Trained with alignkit on the base model `{name}`. SHA-256 of the base model's weights: `{weights}`.

- In a recipe: `from: FOLDER`, where FOLDER is this folder.
- In Python: `peft.PeftModel.from_pretrained(base_model, FOLDER)`.
"""


# Variants of LoRA that compute something else with weights of the same names.
VARIANTS = ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_dora",
            "use_qalora")  # fmt: skip
# Initializations of peft that subtract the new adapter from the base model's weights.
SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_computes(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raise RunFailed for an adapter of another scale than `model.lora`, of another kind, or for another base.

    It would load, but compute something else.
    """
    saved = read_json(folder / CONFIG)
    for key, value in expected.items():
        theirs = saved.get(key, value) or type(value)()
        if theirs != value:
            raise RunFailed(f"{folder}: this adapter has {key} {theirs}, but the recipe's model.lora has {value}")
    if variant := next((key for key in VARIANTS if saved.get(key)), ""):
        raise RunFailed(f"{folder}: this adapter has {variant} {saved[variant]}, which alignkit does not compute")
    if str(start := saved.get("init_lora_weights")).startswith(SUBTRACTED):
        raise RunFailed(
            f"{folder}: this adapter began as '{start}', so it belongs to weights that differ from the base model's\n"
            "help: let peft convert it: save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START)"
        )


@dataclass(frozen=True)
class Base:
    """A base model. name: as the recipe has it. source: a transformers folder or hub id, as peft names it."""

    name: str
    source: str
    revision: str | None = None

    @cached_property
    def _folder(self) -> Path | None:
        """Where its files are; None if they are not on this machine."""
        return Path(self.source) if Path(self.source).is_dir() else cached_snapshot(self.source, self.revision)

    @cached_property
    def weights(self) -> str | None:
        """SHA-256 over the files with weights; None if they are not on this machine."""
        try:
            files = weight_files(self._folder) if self._folder is not None else []
        except RunFailed:  # whoever loads the model will say so
            return None
        return digest([file_digest(file) for file in files]) if files else None

    def check_vocabulary(self, folder: Path) -> None:
        """Raise RunFailed for a whole model that cannot be used with this base's tokenizer."""
        if self._folder is None or not (self._folder / "config.json").is_file():
            return
        theirs, ours = (read_json(path / "config.json").get("vocab_size") for path in (folder, self._folder))
        if None not in (theirs, ours) and theirs != ours:
            raise RunFailed(f"{folder} knows {theirs} tokens, but the tokenizer of model.base '{self.name}' has {ours}")

    def save_origin(self, folder: Path) -> None:
        """Say in an adapter's folder, to programs and people, which base it is for."""
        facts = {"base": {"name": self.name, "revision": self.revision, "weights": self.weights}}
        write_json(folder / ORIGIN, facts)
        write_text(folder / "README.md", CARD.format(name=self.name, weights=self.weights or "unknown"))

    def has_adapter(self, folder: Path) -> bool:
        """Whether a folder holds an adapter. Raises RunFailed if it is for another base model."""
        if not (folder / CONFIG).is_file():
            return False
        if not self.fits(folder):
            name, saved = base_name(folder), _saved(folder).get("name")
            raise RunFailed(
                f"{folder} is an adapter for the base model '{name}', not for '{self.name}'"
                + (": their weights differ" if saved == self.name else "")
            )
        return True

    def fits(self, folder: Path) -> bool:
        """Whether the adapter in a folder is for this base model: by the digest of the weights, or else by name."""
        saved = _saved(folder)
        if saved.get("weights") and self.weights:
            return bool(saved["weights"] == self.weights)
        return bool(_source(folder) == self.source)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, for any base model."""
    return (folder / CONFIG).is_file()


def base_name(folder: Path) -> str:
    """The name of the base model that the adapter in a folder is for."""
    return str(_saved(folder).get("name") or _source(folder))


def _source(folder: Path) -> Any:
    return read_json(folder / CONFIG).get("base_model_name_or_path")


def _saved(folder: Path) -> Mapping[str, Any]:
    saved = read_json(folder / ORIGIN).get("base") if (folder / ORIGIN).is_file() else None
    return saved if isinstance(saved, dict) else {}
