"""Reading models from disk: device, dtype, quantization, tokenizer, and errors for incomplete weights."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from alignkit.data.chat_templates import set_chat_template
from alignkit.errors import RunFailed
from alignkit.kernels import capabilities
from alignkit.kernels.memory import returning_memory
from alignkit.models.files_check import check_folder, read_json, weight_files
from alignkit.tokens.check import check_ids, loaded_tokenizer
from alignkit.tokens.template import ChatOptions

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WHOLE = ("embed", "lm_head", "wte", "wpe")  # matrices that bitsandbytes leaves as they are


def device_of(name: str) -> torch.device:
    """The device that `model.device` names; `auto`: the GPU if there is one. Raises RunFailed if torch finds none."""
    if name == "auto":
        return capabilities.default_device()
    if (found := capabilities.device_count(name.partition(":")[0])) <= int(name.partition(":")[2] or 0):
        known = f"only {found}" if found else "none"
        raise RunFailed(f"'device: {name}': torch finds {known} on this machine; 'device: auto' takes what there is")
    return torch.device(name)


def dtype_of(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` names.

    `auto`: bf16 if the base is frozen and the device has instructions that multiply bf16, else fp32.
    """
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    if spec.lora is None:
        return torch.float32
    return torch.bfloat16 if capabilities.multiplies_bf16(device) else torch.float32


def mixed_precision(spec: ModelSpec, device: torch.device) -> torch.dtype | None:
    """The dtype of products if `model.mixed_precision` asks for one. Raises RunFailed where it would be slower."""
    if spec.mixed_precision == "none":
        return None
    if not capabilities.multiplies_bf16(device):
        raise RunFailed(
            f"'mixed_precision: bf16': this {device.type} has no instructions that multiply bf16\n"
            "help: leave it out, because everything would be slower"
        )
    return torch.bfloat16


def load_base(
    spec: ModelSpec,
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    attention_name: str | None,
    spare: tuple[str, ...] = (),
) -> tuple[Any, list[str]]:
    """Load a language model. Returns it with the names of weights in its files that it does not use.

    attention_name: None for the model's own. spare: see `load_weights`.
    """
    from transformers import AutoModelForCausalLM

    silence_libraries()
    quantization = _quantization(spec, dtype)
    with nullcontext() if quantization is None else _reading_one_by_one(device):
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
        # bitsandbytes' fast layout for CPUs with AVX512-BF16 has no backward pass: gradients would vanish silently.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, unused


def quantization_options(spec: ModelSpec) -> dict[str, Any]:
    """The arguments of `BitsAndBytesConfig` that a recipe sets; empty if the base is not quantized."""
    form = spec.quantization
    if form == "none":
        return {}
    if form == "int8":
        return {"load_in_8bit": True}
    if isinstance(form, str):
        return {"load_in_4bit": True, "bnb_4bit_quant_type": form}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": form.type,
        "bnb_4bit_use_double_quant": form.double_quant,
    }


def quantized_width(spec: ModelSpec) -> float | None:
    """Bytes per weight of a quantized matrix, with its scales; None if the base is not quantized.

    bitsandbytes has a scale in fp32 per row of int8, or per 64 weights of 4 bits. Double quantization stores these in
    8 bits, with a scale in fp32 per 256 of them.
    """
    options = quantization_options(spec)
    if "load_in_4bit" not in options:
        return 1.0 if options else None
    return 0.5 + (1 + 4 / 256 if options.get("bnb_4bit_use_double_quant") else 4) / 64


def _quantization(spec: ModelSpec, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if spec.quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RunFailed(
            f"'quantization: {spec.quantization}' needs bitsandbytes, which is not installed\n"
            "help: pip install bitsandbytes, where it exists for this system, or set 'quantization: none'"
        )
    return BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **quantization_options(spec))


@contextmanager
def _reading_one_by_one(device: torch.device) -> Iterator[None]:
    """Let transformers read each weight into memory of its own, which is free again once the weight is quantized.

    Otherwise it maps the files. Their pages count as memory of the process, and a weight that stays as it is, such as
    the embeddings, keeps those of all others.
    """
    from transformers import modeling_utils

    mapped = modeling_utils.safe_open
    modeling_utils.safe_open = lambda *names, **options: mapped(*names, **{**options, "backend": "pread"})
    try:
        with returning_memory() if device.type == "cpu" else nullcontext():
            yield
    finally:
        modeling_utils.safe_open = mapped


def load_tokenizer(spec: ModelSpec, source: str, revision: str | None) -> Any:
    """Load a tokenizer with the recipe's chat template."""
    from transformers import AutoConfig, AutoTokenizer

    options: Any = {"revision": revision, "trust_remote_code": spec.trust_remote_code}
    tokenizer = loaded_tokenizer(lambda: AutoTokenizer.from_pretrained(source, **options), spec.base)
    if not (Path(source) / "adapter_config.json").is_file():
        config = AutoConfig.from_pretrained(source, **options)
        check_ids(tokenizer, config.get_text_config().vocab_size, spec.base)
    set_chat_template(tokenizer, spec.chat_template)
    return tokenizer


