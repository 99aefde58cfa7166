"""GGUF files: transformers' reader, which is another implementation, and llama.cpp compute the model's numbers."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import export
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alignkit.errors import RunFailed
from alignkit.io.cache import cache_folder
from alignkit_apps.export.gguf_file import KINDS, check_architecture, write_gguf
from alignkit_plugins.models import smollm2, tiny

TEXT = "The capital of France is Paris, and 1234 apples"
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128)),  # the only size that transformers reads
}
# That llama.cpp reads, and transformers does not.
ONLY_LLAMA_CPP: dict[str, Any] = {
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "linear": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LINEAR)),
    "heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
}


def tokenizer() -> Any:
    """That of the tiny model."""
    return AutoTokenizer.from_pretrained(tiny.source(cache_folder()))


def random(name: str) -> Any:
    """A random model in which every weight matters, biases and norms included."""
    torch.manual_seed(0)
    model = (MODELS | ONLY_LLAMA_CPP)[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape) * 0.2)
    return model


@torch.no_grad()
def gap(model: Any, folder: Path, file: str, ids: torch.Tensor) -> float:
    """The largest difference between the logits of a model and those of its file."""
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    return float((read(ids).logits - model(ids).logits).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_logits(name: str, tmp_path: Path) -> None:
    model = random(name)
    assert write_gguf(model, tokenizer(), 2, tmp_path / "m.gguf", "float32", "m") == []
    assert gap(model, tmp_path, "m.gguf", torch.arange(3, 90)[None]) < 1e-4


@pytest.mark.parametrize(("dtype", "most", "bits"), [("float16", 0.01, 16), ("bfloat16", 0.06, 16), ("q8_0", 0.2, 8.5)])
def test_smaller_types(dtype: str, most: float, bits: float, tmp_path: Path) -> None:
    """Rounded matrices of the right size; vectors stay as they are."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(tiny.source(cache_folder()), dtype=torch.float32).eval()
    write_gguf(model, tokenizer(), 2, tmp_path / "m.gguf", dtype, "tiny")
    assert 0 < gap(model, tmp_path, "m.gguf", torch.tensor([tokenizer()(TEXT).input_ids])) < most
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == KINDS[dtype]
    assert tensors["blk.0.attn_q.weight"].n_bytes == 64 * 64 * bits / 8
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_rotary_factors_of_llama_3(tmp_path: Path) -> None:
    """Stored as what llama.cpp divides frequencies by: 1 for short waves, `factor` for long ones."""
    import gguf

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3))
    write_gguf(model, tokenizer(), 2, tmp_path / "m.gguf", "float32", "m")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    factors = np.array(tensors["rope_freqs.weight"].data)
    frequencies = 10000.0 ** -(np.arange(8) / 8)
    waves = 2 * np.pi / frequencies
    assert factors[waves < 32 / 4] == pytest.approx(1.0) and factors[waves > 32] == pytest.approx(8.0)
    between = (waves >= 8) & (waves <= 32)
    smooth = (32 / waves[between] - 1) / 3
    assert between.any() and factors[between] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)


