"""Reading models from disk or the hub: device, dtype, quantization, tokenizer, and errors for what
cannot be used.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from alignkit.errors import RunFailed, reason_of
from alignkit.io.digest import cached_snapshot
from alignkit.io.text import listed
from alignkit.kernels.backends import chosen
from alignkit.models.saved import CONFIG, read_json, reading
from alignkit.tokens.chat_templates import set_chat_template
from alignkit.tokens.check import check_ids

if TYPE_CHECKING:
    from alignkit.contract.settings import ModelSpec

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Arguments of `BitsAndBytesConfig`, for each word of `model.quantization`.
_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTIZED: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"load_in_8bit": True},
    "nf4": _NF4,
    "nf4_double_quant": {**_NF4, "bnb_4bit_use_double_quant": True},
}
HUB_TIMEOUT = 5  # seconds to wait for the hub


# Files


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises RunFailed if it is damaged."""
    with reading(file):
        return load_file(file)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads a model's weights from; none if it has none in
    safetensors.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = read_json(folder / INDEX, optional=True)
    with reading(folder / INDEX):
        return sorted({folder / name for name in index.get("weight_map", {}).values()})


def load_config(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    """A model's configuration. Raises RunFailed for one that transformers cannot use without
    running foreign code.
    """
    from transformers import AutoConfig

    with reading(
        f"{source}: its configuration",
        "use a transformers model, and a version that knows it; set model.trust_remote_code "
        "for a model with its own code that you trust",
    ):
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    kernel = str(getattr(config, "_attn_implementation", ""))
    if "/" in kernel and not trust_remote_code:
        raise RunFailed(
            f"{source}: its configuration names the attention {kernel!r:.80}, code of a "
            "repository, which is not run\n"
            "help: remove the key, or set model.trust_remote_code if you trust it"
        )
    return config


# The hub


def locate(source: str, revision: str | None = None) -> str:
    """Return a name that transformers can load: `source` itself, or its cached copy if the hub does
    not serve it.

    source: a folder or hub id. Transformers would ask for several files and retry each for half a
    minute; this asks for one file, once. Raises RunFailed with advice if there is neither.
    """
    if Path(source).is_dir():
        return source
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(source, CONFIG, revision=revision), timeout=HUB_TIMEOUT)
    except (
        Exception
    ) as error:  # from the HTTP library, which differs between versions of huggingface_hub
        if (cached := cached_snapshot(source, revision)) is not None:
            return str(cached)
        raise RunFailed(
            f"model.base '{source}' is neither a folder nor in the hub's cache, and "
            f"{constants.ENDPOINT} does not serve it ({reason_of(error)})\n"
            "help: correct the name or model.revision, run `hf auth login` for a gated or "
            "private model, or download it where there is a network (`hf download`)"
        ) from error
    return source


# Device and dtype


def device_of(name: str) -> torch.device:
    """The device that `model.device` names; `auto`: the GPU if there is one. Raises RunFailed if
    torch has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RunFailed(
            f"'device: {name}': {reason_of(error)}\nhelp: 'device: auto' takes what there is"
        ) from error
    return torch.device(name)


def dtype_of(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` names.

    `auto`: bf16 if the base is frozen and the device computes it better than fp32.
    """
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    if spec.lora is None:
        return torch.float32
    full, half = (
        chosen(device, dtype).priority(device, dtype) or 0
        for dtype in (torch.float32, torch.bfloat16)
    )
    return torch.bfloat16 if half > full else torch.float32


def machine(spec: ModelSpec) -> dict[str, str]:
    """What a model's numbers depend on besides its weights: `made_on`, such as `float32 on AVX2
    with 2 threads` or `float32 on AVX512 by oneDNN with 1 threads`, and the `backend` that computes
    them.
    """
    device = device_of(spec.device)
    dtype = dtype_of(spec, device)
    backend, where = chosen(device, dtype), torch.backends.cpu.get_cpu_capability()
    if backend.library:
        where += f" by {backend.library}"
    where += f" with {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    made_on = f"{dtype} on {where}".removeprefix("torch.")
    return {"made_on": made_on, "backend": backend.label}


