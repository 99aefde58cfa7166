"""Which base model an adapter is for, written next to it: a path says nothing on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from alignkit.errors import RunFailed
from alignkit.io.atomic import write_json, write_text
from alignkit.io.digest import digest, file_digest
from alignkit.models.files_check import read_json
from alignkit.models.hub import cached_snapshot

CONFIG, ORIGIN = "adapter_config.json", "alignkit.json"

CARD = """\
# LoRA adapter

Trained with alignkit on the base model `{name}`. SHA-256 of the base model's weights: `{weights}`.

- In a recipe: `from: FOLDER`, where FOLDER is this folder.
- In Python: `peft.PeftModel.from_pretrained(base_model, FOLDER)`.
"""


@dataclass(frozen=True)
class Base:
    """A base model. name: as the recipe has it. source: a transformers folder or hub id, as peft names it."""

    name: str
    source: str
    revision: str | None = None

    @cached_property
    def weights(self) -> str | None:
        """SHA-256 over the files with weights; None if they are not on this machine."""
        folder = Path(self.source) if Path(self.source).is_dir() else cached_snapshot(self.source, self.revision)
        files = sorted(folder.glob("*.safetensors")) if folder is not None else []
        return digest({file.name: file_digest(file) for file in files}) if files else None

    def save_origin(self, folder: Path) -> None:
        """Say in an adapter's folder, to programs and people, which base it is for."""
        facts = {"base": {"name": self.name, "revision": self.revision, "weights": self.weights}}
        write_json(folder / ORIGIN, facts)
        write_text(folder / "README.md", CARD.format(name=self.name, weights=self.weights or "unknown"))

    def has_adapter(self, folder: Path) -> bool:
        """Whether a folder holds an adapter. Raises RunFailed if it is for another base model."""
        if not (folder / CONFIG).is_file():
            return False
        source = read_json(folder / CONFIG).get("base_model_name_or_path")
        saved = read_json(folder / ORIGIN).get("base") if (folder / ORIGIN).is_file() else None
        saved = saved if isinstance(saved, dict) else {}
        same = saved["weights"] == self.weights if saved.get("weights") and self.weights else source == self.source
        if not same:
            raise RunFailed(
                f"{folder} is an adapter for the base model '{saved.get('name') or source}', not for '{self.name}'"
                + (": their weights differ" if saved.get("name") == self.name else "")
            )
        return True
