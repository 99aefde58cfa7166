"""Base models in GGUF files, as llama.cpp reads them: dequantized once, into an ordinary
transformers folder.

transformers reads the file, and says so if it does not know its architecture or its blocks. Weights
become float32, because blocks scaled by 16-bit floats do not fit bfloat16.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from alignkit import RunFailed
from alignkit.io.atomic import made_once, write_json
from alignkit.io.digest import file_digest
from alignkit.io.text import is_file

CONVERSION = 1  # raised whenever the converted folder changes, so that an old one is not reused
MANIFEST = "alignkit_source.json"
MAGIC = b"GGUF"
# What a license wants next to weights, and to what is made from them
NOTICES = {
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n"
}


def source(cache: Path, path: str) -> Path:
    """A transformers folder under `cache`, named by the file and its digest; made on the first call.

    Raises RunFailed for what is no GGUF file.
    """
    file = Path(path)
    if not is_file(file):
        raise RunFailed(f"no such file: {file}\nhelp: write the path of a GGUF file")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise RunFailed(f"{file} is not a GGUF file\nhelp: download it again")
    folder = cache / f"{file.name}-{file_digest(file)[:12]}-{CONVERSION}"
    return made_once(folder, partial(_make, file), MANIFEST)


def _make(file: Path, made: Path) -> None:
    from gguf import GGUFReader

    model, tokenizer = read(file)
    if tokenizer.pad_token is None:  # a mask made from pads must not remove the end of a turn
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    fields = GGUFReader(file).fields
    license = fields["general.license"].contents() if "general.license" in fields else None
    if license in NOTICES:
        (made / "NOTICE").write_text(NOTICES[license], encoding="utf-8")
    facts = {"file": file.name, "sha256": file_digest(file), "license": license}
    write_json(made / MANIFEST, facts)


def read(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF file in float32, and its tokenizer."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    # Packed weights can be neither saved nor trained. Older versions of transformers always unpack
    # them.
    config = getattr(transformers, "GgufConfig", None)
    dense = {"quantization_config": config(dequantize=True)} if config else {}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **dense
    )
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
