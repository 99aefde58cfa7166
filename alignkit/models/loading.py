"""A base model's weights and tokenizer as they are read from disk: device, dtype, quantization, what is missing."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignkit.data.chat_templates import set_chat_template
from alignkit.errors import RunFailed
from alignkit.kernels import capabilities

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(name: str) -> torch.device:
    return capabilities.default_device() if name == "auto" else torch.device(name)


def dtype_of(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """`auto`: bf16 where the hardware multiplies it natively and the base is frozen, else fp32."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    if spec.lora is None:
        return torch.float32
    return torch.bfloat16 if capabilities.multiplies_bf16(device) else torch.float32


def load_base(
    spec: ModelSpec,
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    attention_name: str | None,
    spare: tuple[str, ...] = (),
) -> tuple[Any, list[str]]:
    """The model, and weights it has no place for. attention_name: None for its own. spare: see `load_weights`."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _quiet()
    quantization: Any = None
    if spec.quantization in ("nf4", "fp4"):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=spec.quantization, bnb_4bit_compute_dtype=dtype
        )
    elif spec.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    model, unused = load_weights(
        AutoModelForCausalLM,
        source,
        spare,
        revision=revision,
        dtype=dtype,
        attn_implementation=attention_name,
        quantization_config=quantization,
        trust_remote_code=spec.trust_remote_code,
        device_map={"": device},
    )
    for module in model.modules():
        # bitsandbytes' fast layout for CPUs with AVX512-BF16 has no backward: gradients would be lost without an error.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, unused


def load_tokenizer(spec: ModelSpec, source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=spec.trust_remote_code)
    set_chat_template(tokenizer, spec.chat_template)
    return tokenizer


def load_weights(kind: Any, source: str | Path, spare: tuple[str, ...] = (), **options: Any) -> tuple[Any, list[str]]:
    """`kind.from_pretrained`: the model, and the names of weights in its files that it has no place for.

    Raises RunFailed for weights that the files lack or have in another shape: they would be random numbers.
    spare: ends of names that may be missing or left over.
    """
    # Shapes are checked here: transformers' own error refers to the table that is held back.
    with _without_table():
        model, found = kind.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    missing = sorted(key for key in found["missing_keys"] if not key.endswith(spare))
    if missing:
        raise RunFailed(
            f"{source}: these weights of a {type(model).__name__} are not in its files: {_some(missing)}\n"
            f"help: use a complete model of this kind; its config.json names {model.config.architectures}"
        )
    if found["mismatched_keys"]:
        name, theirs, ours = min(found["mismatched_keys"])
        raise RunFailed(
            f"{source}: {name} has the shape {list(theirs)}, a {type(model).__name__} of its config.json {list(ours)}\n"
            "help: use a folder whose configuration and weights belong together"
        )
    return model, sorted(key for key in found["unexpected_keys"] if not key.endswith(spare))


def warn_unused(source: str | Path, model: Any, names: list[str]) -> None:
    """One line about weights that were left out."""
    logging.getLogger("alignkit").warning(f"{source}: a {type(model).__name__} does not use its weights {_some(names)}")


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@contextmanager
def _without_table() -> Iterator[None]:
    """Hold back transformers' table of missing and unexpected weights; an error brings it, as errors refer to it."""
    logger = logging.getLogger("transformers.modeling_utils")
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        table = "LOAD REPORT" in record.getMessage()
        if table:
            held.append(record)
        return not table

    logger.addFilter(hold)
    try:
        yield
    except Exception:
        logger.removeFilter(hold)
        for record in held:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(hold)


def _quiet() -> None:
    """What these libraries say at every start is about choices that are not the user's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def has_score(folder: Path) -> bool:
    """Whether a saved role is a reward model."""
    found = []
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text(encoding="utf-8"))
            found += [str(config.get("task_type")), *(config.get("architectures") or [])]
    return any(kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification") for kind in found)


def largest(config: Any, name: str) -> int | None:
    """A number of a model's config, the largest where its layers differ; None where it has none."""
    found = [getattr(layer, name, None) for layer in getattr(config, "per_layer_config", None) or [config]]
    numbers = [max(value) if isinstance(value, list | tuple) else value for value in found if value]
    return int(max(numbers)) if numbers else None


def backbone(model: Any) -> Any:
    """A model without its head, of language or of scores: what gives hidden states."""
    found = getattr(model, model.base_model_prefix, None)
    return model.model if found is None else found  # the prefix of Llama 4 names nothing