def load_network(
    spec: ModelSpec,
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    attention_name: str | None,
    spare: tuple[str, ...] = (),
) -> Any:
    """Load a language model.

    attention_name: None for the model's own. spare: see `load_weights`.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if options := QUANTIZED[spec.quantization]:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RunFailed(
                f"'quantization: {spec.quantization}' needs bitsandbytes\n"
                "help: pip install bitsandbytes"
            )
        quantization = BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **options)
    model = load_weights(
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
        # bitsandbytes' fast layout for CPUs with AVX512-BF16 has no backward pass: gradients would
        # vanish silently.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_text(
    spec: ModelSpec, source: str, revision: str | None
) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    """What an `Encoder` of a base model is made of, without its weights: tokenizer, template
    arguments, end tokens.
    """
    options: Any = {"revision": revision, "trust_remote_code": spec.trust_remote_code}
    config = load_config(source, **options)
    tokenizer = load_tokenizer(source, spec.base, **options)
    check_ids(tokenizer, config.get_text_config().vocab_size, spec.base)
    set_chat_template(tokenizer, spec.chat_template)
    return tokenizer, spec.chat_template_kwargs, end_ids(source, revision)


def load_tokenizer(source: str | Path, name: str, **options: Any) -> Any:
    """A tokenizer. name: of what it belongs to, in the error. Raises RunFailed for files that are
    damaged or missing.
    """
    from transformers import AutoTokenizer

    with reading(
        f"{name}: its tokenizer",
        "copy the tokenizer's files (tokenizer.json, tokenizer_config.json) again, or set "
        "model.trust_remote_code if it has code of its own that you trust",
    ):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # transformers makes one without words from nothing, for some families
        if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
            raise FileNotFoundError("no file has its vocabulary")
    return tokenizer


def end_ids(source: str, revision: str | None) -> tuple[int, ...]:
    """The tokens at which the model's own generation settings end a response."""
    from transformers import GenerationConfig

    with reading(f"{source}: generation_config.json", "correct it, or delete it"):
        try:
            return tuple(
                map(int, ends_of(GenerationConfig.from_pretrained(source, revision=revision)))
            )
        except OSError:  # there are no such settings
            return ()


def ends_of(generation: Any) -> list[Any]:
    """What generation settings name as end tokens: none, one or several."""
    ids = generation.eos_token_id
    if ids is None:
        return []
    return [*ids] if isinstance(ids, list | tuple) else [ids]


def load_weights(kind: Any, source: str | Path, spare: tuple[str, ...], **options: Any) -> Any:
    """Call `kind.from_pretrained`.

    spare: endings of names that may be missing; where there are any, so may the language head,
    whatever it is called and made of. Raises RunFailed if other weights are missing or have the
    wrong shape: transformers would draw them at random.
    """
    silence_libraries()
    load_config(str(source), options.get("revision"), options["trust_remote_code"])
    with reading(f"{source}: its weights in safetensors"):
        model, report = kind.from_pretrained(
            source,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **options,
        )
    head = model.get_output_embeddings() if spare else None
    unread = tuple(f"{name}." for name, part in model.named_modules() if part is head)
    wrong = [key for key in report["missing_keys"] if not key.endswith(spare)]
    wrong = [key for key in wrong if not key.startswith(unread)]
    wrong += [name for name, *_ in report["mismatched_keys"]]
    if wrong:
        raise RunFailed(
            f"{source}: these weights of a {type(model).__name__} are not in its files, or have "
            f"another shape there: {listed(sorted(wrong))}\n"
            "help: use a complete model of this kind; its config.json names "
            f"{model.config.architectures}"
        )
    return model