def test_a_window_becomes_the_context(tmp_path: Path) -> None:
    import gguf

    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64))
    (note,) = write_gguf(model, tokenizer(), 2, tmp_path / "m.gguf", "float32", "m")
    assert "its context is the window, 64 tokens" in note
    assert gguf.GGUFReader(tmp_path / "m.gguf").get_field("llama.context_length").contents() == 64


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported (LlamaForCausalLM, "),
        ({}, "a model without a name is not supported"),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_scaling": {"type": "yarn"}}, "of the kind 'yarn'"),
        ({"architectures": ["Qwen2ForCausalLM"], "rope_parameters": {"rope_type": "llama3"}}, "of the kind 'llama3'"),
        ({"architectures": ["LlamaForCausalLM"], "hidden_act": "gelu"}, "the activation 'gelu'"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "a sliding window"),
        ({"architectures": ["LlamaForCausalLM"], "partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_others_are_for_llama_cpps_own_converter(config: dict[str, Any], expected: str) -> None:
    with pytest.raises(RunFailed) as raised:
        check_architecture(config, "sft")
    assert expected in str(raised.value) and "convert_hf_to_gguf.py FOLDER" in str(raised.value)


def test_an_export(lora_run: Path, tmp_path: Path) -> None:
    """The merged policy, next to its card; with --merge also as safetensors."""
    assert export(lora_run / "sft", tmp_path / "merged", "--merge") == 0
    assert export(lora_run / "sft", tmp_path / "out", "--gguf") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "recipe.yaml",
        "run-sft-F32.gguf",
    ]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([tokenizer()(TEXT).input_ids])
    assert gap(merged, tmp_path / "out", "run-sft-F32.gguf", ids) < 1e-4
    assert export(lora_run / "sft", tmp_path / "both", "--gguf", "--merge") == 0
    assert {"model.safetensors", "run-sft-F32.gguf"} <= {path.name for path in (tmp_path / "both").iterdir()}


@pytest.mark.slow  # a download of 93 MB
def test_smollm2(tmp_path: Path) -> None:
    folder = smollm2.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    write_gguf(model, words, 2, tmp_path / "m.gguf", "float32", "smollm2")
    assert gap(model, tmp_path, "m.gguf", torch.tensor([words(TEXT).input_ids])) < 1e-4


# llama.cpp


class Server:
    """llama.cpp's server on a file, in fp32 throughout. context: in tokens, for all that it answers at once."""

    def __init__(self, file: Path, context: int = 512):
        llama = pytest.importorskip("xllamacpp", reason="xllamacpp, a build of llama.cpp, is not installed")
        options = llama.CommonParams()
        options.model.path, options.n_ctx, options.cpuparams.n_threads = str(file), context, 1
        options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = llama.Server(options)
        self.address = self._server.listening_address

    def ask(self, path: str, **values: Any) -> Any:
        """The server's answer."""
        body, kind = json.dumps(values).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, body, kind)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, with control tokens."""
        found: list[int] = self.ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
        return found

    def answer(self, prompt: list[int], length: int, words: int = 0) -> tuple[list[int], dict[int, float]]:
        """Greedy tokens after a prompt, and the log-probabilities of the likeliest first ones.

        The server leaves the latter out for a token that is only a part of a character.
        """
        keys = {"temperature": 0, "repeat_penalty": 1.0, "cache_prompt": False, "return_tokens": True}
        reply = self.ask("/completion", prompt=prompt, n_predict=length, n_probs=words, **keys)
        likely = (reply.get("completion_probabilities") or [{"top_logprobs": []}])[0]["top_logprobs"]
        return reply["tokens"], {word["id"]: word["logprob"] for word in likely}


@torch.no_grad()
def check_llama_cpp(model: Any, server: Server, prompt: list[int], length: int, most: float = 1e-4) -> float:
    """llama.cpp writes the model's own greedy tokens. Returns the largest gap between log-probabilities, in nats."""
    tokens, _ = server.answer(prompt, length)
    ours = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
    assert tokens == ours.argmax(-1)[: len(tokens)].tolist()
    gaps = []
    for place in range(0, len(tokens), 4):
        _, likely = server.answer([*prompt, *tokens[:place]], 1, 50)
        gaps += [abs(ours[place, token].item() - logprob) for token, logprob in likely.items()]
    assert len(gaps) >= 50 and max(gaps) < most
    return max(gaps)


@pytest.mark.parametrize("name", [*MODELS, *ONLY_LLAMA_CPP])
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    """Every architecture, with weights that all matter."""
    model = random(name)
    write_gguf(model, tokenizer(), 2, tmp_path / "m.gguf", "float32", "m")
    prompt = list(range(3, 120))
    check_llama_cpp(model, Server(tmp_path / "m.gguf"), prompt, 24)


QUESTIONS = ("What is the capital of France?", "Name 3 fruits.", "Write 12 + 345.\n\n1. It's  easy", "Grüße, 你好!")


@pytest.mark.parametrize("source", [tiny, pytest.param(smollm2, marks=pytest.mark.slow)], ids=["tiny", "smollm2"])
def test_llama_cpp_answers_questions(source: Any, tmp_path: Path) -> None:
    """The same tokens of the prompt, greedy answers and log-probabilities."""
    folder = source.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    write_gguf(model, words, 2, tmp_path / "m.gguf", "float32", "m")
    server = Server(tmp_path / "m.gguf")
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompt = words(text, add_special_tokens=False).input_ids
        assert server.tokens(text) == prompt
        check_llama_cpp(model, server, prompt, 32, most=1e-3)
    reply = server.ask("/v1/chat/completions", messages=turns, temperature=0, max_tokens=8)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    if source is smollm2:  # the tiny model's answer is no text
        assert reply["choices"][0]["message"]["content"] == words.decode(answer, skip_special_tokens=True)


def test_an_exported_policy_in_llama_cpp(lora_run: Path, tmp_path: Path) -> None:
    assert export(lora_run / "sft", tmp_path / "out", "--merge", "--gguf") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompt = tokenizer()(TEXT).input_ids
    check_llama_cpp(model, Server(tmp_path / "out" / "run-sft-F32.gguf"), prompt, 24)