def load_text(
    spec: ModelSpec, source: str, revision: str | None, *, with_weights: bool = True
) -> tuple[Any, ChatOptions, tuple[int, ...]]:
    """What an `Encoder` of a base model is made of, without its weights: tokenizer, chat options, end tokens.

    with_weights: whether a folder must have them, so that loading it later does not fail.
    """
    if with_weights and Path(source).is_dir():
        check_folder(Path(source), spec.trust_remote_code)
    chat = ChatOptions(spec.chat_template_kwargs, spec.reasoning, spec.system_messages)
    return load_tokenizer(spec, source, revision), chat, end_ids(source, revision)


def end_ids(source: str, revision: str | None) -> tuple[int, ...]:
    """The tokens at which the model's own generation settings end a response."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(source, revision=revision).eos_token_id
    except OSError:  # there are no such settings
        return ()
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # transformers compares and calls what it reads
        problem = f"{source}: generation_config.json cannot be used: {error}"
        raise RunFailed(f"{problem}\nhelp: correct it, or delete it") from error
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    if not all(isinstance(token, int) and 0 <= token < 2**31 for token in ids):
        raise RunFailed(f"{source}: generation_config.json: eos_token_id {found!r:.60} is no token\nhelp: correct it")
    return tuple(ids)


def load_weights(kind: Any, source: str | Path, spare: tuple[str, ...] = (), **options: Any) -> tuple[Any, list[str]]:
    """Call `kind.from_pretrained`. Returns the model and the names of weights in its files that it does not use.

    spare: endings of names that may be missing or unused. Raises RunFailed if other weights are missing or have the
    wrong shape: transformers would draw them at random.
    """
    if Path(source).is_dir():
        check_folder(Path(source), bool(options.get("trust_remote_code")))
    # Shapes are checked here, because transformers' error refers to the report that is held back.
    with _without_report():
        model, report = kind.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **options
        )
    architecture = type(model).__name__
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(spare))
    if missing:
        raise RunFailed(
            f"{source}: these weights of a {architecture} are not in its files: {_first(missing)}\n"
            f"help: use a complete model of this kind; its config.json names {model.config.architectures}"
        )
    if report["mismatched_keys"]:
        name, theirs, ours = min(report["mismatched_keys"])
        raise RunFailed(
            f"{source}: {name} has the shape {list(theirs)}, but its config.json describes a {architecture} with "
            f"{list(ours)}\nhelp: use a folder whose configuration and weights belong together"
        )
    return model, sorted(key for key in report["unexpected_keys"] if not key.endswith(spare))


def warn_unused(source: str | Path, model: Any, names: list[str]) -> None:
    """Log one line about weights that the model does not use."""
    logger = logging.getLogger("alignkit")
    logger.warning(f"{source}: a {type(model).__name__} does not use its weights {_first(names)}")


def _first(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@contextmanager
def _without_report() -> Iterator[None]:
    """Hold back transformers' table of missing and unused weights, unless an error occurs, which may refer to it."""
    logger = logging.getLogger("transformers.modeling_utils")
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        report = "LOAD REPORT" in record.getMessage()
        if report:
            held.append(record)
        return not report

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


def silence_libraries() -> None:
    """Turn off messages about choices that are not the user's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # they work unpaged
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def has_score(folder: Path) -> bool:
    """Whether a saved role is a reward model."""
    kinds = []
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name)
            kinds += [str(config.get("task_type")), *(config.get("architectures") or [])]
    return any(kind == "SEQ_CLS" or kind.endswith("ForSequenceClassification") for kind in kinds)


def largest(config: Any, name: str) -> int | None:
    """A number in a model's configuration, the largest one if layers differ; None if there is none."""
    layers = getattr(config, "per_layer_config", None) or [config]
    values = [value for layer in layers if (value := getattr(layer, name, None))]
    numbers = [max(value) if isinstance(value, list | tuple) else value for value in values]
    return int(max(numbers)) if numbers else None


def backbone(model: Any) -> Any:
    """The network below a model's head, which computes hidden states."""
    network = getattr(model, model.base_model_prefix, None)
    return model.model if network is None else network  # Llama 4's prefix names an attribute that does not exist


# What weights take once they are loaded, found out from the headers of their files.


def weight_bytes(spec: ModelSpec, folder: Path) -> float | None:
    """Bytes of a model's weights with these settings; None if its files cannot be read, which loading will report."""
    width = dtype_of(spec, device_of(spec.device)).itemsize
    try:
        return sum(_bytes(spec, name, shape, width) for name, shape in _shapes(folder))
    except (RunFailed, SafetensorError, OSError):
        return None


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for file in weight_files(folder):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118  (a safetensors file is not iterable)
                yield name, content.get_slice(name).get_shape()


def _bytes(spec: ModelSpec, name: str, shape: list[int], width: int) -> float:
    if len(shape) == 2 and not any(part in name for part in _WHOLE):
        return math.prod(shape) * (quantized_width(spec) or width)
    return float(math.prod(shape) * width)