def silence_libraries() -> None:
    """Turn off messages about choices that are not the user's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Missing weights are reported here. With its own level, transformers tells how it would cut a
    # model into parts.
    for name in (
        "transformers.modeling_utils",
        "transformers.distributed.tensor_parallel",
        "bitsandbytes",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Paged optimizers work unpaged on a CPU.
    warnings.filterwarnings(
        "ignore", message="Paged optimizers are not supported|.*is_gradient_checkpointing"
    )


def context_length_of(config: Any) -> int:
    """Longest sequence that a model was made for, in tokens. config: of the model, or of its text."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or 2**31
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length the positions of the whole pack change, so results would depend on its
        # neighbors.
        most = rope.get("original_max_position_embeddings") or most
    return int(most)


def largest(config: Any, name: str) -> int | None:
    """A number in a model's configuration, the largest one if layers differ; None if there is
    none.
    """
    layers = getattr(config, "per_layer_config", None) or [config]
    values = [value for layer in layers if (value := getattr(layer, name, None))]
    numbers = [max(value) if isinstance(value, list | tuple) else value for value in values]
    return int(max(numbers)) if numbers else None


def backbone(model: Any) -> Any:
    """The network below a model's head, which computes hidden states."""
    network = getattr(model, model.base_model_prefix, None)
    # Llama 4's prefix names an attribute that does not exist
    return model.model if network is None else network


# A reward model reads its score at the token where transformers, peft and TRL do. Transformers
# scores a sequence at its last token that is not the padding of the model's
# configuration. An adapter is loaded onto its base, so the base's configuration decides. If the end
# of a turn is also the padding, that is one token before it. A base without padding is read at the
# last token; whoever pads needs a token that ends no turn.

PAD_TOKEN_ID = "unread_token"  # in the metadata of a saved adapter: the padding that it skips


def padding_of(config: Any) -> int | None:
    """The id of the padding in a model's configuration; None if there is none."""
    found = config.get_text_config().pad_token_id
    return None if found is None or found < 0 else int(found)


def saved_pad_token_id(folder: Path) -> int | None:
    """The padding that a saved reward model skips; None for one that reads the last token."""
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            value = (file.metadata() or {}).get(PAD_TOKEN_ID)
        return None if value is None else int(value)
    config = read_json(folder / CONFIG)
    padding: int | None = config.get("text_config", config).get("pad_token_id")
    return padding


def scorer(network: Any, head: Tensor, padding: int | None) -> Any:
    """A classifier with one label, whose logit is the score: the network's backbone with a head [1,
    hidden].

    padding: the token that it skips at the end of a response, and that pads batches.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(network.config)
    config.num_labels = 1
    config.problem_type = "regression"  # without it, vLLM puts the score through a sigmoid
    config.get_text_config().pad_token_id = padding
    model = AutoModelForSequenceClassification.from_config(config, dtype=network.dtype)
    backbone(model).load_state_dict(backbone(network).state_dict())
    model.score.weight.data.copy_(head)
    return model


def has_classifier(config: Any) -> bool:
    """Whether transformers has a classifier of a model's family, as which `scorer` is saved."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def saved_head(folder: Path) -> Tensor:
    """Read the scalar head [1, hidden], fp32, of a saved reward model."""
    for file in sorted(folder.glob("*.safetensors")):
        for key, value in load_file(file).items():
            if key.endswith("score.weight"):
                return value.float()
    raise RunFailed(f"{folder} is a reward model without a score head")


def with_padding(tokenizer: Any, config: Any) -> Any:
    """A copy of a tokenizer that pads with the base's padding, or else with a token that ends no
    turn.
    """
    padded, padding = copy.deepcopy(tokenizer), padding_of(config)
    if padding is not None:
        padded.pad_token = tokenizer.convert_ids_to_tokens(padding)
    elif padded.pad_token_id in (None, padded.eos_token_id):
        padded.pad_token = padded.bos_token or padded.pad_token
    return padded
